"""What PyTorch's caching allocator would have reserved, from the requests alone.

`replay` sends a timeline through `CachingAllocator` and keeps account. Nothing of it needs a GPU.

Not simulated: CUDA graph capture, memory shared between processes, other allocator backends,
addresses as the driver chooses them (here every segment lies above all earlier ones, which decides
only between free blocks of the same size).
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Int64

from gpu_optimizer.allocator.blocks import Block
from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator.segments import BlockState, Owner, Pool, Segment, SegmentBlock
from gpu_optimizer.allocator.simulator import CachingAllocator
from gpu_optimizer.types import CATEGORIES, PHASES, MemoryTimeline


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What else happens while the timeline runs."""

    empty_cache_before: tuple[int, ...] = ()
    """Events before which `torch.cuda.empty_cache()` is called."""
    private_pool_of_stream: Mapping[int, int] = field(default_factory=dict)
    """Numbers, from 1, of the private pools that streams allocate from; the others: the common."""
    snapshot_after: int | None = None
    """Event after which `ReplayResult.segments` is taken; None: the last."""


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The request that the device could not serve."""

    event: int
    """Index in the timeline."""
    requested_bytes: int
    stream: int
    allocated_bytes: int
    reserved_bytes: int
    live: tuple[SegmentBlock, ...]
    """All blocks in use, the largest first."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayResult:
    """What the allocator held at each event, and at the end."""

    allocated_bytes: Int64[np.ndarray, "replayed"]
    """After each event; blocks as rounded. Shorter than the timeline if memory ran out."""
    reserved_bytes: Int64[np.ndarray, "replayed"]
    requested_bytes: Int64[np.ndarray, "replayed"]
    """Before rounding."""
    segments: tuple[Segment, ...]
    """By address."""
    n_cuda_mallocs: int
    """Calls of cudaMalloc, or of the mapping of pages, as `num_device_alloc` counts them."""
    n_cuda_frees: int
    n_retries: int
    """How often all free segments had to be given back to serve a request."""
    out_of_memory: OutOfMemory | None = None

    @property
    def allocated_peak_bytes(self) -> int:
        """Most that was allocated at any time."""
        return int(self.allocated_bytes.max(initial=0))

    @property
    def reserved_peak_bytes(self) -> int:
        """Most that was reserved at any time."""
        return int(self.reserved_bytes.max(initial=0))

    @property
    def allocated_peak_event(self) -> int:
        """First event at which the allocated peak was reached; -1: no events."""
        return int(np.argmax(self.allocated_bytes)) if len(self.allocated_bytes) else -1

    @property
    def reserved_peak_event(self) -> int:
        """First event at which the reserved peak was reached; -1: no events."""
        return int(np.argmax(self.reserved_bytes)) if len(self.reserved_bytes) else -1

    @property
    def waste_at_peak_ratio(self) -> float:
        """Part of the reserved memory that was not allocated when the reserved peak was reached."""
        event = self.reserved_peak_event
        if event < 0 or self.reserved_bytes[event] == 0:
            return 0.0
        return float(1.0 - self.allocated_bytes[event] / self.reserved_bytes[event])

    @property
    def waste_mean_ratio(self) -> float:
        """The same averaged over all events, weighted by what was reserved.

        An allocator without any fragmentation has it too: it keeps what the peak needed.
        """
        total = int(self.reserved_bytes.sum())
        return 1.0 - int(self.allocated_bytes.sum()) / total if total else 0.0

    @property
    def excess_ratio(self) -> float:
        """Part of the reserved peak that the allocated peak would not have needed.

        The waste of the whole run: unlike `waste_at_peak_ratio` it does not depend on the moment.
        """
        reserved = self.reserved_peak_bytes
        return 1.0 - self.allocated_peak_bytes / reserved if reserved else 0.0


_FREE: Final = -1


def replay(
    timeline: MemoryTimeline,
    config: AllocatorConfig | None = None,
    options: ReplayOptions | None = None,
) -> ReplayResult:
    """Send a timeline through a simulated allocator that starts empty.

    Parameters
    ----------
    timeline
        Its frees are taken as the moment from which the memory may be used again, whatever streams
        used it.
    config
        None: PyTorch's defaults, a device without end.
    options
        None: nothing else happens.

    Returns
    -------
    ReplayResult
        Ends with the event that ran out of memory, if there is one, without counting it.

    Raises
    ------
    ValueError
        A block is freed that is not allocated, or allocated twice.
    """
    return _Replay(timeline, config or AllocatorConfig(), options or ReplayOptions()).run()


class _Replay:
    """One run of `replay`."""

    def __init__(
        self, timeline: MemoryTimeline, config: AllocatorConfig, options: ReplayOptions
    ) -> None:
        self._timeline = timeline
        self._options = options
        self._allocator = CachingAllocator(config)
        self._live: dict[int, Block] = {}
        self._allocated = array("q")
        self._reserved = array("q")
        self._requested = array("q")

    def run(self) -> ReplayResult:
        timeline = self._timeline
        last = len(timeline) - 1
        snapshot_after = self._options.snapshot_after
        cut = last if snapshot_after is None else min(snapshot_after, last)
        failed = self._run_events(0, cut + 1)
        segments = describe_segments(self._allocator, self._owners())
        if failed is None:
            failed = self._run_events(cut + 1, last + 1)
        allocator = self._allocator
        return ReplayResult(
            allocated_bytes=np.array(self._allocated, dtype=np.int64),
            reserved_bytes=np.array(self._reserved, dtype=np.int64),
            requested_bytes=np.array(self._requested, dtype=np.int64),
            segments=segments,
            n_cuda_mallocs=allocator.n_device_allocs,
            n_cuda_frees=allocator.n_device_frees,
            n_retries=allocator.n_retries,
            out_of_memory=None if failed is None else self._explain(failed),
        )

    def _run_events(self, start: int, stop: int) -> int | None:
        """Run some events; return the one that ran out of memory, None if none did."""
        timeline, allocator, live = self._timeline, self._allocator, self._live
        pool_of_stream = self._options.private_pool_of_stream
        marks = sorted(mark for mark in self._options.empty_cache_before if start <= mark < stop)
        marks.reverse()
        requested_bytes = self._requested[-1] if self._requested else 0
        rows = zip(
            range(start, stop),
            timeline.size_bytes[start:stop].tolist(),
            timeline.block[start:stop].tolist(),
            timeline.stream[start:stop].tolist(),
            strict=True,
        )
        for event, size_bytes, number, stream in rows:
            while marks and marks[-1] == event:
                allocator.empty_cache()
                marks.pop()
            if size_bytes == 0:
                pass  # PyTorch hands out no block for an empty tensor.
            elif size_bytes < 0:
                block = live.pop(number, None)
                if block is None:
                    raise ValueError(f"Event {event} frees block {number}, which is not allocated.")
                allocator.free(block)
            else:
                block = allocator.malloc(size_bytes, stream, pool_of_stream.get(stream, 0))
                if block is None:
                    return event
                if number in live:
                    raise ValueError(f"Event {event} allocates block {number} a second time.")
                live[number] = block
            requested_bytes += size_bytes
            self._allocated.append(allocator.allocated_bytes)
            self._reserved.append(allocator.reserved_bytes)
            self._requested.append(requested_bytes)
        return None

    def _owners(self) -> dict[int, tuple[int, Owner]]:
        addresses = {number: block.address for number, block in self._live.items()}
        return live_owners(self._timeline, addresses)

    def _explain(self, event: int) -> OutOfMemory:
        owners = self._owners()
        live = [_describe(block, owners) for block in self._live.values()]
        live.sort(key=lambda block: -block.size_bytes)
        return OutOfMemory(
            event=event,
            requested_bytes=int(self._timeline.size_bytes[event]),
            stream=int(self._timeline.stream[event]),
            allocated_bytes=self._allocator.allocated_bytes,
            reserved_bytes=self._allocator.reserved_bytes,
            live=tuple(live),
        )


def describe_segments(
    allocator: CachingAllocator, owners: Mapping[int, tuple[int, Owner]]
) -> tuple[Segment, ...]:
    """Return what an allocator holds.

    Parameters
    ----------
    allocator
        Any time between two events.
    owners
        Number in the timeline and owner of live blocks, by address.
    """
    segments = []
    for head in allocator.segment_heads():
        blocks: list[SegmentBlock] = []
        block: Block | None = head
        while block is not None and block.is_mapped:
            blocks.append(_describe(block, owners))
            block = block.next
        segments.append(
            Segment(
                address=head.address,
                size_bytes=sum(each.size_bytes for each in blocks),
                stream=head.stream,
                pool=Pool.SMALL if head.pool.is_small else Pool.LARGE,
                is_expandable=head.expandable is not None,
                private_pool=head.pool.private_pool,
                blocks=tuple(blocks),
            )
        )
    return tuple(segments)


def live_owners(
    timeline: MemoryTimeline, addresses: Mapping[int, int]
) -> dict[int, tuple[int, Owner]]:
    """Return number and owner of live blocks by address, given their addresses by number."""
    is_live = (timeline.size_bytes > 0) & np.isin(timeline.block, [*addresses])
    owners = {}
    for row in np.flatnonzero(is_live).tolist():
        number = int(timeline.block[row])
        owner = Owner(
            module=timeline.modules[int(timeline.module[row])],
            phase=PHASES[int(timeline.phase[row])],
            category=CATEGORIES[int(timeline.category[row])],
        )
        owners[addresses[number]] = (number, owner)
    return owners


def _describe(block: Block, owners: Mapping[int, tuple[int, Owner]]) -> SegmentBlock:
    if not block.is_allocated:
        return SegmentBlock(block.address, block.size_bytes, 0, BlockState.FREE)
    number, owner = owners.get(block.address, (_FREE, None))
    return SegmentBlock(
        address=block.address,
        size_bytes=block.size_bytes,
        requested_bytes=block.requested_bytes,
        state=BlockState.ALLOCATED,
        owner=owner,
        number=number,
    )
