"""How fragmented the allocator's memory is, where, and who keeps it so.

Works on segments, whether they come from a snapshot of a GPU or from a replay.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gpu_optimizer.allocator.segments import BlockState, Pool, Segment, SegmentBlock
from gpu_optimizer.types import Category

SPARSE_BELOW_RATIO: Final = 0.25
"""A segment used less than this counts as nearly empty."""

_WORTH_RATIO: Final = 0.01
"""Of the reserved memory; smaller gains are not recommended."""

_LASTING: Final = frozenset({Category.PARAMETER, Category.OPTIMIZER_STATE, Category.GRADIENT})


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Segments that serve the same requests: only among them free blocks can be reused."""

    pool: Pool
    private_pool: int
    stream: int
    n_segments: int
    reserved_bytes: int
    allocated_bytes: int
    pending_bytes: int
    largest_free_bytes: int
    idle_bytes: int
    """Of segments without any live block: what `empty_cache` would give back."""

    @property
    def free_bytes(self) -> int:
        """Reserved, and neither allocated nor pending."""
        return self.reserved_bytes - self.allocated_bytes - self.pending_bytes


@dataclass(frozen=True, slots=True)
class SparseSegment:
    """A nearly empty segment, and what keeps it from being given back."""

    segment: Segment
    used_ratio: float
    pinned_by: tuple[SegmentBlock, ...]
    """Its live blocks, the largest first."""

    @property
    def free_bytes(self) -> int:
        """What could be given back if the live blocks lay elsewhere."""
        return sum(b.size_bytes for b in self.segment.blocks if b.state == BlockState.FREE)


class Measure(StrEnum):
    """Something that lowers fragmentation."""

    EMPTY_CACHE = "empty_cache"
    EXPANDABLE_SEGMENTS = "expandable_segments"
    ALLOCATE_LASTING_FIRST = "allocate_lasting_first"
    SHARE_STREAM = "share_stream"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and at most how many bytes that gives back."""

    measure: Measure
    gain_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """State of all segments at one moment."""

    reserved_bytes: int
    allocated_bytes: int
    requested_bytes: int
    """Of allocated blocks, before rounding."""
    pending_bytes: int
    """Freed, but not yet to be reused: another stream may still be using them."""
    largest_free_bytes: int
    pools: tuple[PoolUse, ...]
    """By what is free in them, most first."""
    sparse: tuple[SparseSegment, ...]
    """By what is free in them, most first; segments without live blocks are not among them."""
    recommendations: tuple[Recommendation, ...]
    """By gain, largest first. Gains overlap: they do not add up."""

    @property
    def free_bytes(self) -> int:
        """Reserved, and neither allocated nor pending."""
        return self.reserved_bytes - self.allocated_bytes - self.pending_bytes

    @property
    def waste_ratio(self) -> float:
        """Part of the reserved memory that is not allocated."""
        return 1.0 - self.allocated_bytes / self.reserved_bytes if self.reserved_bytes else 0.0

    @property
    def scatter_ratio(self) -> float:
        """Part of the free memory that is outside of the largest free block."""
        return 1.0 - self.largest_free_bytes / self.free_bytes if self.free_bytes else 0.0


def analyze(
    segments: Iterable[Segment], sparse_below_ratio: float = SPARSE_BELOW_RATIO
) -> Fragmentation:
    """Say how fragmented segments are.

    Parameters
    ----------
    segments
        All that the allocator holds, from `read_snapshot` or `replay`.
    sparse_below_ratio
        Used part of a segment below which it counts as nearly empty.
    """
    held = tuple(segments)
    pools = _pools(held)
    sparse = _sparse(held, sparse_below_ratio)
    blocks = [block for segment in held for block in segment.blocks]
    return Fragmentation(
        reserved_bytes=sum(segment.size_bytes for segment in held),
        allocated_bytes=_state_bytes(blocks, BlockState.ALLOCATED),
        requested_bytes=sum(
            block.requested_bytes for block in blocks if block.state == BlockState.ALLOCATED
        ),
        pending_bytes=_state_bytes(blocks, BlockState.PENDING),
        largest_free_bytes=max((pool.largest_free_bytes for pool in pools), default=0),
        pools=pools,
        sparse=sparse,
        recommendations=_recommend(held, pools, sparse),
    )


def _state_bytes(blocks: Iterable[SegmentBlock], state: BlockState) -> int:
    return sum(block.size_bytes for block in blocks if block.state == state)


def _is_idle(segment: Segment) -> bool:
    return all(block.state == BlockState.FREE for block in segment.blocks)


def _pools(segments: tuple[Segment, ...]) -> tuple[PoolUse, ...]:
    groups: defaultdict[tuple[Pool, int, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        groups[segment.pool, segment.private_pool, segment.stream].append(segment)
    uses = []
    for (pool, private_pool, stream), members in groups.items():
        blocks = [block for segment in members for block in segment.blocks]
        free = [block.size_bytes for block in blocks if block.state == BlockState.FREE]
        uses.append(
            PoolUse(
                pool=pool,
                private_pool=private_pool,
                stream=stream,
                n_segments=len(members),
                reserved_bytes=sum(segment.size_bytes for segment in members),
                allocated_bytes=_state_bytes(blocks, BlockState.ALLOCATED),
                pending_bytes=_state_bytes(blocks, BlockState.PENDING),
                largest_free_bytes=max(free, default=0),
                idle_bytes=sum(s.size_bytes for s in members if _is_idle(s)),
            )
        )
    return tuple(sorted(uses, key=lambda use: -use.free_bytes))


def _sparse(segments: tuple[Segment, ...], below_ratio: float) -> tuple[SparseSegment, ...]:
    found = []
    for segment in segments:
        live = [block for block in segment.blocks if block.state != BlockState.FREE]
        used_ratio = sum(block.size_bytes for block in live) / segment.size_bytes
        if live and used_ratio < below_ratio:
            live.sort(key=lambda block: -block.size_bytes)
            found.append(SparseSegment(segment, used_ratio, tuple(live)))
    return tuple(sorted(found, key=lambda sparse: -sparse.free_bytes))


def _recommend(
    segments: tuple[Segment, ...], pools: tuple[PoolUse, ...], sparse: tuple[SparseSegment, ...]
) -> tuple[Recommendation, ...]:
    candidates = (
        _recommend_empty_cache(pools),
        _recommend_expandable(segments),
        _recommend_order(sparse),
        _recommend_stream(pools),
    )
    least_bytes = _WORTH_RATIO * sum(segment.size_bytes for segment in segments)
    worth = [each for each in candidates if each.gain_bytes > least_bytes]
    return tuple(sorted(worth, key=lambda each: -each.gain_bytes))


def _recommend_empty_cache(pools: tuple[PoolUse, ...]) -> Recommendation:
    return Recommendation(
        Measure.EMPTY_CACHE,
        sum(pool.idle_bytes for pool in pools),
        "Whole segments are idle; empty_cache() gives them back at the price of taking them again.",
    )


def _recommend_expandable(segments: tuple[Segment, ...]) -> Recommendation:
    """What lies between live blocks of fixed segments: no larger request can ever use it."""
    stuck = [
        block.size_bytes
        for segment in segments
        if segment.pool == Pool.LARGE and not segment.is_expandable and not _is_idle(segment)
        for block in segment.blocks
        if block.state == BlockState.FREE
    ]
    return Recommendation(
        Measure.EXPANDABLE_SEGMENTS,
        sum(stuck),
        f"{len(stuck)} free pieces lie between live blocks of fixed segments; with "
        "expandable_segments:True new blocks grow into one range of addresses instead.",
    )


def _recommend_order(sparse: tuple[SparseSegment, ...]) -> Recommendation:
    pinned = [
        each
        for each in sparse
        if all(b.owner is not None and b.owner.category in _LASTING for b in each.pinned_by)
    ]
    return Recommendation(
        Measure.ALLOCATE_LASTING_FIRST,
        sum(each.free_bytes for each in pinned),
        f"{len(pinned)} nearly empty segments are held by parameters, gradients or optimizer "
        "states alone; allocated before the first forward pass these would lie together.",
    )


def _recommend_stream(pools: tuple[PoolUse, ...]) -> Recommendation:
    """Free memory of streams other than the one that has most."""
    free: defaultdict[int, int] = defaultdict(int)
    for pool in pools:
        free[pool.stream] += pool.free_bytes
    gain = sum(free.values()) - max(free.values(), default=0)
    return Recommendation(
        Measure.SHARE_STREAM,
        gain,
        f"{len(free)} streams keep free memory that the others cannot use; work that never "
        "overlaps can share one stream.",
    )
