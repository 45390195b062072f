"""What is read as a file: anything with bytes to read and a position to seek."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class ByteSource(Protocol):
    """An opened file, one in memory, or an upload."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to so many bytes."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position and return it."""
        ...
