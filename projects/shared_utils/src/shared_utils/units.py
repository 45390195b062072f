"""Units for people; the code itself counts in bytes and seconds."""

from typing import Final

BYTES_PER_KIB: Final = 1 << 10
BYTES_PER_MIB: Final = 1 << 20
BYTES_PER_GIB: Final = 1 << 30


def format_mib(n_bytes: int) -> str:
    """Write a size for a person to read, as in ``5.5 MiB``."""
    return f"{n_bytes / BYTES_PER_MIB:.1f} MiB"


def format_bytes(n_bytes: int) -> str:
    """Write a size in the unit that suits it, as in ``13.81 GiB``."""
    if abs(n_bytes) >= BYTES_PER_GIB:
        return f"{n_bytes / BYTES_PER_GIB:,.2f} GiB"
    if abs(n_bytes) >= BYTES_PER_MIB:
        return f"{n_bytes / BYTES_PER_MIB:,.1f} MiB"
    return f"{n_bytes / BYTES_PER_KIB:,.1f} KiB" if n_bytes else "0"
