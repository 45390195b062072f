"""Fixtures shared by the tests of the client."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from pose_analyzer_client import ClientOptions, ReconnectPolicy

from .fake_service import FakeService
from .helpers import Sleeps

# Times say more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    """A service on a free port of this machine."""
    async with FakeService() as running:
        yield running


@pytest.fixture
def sleeps():
    return Sleeps()


@pytest.fixture
def options(sleeps):
    policy = ReconnectPolicy(
        first_delay_s=0.5, max_delay_s=4.0, max_attempts=5, random=lambda: 0.5, sleep=sleeps
    )
    return ClientOptions(reconnect=policy)
