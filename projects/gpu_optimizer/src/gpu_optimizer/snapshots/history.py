"""PyTorch's own record of what the CUDA allocator does, behind a port that tests can serve."""

import os
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch

from gpu_optimizer.errors import GpuOptimizerError, NoGpuError
from shared_utils.gpu import GpuReader

MAX_ENTRIES: Final = 2_000_000
"""Events that are kept, about 200 bytes each; the oldest go when there are more."""


class HistoryInUseError(GpuOptimizerError):
    """Something else records the allocator's history, of which a process has one."""

    def __init__(self) -> None:
        super().__init__(
            "The allocator's history is being recorded already. End the other tracer, or call "
            "torch.cuda.memory._record_memory_history(None)."
        )


@dataclass(frozen=True, slots=True)
class AllocatorCounts:
    """The allocator's own statistics at one moment."""

    n_allocations: int
    """All so far."""
    requested_total_bytes: int
    """Of all allocations so far, before rounding."""
    freed_total_bytes: int
    """Of all blocks so far that may be used again, before rounding."""
    allocated_bytes: int
    """Now, rounded as the allocator does it."""
    reserved_bytes: int
    allocated_peak_bytes: int
    """Since the recording began."""
    reserved_peak_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What the driver says of the whole card at one moment."""

    total_bytes: int
    used_bytes: int
    """By all processes."""
    reserved_bytes: int
    """By this process's allocator."""

    @property
    def outside_bytes(self) -> int:
        """CUDA contexts, libraries and other processes."""
        return max(self.used_bytes - self.reserved_bytes, 0)


@runtime_checkable
class AllocatorHistory(Protocol):
    """Records allocations and frees of one device."""

    @property
    def device(self) -> int:
        """Index of the device, as CUDA counts."""

    def start(self, *, stacks: bool) -> None:
        """Begin with an empty record; statistics of peaks begin anew."""

    def stop(self) -> None:
        """End and forget the record."""

    def mark(self, label: str) -> object:
        """Attach a text to all following events of the calling thread."""

    def n_allocations(self) -> int:
        """Count all allocations so far; quick enough for every step."""

    def snapshot(self) -> dict[str, Any]:
        """Record and segments, as `torch.cuda.memory._snapshot` returns them."""

    def counts(self) -> AllocatorCounts:
        """Read the statistics."""

    def device_use(self) -> DeviceUse | None:
        """Ask the driver; None where it does not tell."""


class CudaHistory:
    """The real one.

    Parameters
    ----------
    device
        As CUDA counts; None: the current one.
    max_entries
        See `MAX_ENTRIES`.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    """

    def __init__(self, device: int | None = None, max_entries: int = MAX_ENTRIES) -> None:
        if not torch.cuda.is_available():
            raise NoGpuError("Tracing memory")
        self.device = torch.cuda.current_device() if device is None else device
        self._max_entries = max_entries
        # Texts of up to 15 characters are copied into an event without an allocation of their own.
        self.mark = torch._C._cuda_setMemoryMetadata  # noqa: SLF001

    def start(self, *, stacks: bool) -> None:
        """See `AllocatorHistory`."""
        if torch._C._cuda_isHistoryEnabled():  # noqa: SLF001
            raise HistoryInUseError
        torch.cuda.reset_peak_memory_stats(self.device)
        torch.cuda.memory._record_memory_history(  # noqa: SLF001
            "all",
            context="all" if stacks else None,
            stacks="python",
            max_entries=self._max_entries,
            clear_history=True,
        )

    def stop(self) -> None:
        """See `AllocatorHistory`."""
        torch.cuda.memory._record_memory_history(None)  # noqa: SLF001

    def n_allocations(self) -> int:
        """See `AllocatorHistory`."""
        # `torch.cuda.memory_stats` sorts and renames all of it, which takes five times as long.
        statistics = torch._C._cuda_memoryStats(self.device)  # noqa: SLF001
        return int(statistics["allocation"]["all"]["allocated"])

    def snapshot(self) -> dict[str, Any]:
        """See `AllocatorHistory`."""
        content: dict[str, Any] = torch.cuda.memory._snapshot()  # noqa: SLF001
        return content

    def counts(self) -> AllocatorCounts:
        """See `AllocatorHistory`."""
        statistics = torch.cuda.memory_stats(self.device)
        return AllocatorCounts(
            n_allocations=statistics["allocation.all.allocated"],
            requested_total_bytes=statistics["requested_bytes.all.allocated"],
            freed_total_bytes=statistics["requested_bytes.all.freed"],
            allocated_bytes=statistics["allocated_bytes.all.current"],
            reserved_bytes=statistics["reserved_bytes.all.current"],
            allocated_peak_bytes=statistics["allocated_bytes.all.peak"],
            reserved_peak_bytes=statistics["reserved_bytes.all.peak"],
        )

    def device_use(self) -> DeviceUse | None:
        """See `AllocatorHistory`."""
        reader = GpuReader(self.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
        try:
            facts = reader.read()
        finally:
            reader.close()
        if facts is None or facts.total_bytes is None or facts.used_bytes is None:
            return None
        reserved_bytes = torch.cuda.memory_reserved(self.device)
        return DeviceUse(facts.total_bytes, facts.used_bytes, reserved_bytes)
