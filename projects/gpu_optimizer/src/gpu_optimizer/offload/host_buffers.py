"""Page-locked memory of the host, kept for the next step and bounded.

Only page-locked memory is copied at the link's speed and while the program goes on; locking it
takes as long as some hundred copies, so buffers are kept. PyTorch's own allocator of such memory
rounds sizes up to powers of two, which for tensors of hundreds of MiB wastes up to half.
"""

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import psutil
import torch
from torch import Tensor

# Left to the data loader, the page cache and everybody else.
_USABLE_RATIO: Final = 0.5


@dataclass(slots=True, eq=False, weakref_slot=True)
class HostBuffer:
    """A piece of the host's memory."""

    data: Tensor
    """Bytes."""
    free_after: torch.cuda.Event | None = None
    """The last copy out of it or into it: nothing else may be written before."""


class HostBuffers:
    """Buffers by exact size.

    Parameters
    ----------
    pinned
        Whether a GPU copies from and to them.
    max_bytes
        All buffers together; None: half of what is available now.
    """

    def __init__(self, *, pinned: bool, max_bytes: int | None = None) -> None:
        available = int(psutil.virtual_memory().available * _USABLE_RATIO)
        self.max_bytes = available if max_bytes is None else max_bytes
        self.held_bytes = 0
        """In use or kept."""
        self._pinned = pinned
        self._idle: dict[int, list[HostBuffer]] = defaultdict(list)

    def take(self, size_bytes: int) -> HostBuffer | None:
        """Return a buffer of a size; None if the bound is reached."""
        if self._idle[size_bytes]:
            return self._idle[size_bytes].pop()
        if self.held_bytes + size_bytes > self.max_bytes:
            self._drop_idle(self.held_bytes + size_bytes - self.max_bytes)
        if self.held_bytes + size_bytes > self.max_bytes:
            return None
        self.held_bytes += size_bytes
        return _pinned(size_bytes) if self._pinned else HostBuffer(_bytes(size_bytes))

    def give_back(self, buffer: HostBuffer) -> None:
        """Keep a buffer for the next one who asks for its size."""
        self._idle[buffer.data.nbytes].append(buffer)

    def close(self) -> None:
        """Give idle buffers back to the system."""
        self._drop_idle(self.held_bytes)

    def _drop_idle(self, size_bytes: int) -> None:
        """Give back at least so much, if there is as much."""
        dropped_bytes = 0
        for kept in self._idle.values():
            while kept and dropped_bytes < size_bytes:
                buffer = kept.pop()
                if buffer.free_after is not None:
                    buffer.free_after.synchronize()
                dropped_bytes += buffer.data.nbytes
        self.held_bytes -= dropped_bytes


def _bytes(size_bytes: int, *, pin_memory: bool = False) -> Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pin_memory)


def _pinned(size_bytes: int) -> HostBuffer:
    buffer = HostBuffer(_bytes(size_bytes))
    address = buffer.data.data_ptr()
    if int(torch.cuda.cudart().cudaHostRegister(address, size_bytes, 0)):  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        # Some systems lock only what was allocated for it.
        return HostBuffer(_bytes(size_bytes, pin_memory=True))
    # Runs before the memory itself is freed; after the process's end there is nothing to unlock.
    weakref.finalize(buffer, _unlock, address).atexit = False
    return buffer


def _unlock(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
