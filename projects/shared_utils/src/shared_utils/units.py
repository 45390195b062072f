"""Units for people; the code itself counts in bytes and seconds."""

from typing import Final

BYTES_PER_MIB: Final = 1 << 20


def format_mib(n_bytes: int) -> str:
    """Write a size for a person to read, as in ``5.5 MiB``."""
    return f"{n_bytes / BYTES_PER_MIB:.1f} MiB"
