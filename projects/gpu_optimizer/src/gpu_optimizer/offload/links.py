"""Copies between the memory computing happens in and the host's, beside the computing.

A *parcel* is one storage under way: sent, let go, fetched, arrived. Copies run on two streams of
their own, one per direction, and computing waits for them on the GPU, so the program never does.

Memory is taken and let go in the order of the computing stream, which has waited for the copy by
then. So nothing has to be marked as used by another stream, which would keep the allocator from
using it again until the program has asked for the copy's end: programs run far ahead of the GPU.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from gpu_optimizer.offload.host_buffers import HostBuffer, HostBuffers
from gpu_optimizer.offload.schedule import LinkSpeed

# What the host's link is planned with unless a test says otherwise: a copy there costs no device
# time.
_AT_ONCE: Final = LinkSpeed(1e15, 1e15, 0.0)
_PROBE_BYTES: Final = 256 << 20
_N_PROBES: Final = 5


@dataclass(slots=True, eq=False)
class Parcel:
    """A storage that is on its way or away."""

    n_elements: int
    dtype: torch.dtype
    device: torch.device
    host: HostBuffer | None = None
    sent: torch.cuda.Event | None = None
    """The copy out has ended."""
    fetched: torch.cuda.Event | None = None
    """The copy in has ended; None: not begun, or waited for."""

    @property
    def size_bytes(self) -> int:
        """Return how much is copied."""
        return self.n_elements * self.dtype.itemsize


@runtime_checkable
class Link(Protocol):
    """A way to the host's memory and back."""

    speed: LinkSpeed | None
    """None: copies take no time, and nor does anything else."""

    def send(self, flat: Tensor) -> Parcel | None:
        """Begin to copy a storage, seen as one row; None: the host has no room for it."""

    def let_go(self, parcel: Parcel) -> None:
        """Make computing wait until no copy is under way; the storage may be freed then."""

    def fetch(self, parcel: Parcel) -> Tensor:
        """Begin to copy back; what is returned may not be read before `arrive`."""

    def arrive(self, parcel: Parcel) -> None:
        """Make computing wait until the copy in has ended."""

    def discard(self, parcel: Parcel) -> None:
        """Nobody needs the parcel any more."""

    def clock(self) -> "Clock":
        """Return a clock for one step."""

    def memory_peak_bytes(self) -> int | None:
        """Most memory allocated since the last call; None: not known."""

    def total_bytes(self) -> int | None:
        """Return the device's memory; None: not known."""

    def allocated_ratio(self) -> float:
        """Part of the device's memory that tensors occupy now."""

    def close(self) -> None:
        """Give back what is kept for later."""


@runtime_checkable
class Clock(Protocol):
    """Marks points of the program and says when the device reached them."""

    def mark(self) -> None:
        """Mark a point."""

    def seconds(self) -> list[float]:
        """Return the times of all marks since the first; waits for the device."""


class _HostClock:
    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [mark - self._marks[0] for mark in self._marks]


class _CudaClock:
    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        self._marks.append(event)

    def seconds(self) -> list[float]:
        if self._marks:
            self._marks[-1].synchronize()
        first = self._marks[0] if self._marks else None
        return [cast("Any", first).elapsed_time(mark) / 1e3 for mark in self._marks]


class HostLink:
    """Copies within the host's memory, for models that run there.

    Parameters
    ----------
    max_host_bytes
        Bound of what is kept.
    speed
        What planning assumes.
    """

    def __init__(self, max_host_bytes: int | None = None, speed: LinkSpeed = _AT_ONCE) -> None:
        self.speed: LinkSpeed | None = speed
        self.buffers = HostBuffers(pinned=False, max_bytes=max_host_bytes)

    def send(self, flat: Tensor) -> Parcel | None:
        """Copy at once."""
        host = self.buffers.take(flat.nbytes)
        if host is None:
            return None
        host.data.view(flat.dtype).copy_(flat)
        return Parcel(flat.numel(), flat.dtype, flat.device, host)

    def let_go(self, parcel: Parcel) -> None:
        """Do nothing: the copy has ended."""

    def fetch(self, parcel: Parcel) -> Tensor:
        """Copy back at once."""
        return _host(parcel).data.view(parcel.dtype).clone()

    def arrive(self, parcel: Parcel) -> None:
        """Do nothing: the copy has ended."""

    def discard(self, parcel: Parcel) -> None:
        """Keep the buffer for the next storage of this size."""
        self.buffers.give_back(_host(parcel))

    def clock(self) -> Clock:
        """Return a clock of the host."""
        return _HostClock()

    def memory_peak_bytes(self) -> int | None:
        """Return None: PyTorch does not count the host's memory."""
        return None

    def total_bytes(self) -> int | None:
        """Return None: the host's memory is not what is short."""
        return None

    def allocated_ratio(self) -> float:
        """Return 0: the host is not short of memory for itself."""
        return 0.0

    def close(self) -> None:
        """Give buffers back to the system."""
        self.buffers.close()


class FakeLink(HostLink):
    """Copies of tensors without values: only what they take on the device comes and goes.

    Steps without values take no time that could be learned, so nothing is ever scheduled.
    """

    def __init__(self) -> None:
        super().__init__(max_host_bytes=0)
        self.speed = None

    def send(self, flat: Tensor) -> Parcel | None:
        """Take note of the size."""
        return Parcel(flat.numel(), flat.dtype, flat.device)

    def fetch(self, parcel: Parcel) -> Tensor:
        """Take memory on the device again."""
        return torch.empty(parcel.n_elements, dtype=parcel.dtype, device=parcel.device)

    def discard(self, parcel: Parcel) -> None:
        """Do nothing: there was no buffer."""


class CudaLink:
    """Copies between a GPU and page-locked memory.

    Parameters
    ----------
    device
        The GPU.
    max_host_bytes
        Bound of the page-locked memory; None: half of what is available.
    simulated_bytes_per_s
        Behave like a slower link: every copy is repeated until it has taken as long as there.
    """

    def __init__(
        self,
        device: torch.device,
        max_host_bytes: int | None = None,
        simulated_bytes_per_s: float | None = None,
    ) -> None:
        self.device = device
        self.buffers = HostBuffers(pinned=True, max_bytes=max_host_bytes)
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._in = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._out_repeats = self._in_repeats = 1.0
        self.speed: LinkSpeed | None = self._measure()
        if simulated_bytes_per_s is not None:
            limit = simulated_bytes_per_s
            self._out_repeats = max(1.0, self.speed.out_bytes_per_s / limit)
            self._in_repeats = max(1.0, self.speed.in_bytes_per_s / limit)
            self.speed = LinkSpeed(
                self.speed.out_bytes_per_s / self._out_repeats,
                self.speed.in_bytes_per_s / self._in_repeats,
            )

    def send(self, flat: Tensor) -> Parcel | None:
        """Begin to copy on the stream outwards."""
        host = self.buffers.take(flat.nbytes)
        if host is None:
            return None
        self._out.wait_stream(torch.cuda.current_stream(self.device))
        if host.free_after is not None:
            self._out.wait_event(host.free_after)
        with torch.cuda.stream(self._out):
            _copy(host.data, flat.view(torch.uint8), self._out_repeats)
        sent = self._out.record_event()  # type: ignore[no-untyped-call]
        host.free_after = sent
        return Parcel(flat.numel(), flat.dtype, flat.device, host, sent)

    def let_go(self, parcel: Parcel) -> None:
        """Let the computing stream wait for the copy out, and for one that is on its way back."""
        self.arrive(parcel)
        if parcel.sent is not None:
            torch.cuda.current_stream(self.device).wait_event(parcel.sent)

    def fetch(self, parcel: Parcel) -> Tensor:
        """Begin to copy on the stream inwards."""
        flat = torch.empty(parcel.n_elements, dtype=parcel.dtype, device=self.device)
        # What the memory was used for before has to be over, and the copy out, too.
        self._in.wait_stream(torch.cuda.current_stream(self.device))
        if parcel.sent is not None:
            self._in.wait_event(parcel.sent)
        host = _host(parcel)
        with torch.cuda.stream(self._in):
            _copy(flat.view(torch.uint8), host.data, self._in_repeats)
        parcel.fetched = self._in.record_event()  # type: ignore[no-untyped-call]
        host.free_after = parcel.fetched
        return flat

    def arrive(self, parcel: Parcel) -> None:
        """Let the computing stream wait for the copy in."""
        if parcel.fetched is not None:
            torch.cuda.current_stream(self.device).wait_event(parcel.fetched)
            parcel.fetched = None

    def discard(self, parcel: Parcel) -> None:
        """Keep the buffer; memory that is still being copied is not used again before."""
        self.let_go(parcel)
        self.buffers.give_back(_host(parcel))

    def clock(self) -> Clock:
        """Return a clock of the computing stream."""
        return _CudaClock()

    def memory_peak_bytes(self) -> int | None:
        """Return the allocated peak and begin a new one."""
        peak: int = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def total_bytes(self) -> int | None:
        """Return what this process may take of the GPU's memory."""
        fraction: float = torch.cuda.get_per_process_memory_fraction(self.device)
        return int(torch.cuda.get_device_properties(self.device).total_memory * fraction)

    def allocated_ratio(self) -> float:
        """Return the part of that memory that tensors occupy."""
        return float(torch.cuda.memory_allocated(self.device) / (self.total_bytes() or 1))

    def close(self) -> None:
        """Give page-locked memory back."""
        self.buffers.close()

    def _measure(self) -> LinkSpeed:
        """Copy both ways, a few times each; the medians count."""
        size_bytes = min(_PROBE_BYTES, self.buffers.max_bytes)
        host = self.buffers.take(size_bytes)
        if host is None or not size_bytes:
            return LinkSpeed(1.0, 1.0)
        on_gpu = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        out_s = _time_copy(self._out, host.data, on_gpu)
        in_s = _time_copy(self._in, on_gpu, host.data)
        self.buffers.give_back(host)
        self.buffers.close()
        return LinkSpeed(size_bytes / out_s, size_bytes / in_s)


def link_of(tensor: Tensor, max_host_bytes: int | None = None) -> Link:
    """Return the link of the device a tensor is on.

    Parameters
    ----------
    tensor
        On a GPU, on the host, or without values.
    max_host_bytes
        Bound of the host's memory that is taken; None: half of what is available.
    """
    if isinstance(tensor, FakeTensor):
        return FakeLink()
    if tensor.is_cuda:
        return CudaLink(tensor.device, max_host_bytes)
    return HostLink(max_host_bytes)


def _host(parcel: Parcel) -> HostBuffer:
    if parcel.host is None:
        raise ValueError("this parcel has no copy on the host")
    return parcel.host


def _copy(target: Tensor, source: Tensor, repeats: float) -> None:
    target.copy_(source, non_blocking=True)
    for _ in range(int(repeats) - 1):
        target.copy_(source, non_blocking=True)
    rest = int(len(target) * (repeats - int(repeats)))
    if rest:
        target[:rest].copy_(source[:rest], non_blocking=True)


def _time_copy(stream: torch.cuda.Stream, target: Tensor, source: Tensor) -> float:
    times_s = []
    torch.cuda.synchronize(target.device if target.is_cuda else source.device)
    with torch.cuda.stream(stream):
        for _ in range(_N_PROBES):
            began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            began.record(stream)  # type: ignore[no-untyped-call]
            _copy(target, source, 1.0)
            ended.record(stream)  # type: ignore[no-untyped-call]
            ended.synchronize()
            times_s.append(float(began.elapsed_time(ended)) / 1e3)  # type: ignore[no-untyped-call]
    return statistics.median(times_s)
