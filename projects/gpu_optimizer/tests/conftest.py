"""Settings of all tests."""

from hypothesis import settings

# Times say more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
