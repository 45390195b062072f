"""The simulated allocator against hand-computed cases, a naive twin, and what must always hold."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_optimizer.allocator.config import AllocatorConfig, InvalidAllocatorSettingError
from gpu_optimizer.allocator.segments import BlockState, Pool
from gpu_optimizer.allocator_replay import ReplayOptions, ReplayResult, replay

from .timelines import MIB, Run, allocations, runs, timeline

CONFIGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "max_split_size_mb:32,max_non_split_rounding_mb:24",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:0,4:8,>:2],expandable_segments:True",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9",
    "large_segment_size_mb:40",
)
configs = st.sampled_from([AllocatorConfig.parse(text, device_bytes=400 * MIB) for text in CONFIGS])


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (3 * MIB // 2, 3 * MIB // 2, 20 * MIB),
        # Within 1 MiB of the segment nothing is split off: the block is the whole of it.
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_single_allocation(size: int, allocated: int, reserved: int) -> None:
    result = replay(allocations(size))
    assert (result.allocated_peak_bytes, result.reserved_peak_bytes) == (allocated, reserved)


def test_remainder_of_exactly_one_mib_stays_with_the_block() -> None:
    # 21 MiB asks for a 22 MiB segment: 1 MiB is left, and only more than that is split off.
    assert replay(allocations(21 * MIB)).allocated_peak_bytes == 22 * MIB
    larger = replay(allocations(21 * MIB - 512))
    assert larger.allocated_peak_bytes == 21 * MIB - 512


@pytest.mark.parametrize(
    ("size", "reserved"), [(1, 2 * MIB), (3 * MIB // 2, 20 * MIB), (21 * MIB, 40 * MIB)]
)
def test_expandable_segments_map_whole_pages(size: int, reserved: int) -> None:
    result = replay(allocations(size), AllocatorConfig(expandable_segments=True))
    assert result.reserved_peak_bytes == reserved
    assert result.allocated_peak_bytes == AllocatorConfig().round_size(size)


def test_small_blocks_share_a_segment() -> None:
    result = replay(allocations(*[MIB // 2] * 5))
    assert result.reserved_bytes.tolist() == [2 * MIB] * 4 + [4 * MIB]
    assert result.n_cuda_mallocs == 2


def test_best_fit_takes_the_smallest_block_that_is_large_enough() -> None:
    sizes = [40 * MIB, 24 * MIB, 32 * MIB]
    events = list(enumerate(sizes)) + [(i, -size) for i, size in enumerate(sizes)]
    result = replay(timeline([*events, (3, 24 * MIB), (4, 26 * MIB)]))
    taken = {
        block.number: segment.size_bytes
        for segment in result.segments
        for block in segment.blocks
        if block.state == BlockState.ALLOCATED
    }
    assert taken == {3: 24 * MIB, 4: 32 * MIB}


def test_neighbours_merge_when_freed() -> None:
    events = [(0, 6 * MIB), (1, 6 * MIB), (2, 6 * MIB), (0, -6 * MIB), (2, -6 * MIB)]
    result = replay(timeline([*events, (1, -6 * MIB), (3, 18 * MIB)]))
    assert result.reserved_peak_bytes == 20 * MIB
    (segment,) = result.segments
    assert [block.size_bytes for block in segment.blocks] == [18 * MIB, 2 * MIB]


def test_streams_do_not_share_memory() -> None:
    events = [(0, 24 * MIB), (0, -24 * MIB), (1, 24 * MIB)]
    assert replay(timeline(events)).reserved_peak_bytes == 24 * MIB
    apart = replay(timeline(events, [0, 0, 7]))
    assert apart.reserved_peak_bytes == 48 * MIB


def test_private_pool_keeps_its_memory_to_itself() -> None:
    run = timeline([(0, 24 * MIB), (0, -24 * MIB), (1, 24 * MIB), (1, -24 * MIB)], [0, 0, 1, 1])
    options = ReplayOptions(private_pool_of_stream={1: 5}, empty_cache_before=(3,))
    result = replay(run, options=options)
    assert [(s.private_pool, s.size_bytes) for s in result.segments] == [(5, 24 * MIB)]


def test_oversize_blocks_are_neither_split_nor_given_to_small_requests() -> None:
    run = timeline([(0, 100 * MIB), (0, -100 * MIB), (1, 30 * MIB)])
    assert replay(run).reserved_peak_bytes == 100 * MIB
    limited = replay(run, AllocatorConfig.parse("max_split_size_mb:64"))
    assert limited.reserved_peak_bytes == 130 * MIB
    # An oversize request takes an oversize block that is less than 20 MiB larger, unsplit.
    near = timeline([(0, 100 * MIB), (0, -100 * MIB), (1, 82 * MIB)])
    result = replay(near, AllocatorConfig.parse("max_split_size_mb:64"))
    assert (result.reserved_peak_bytes, int(result.allocated_bytes[-1])) == (100 * MIB, 100 * MIB)


def test_free_segments_are_given_back_before_memory_runs_out() -> None:
    run = timeline([(0, 60 * MIB), (0, -60 * MIB), (1, 80 * MIB)])
    result = replay(run, AllocatorConfig(device_bytes=100 * MIB))
    assert result.out_of_memory is None
    assert result.reserved_bytes.tolist() == [60 * MIB, 60 * MIB, 80 * MIB]
    assert (result.n_retries, result.n_cuda_frees) == (1, 1)


def test_out_of_memory_is_a_value() -> None:
    run = timeline([(0, 60 * MIB), (1, 4 * MIB), (2, 50 * MIB), (3, MIB)])
    result = replay(run, AllocatorConfig(device_bytes=100 * MIB))
    failed = result.out_of_memory
    assert failed is not None
    assert (failed.event, failed.requested_bytes) == (2, 50 * MIB)
    assert [block.number for block in failed.live] == [0, 1]
    assert len(result.reserved_bytes) == 2


def test_expandable_segment_serves_what_fragments_cannot() -> None:
    # Three blocks of 20 MiB, the outer ones freed: 40 MiB free, but not in one piece.
    run = timeline(
        [(0, 20 * MIB), (1, 20 * MIB), (2, 20 * MIB), (0, -20 * MIB), (2, -20 * MIB), (3, 40 * MIB)]
    )
    device_bytes = 80 * MIB
    fixed = replay(run, AllocatorConfig(device_bytes=device_bytes))
    grown = replay(run, AllocatorConfig(expandable_segments=True, device_bytes=device_bytes))
    assert fixed.reserved_bytes[-1] == 60 * MIB
    assert fixed.n_retries == 1
    assert (grown.reserved_peak_bytes, grown.n_retries) == (80 * MIB, 0)


def test_empty_cache_unmaps_the_free_pages_of_an_expandable_segment() -> None:
    run = timeline([(0, 30 * MIB), (1, 30 * MIB), (0, -30 * MIB), (2, 512)])
    config = AllocatorConfig(expandable_segments=True)
    result = replay(run, config, ReplayOptions(empty_cache_before=(3,)))
    # 60 MiB mapped; of the free 30 MiB the first page of 20 MiB lies wholly within; then 2 MiB.
    assert result.reserved_bytes.tolist() == [40 * MIB, 60 * MIB, 60 * MIB, 42 * MIB]
    large = [segment for segment in result.segments if segment.pool == Pool.LARGE]
    assert [segment.size_bytes for segment in large] == [40 * MIB]


def test_garbage_collection_gives_back_the_segments_passed_over_longest() -> None:
    config = AllocatorConfig.parse(
        "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9", device_bytes=200 * MIB
    )
    sizes = [(0, 30 * MIB), (0, -30 * MIB)]
    sizes += [row for i in range(1, 5) for row in ((i, 40 * MIB), (i, -40 * MIB))]
    run = timeline([*sizes, (9, 60 * MIB), (10, 80 * MIB)])
    assert replay(run, AllocatorConfig()).reserved_peak_bytes == 210 * MIB
    result = replay(run, config)
    # 130 MiB are more than the 90 MiB allowed by then: the 30 MiB segment, idle longest, goes.
    assert result.out_of_memory is None
    assert result.reserved_peak_bytes < 180 * MIB
    assert result.n_cuda_frees > 0


@pytest.mark.parametrize(
    ("setting", "size", "rounded"),
    [
        ("roundup_power2_divisions:4", 1200, 1536),
        ("roundup_power2_divisions:4", 10 * MIB, 10 * MIB),
        ("roundup_power2_divisions:4", 10 * MIB + 1, 12 * MIB),
        ("roundup_power2_divisions:1", 10 * MIB + 1, 10 * MIB + 512),
        ("roundup_power2_divisions:[64:8,256:4,>:1]", 9 * MIB + 1, 10 * MIB),
        ("roundup_power2_divisions:[64:8,256:4,>:1]", 130 * MIB, 130 * MIB),
        ("roundup_power2_divisions:[64:8,256:4,>:1]", 300 * MIB, 320 * MIB),
        ("roundup_power2_divisions:[64:8,256:4,>:1]", 700 * MIB + 1, 700 * MIB + 512),
    ],
)
def test_rounding_to_divisions(setting: str, size: int, rounded: int) -> None:
    assert AllocatorConfig.parse(setting).round_size(size) == rounded


@pytest.mark.parametrize("text", CONFIGS)
def test_settings_survive_being_written(text: str) -> None:
    config = AllocatorConfig.parse(text)
    assert AllocatorConfig.parse(config.as_setting()) == config


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:19",
        "max_split_size_mb:x",
        "garbage_collection_threshold:1.0",
        "garbage_collection_threshold:nan",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:[64:8",
        "expandable_segments:true",
        "backend:cudaMallocAsync",
        "max_split_mb:64",
        "expandable_segments",
    ],
)
def test_what_pytorch_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidAllocatorSettingError):
        AllocatorConfig.parse(text)


@settings(deadline=None, max_examples=60)
@given(runs(), configs)
def test_account_is_kept(run: Run, config: AllocatorConfig) -> None:
    result = replay(run.timeline(), config)
    assert (result.requested_bytes <= result.allocated_bytes).all()
    assert (result.allocated_bytes <= result.reserved_bytes).all()
    if result.out_of_memory is None:
        final = result.reserved_bytes[-1:].sum()
        assert sum(segment.size_bytes for segment in result.segments) == final
        assert_consistent(result)


def assert_consistent(result: ReplayResult) -> None:
    end = 0
    live_bytes = 0
    for segment in result.segments:
        assert segment.address >= end
        position = segment.address
        for before, after in zip(segment.blocks, segment.blocks[1:], strict=False):
            assert BlockState.ALLOCATED in {before.state, after.state}, "free neighbours not merged"
        for block in segment.blocks:
            assert block.address == position
            position += block.size_bytes
            if block.state == BlockState.ALLOCATED:
                live_bytes += block.size_bytes
                assert block.number >= 0
        end = segment.address + segment.size_bytes
        assert position == end
    assert live_bytes == result.allocated_bytes[-1:].sum()


@settings(deadline=None, max_examples=60)
@given(runs(), configs)
def test_everything_freed_and_the_cache_emptied_leaves_nothing(
    run: Run, config: AllocatorConfig
) -> None:
    freed = run.then_all_freed()
    ended = timeline([*freed.rows, (10_000, 1)], [*freed.streams, 0])
    result = replay(ended, config, ReplayOptions(empty_cache_before=(len(freed.rows),)))
    if result.out_of_memory is None:
        assert int(result.reserved_bytes[-1]) == 2 * MIB


@settings(deadline=None, max_examples=60)
@given(runs(n_streams=3), configs, st.permutations([0, 1, 2]))
def test_names_of_streams_and_blocks_do_not_matter(
    run: Run, config: AllocatorConfig, order: list[int]
) -> None:
    # Under pressure streams matter through the order in which their memory is given back.
    config = AllocatorConfig.parse(config.as_setting())
    renamed = timeline(
        [(block * 3 + 17, size) for block, size in run.rows],
        [order[stream] for stream in run.streams],
    )
    one, other = replay(run.timeline(), config), replay(renamed, config)
    np.testing.assert_array_equal(one.reserved_bytes, other.reserved_bytes)
    np.testing.assert_array_equal(one.allocated_bytes, other.allocated_bytes)


@settings(deadline=None, max_examples=60)
@given(runs())
def test_a_run_and_its_parts_reserve_alike(run: Run) -> None:
    whole = replay(run.timeline())
    for cut in range(0, len(run.rows), 25):
        part = replay(run.timeline(), options=ReplayOptions(snapshot_after=cut))
        reserved = sum(segment.size_bytes for segment in part.segments)
        assert reserved == int(whole.reserved_bytes[cut])
        np.testing.assert_array_equal(part.reserved_bytes, whole.reserved_bytes)


@dataclass
class Piece:
    """A block of the naive twin."""

    start: int
    size: int
    segment: int
    stream: int
    is_small: bool
    owner: int | None = None


def naive_reserved(run: Run) -> list[int]:
    """The default allocator written as plainly as possible: one list of all pieces."""
    pieces: list[Piece] = []
    reserved: list[int] = []
    total = 0
    n_segments = 0
    for (number, size), stream in zip(run.rows, run.streams, strict=True):
        if size < 0:
            (piece,) = [p for p in pieces if p.owner == number]
            piece.owner = None
            for other in [p for p in pieces if p.segment == piece.segment and p.owner is None]:
                if other.start + other.size == piece.start:
                    piece.start, piece.size = other.start, piece.size + other.size
                    pieces.remove(other)
                elif piece.start + piece.size == other.start:
                    piece.size += other.size
                    pieces.remove(other)
        else:
            wanted = max(512, -(-size // 512) * 512)
            is_small = wanted <= MIB
            fitting = [
                p
                for p in pieces
                if p.owner is None
                and p.size >= wanted
                and (p.stream, p.is_small) == (stream, is_small)
            ]
            if fitting:
                piece = min(fitting, key=lambda p: (p.size, p.segment, p.start))
            else:
                if is_small:
                    taken = 2 * MIB
                elif wanted < 10 * MIB:
                    taken = 20 * MIB
                else:
                    taken = -(-wanted // (2 * MIB)) * 2 * MIB
                piece = Piece(0, taken, n_segments, stream, is_small)
                pieces.append(piece)
                n_segments += 1
                total += taken
            rest = piece.size - wanted
            if rest >= 512 if is_small else rest > MIB:
                pieces.append(Piece(piece.start + wanted, rest, piece.segment, stream, is_small))
                piece.size = wanted
            piece.owner = number
        reserved.append(total)
    return reserved


@settings(deadline=None, max_examples=60)
@given(runs())
def test_agrees_with_the_naive_twin(run: Run) -> None:
    assert replay(run.timeline()).reserved_bytes.tolist() == naive_reserved(run)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="not allocated"):
        replay(timeline([(0, -512)]))
    with pytest.raises(ValueError, match="second time"):
        replay(timeline([(0, 512), (0, 512)]))


def test_empty_tensors_take_nothing() -> None:
    result = replay(timeline([(0, 0), (0, 0)]))
    assert result.reserved_peak_bytes == 0
    assert result.segments == ()


def test_nothing_happened() -> None:
    result = replay(timeline([]))
    assert (result.reserved_peak_bytes, result.reserved_peak_event) == (0, -1)
    assert (result.waste_at_peak_ratio, result.waste_mean_ratio, result.excess_ratio) == (0, 0, 0)
