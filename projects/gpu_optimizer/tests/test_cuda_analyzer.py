"""What is said about segments: sums, who pins what, the picture."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator.segments import BlockState, Owner, Pool, Segment, SegmentBlock
from gpu_optimizer.allocator_replay import ReplayOptions, replay
from gpu_optimizer.cuda_analyzer import Measure, analyze
from gpu_optimizer.reports.segment_map import draw_segment_map
from gpu_optimizer.types import Category, Phase

from .timelines import MIB, Run, labelled, runs, timeline


def segment(*parts: tuple[int, Owner | None], address: int = 1 << 40, stream: int = 0) -> Segment:
    """Blocks side by side: size and owner, None for a free one."""
    blocks = []
    position = address
    for number, (size, owner) in enumerate(parts):
        state = BlockState.FREE if owner is None else BlockState.ALLOCATED
        requested = 0 if owner is None else size
        blocks.append(SegmentBlock(position, size, requested, state, owner, number))
        position += size
    return Segment(
        address, position - address, stream, Pool.LARGE, is_expandable=False, private_pool=0,
        blocks=tuple(blocks),
    )  # fmt: skip


ACTIVATION = Owner("layers.0", Phase.FORWARD, Category.ACTIVATION)
STATE = Owner("layers.1", Phase.OPTIMIZER, Category.OPTIMIZER_STATE)


@settings(deadline=None, max_examples=40)
@given(runs())
def test_sums_agree_with_the_replay(run: Run) -> None:
    result = replay(run.timeline())
    found = analyze(result.segments)
    assert found.reserved_bytes == int(result.reserved_bytes[-1:].sum())
    assert found.allocated_bytes == int(result.allocated_bytes[-1:].sum())
    assert found.requested_bytes == int(result.requested_bytes[-1:].sum())
    assert sum(pool.reserved_bytes for pool in found.pools) == found.reserved_bytes
    assert sum(pool.free_bytes for pool in found.pools) == found.free_bytes
    emptied = replay(
        timeline([*run.rows, (9_999, 1)], [*run.streams, 99]),
        options=ReplayOptions(empty_cache_before=(len(run.rows),)),
    )
    given_back = found.reserved_bytes + 2 * MIB - int(emptied.reserved_bytes[-1])
    assert sum(pool.idle_bytes for pool in found.pools) == given_back


def test_who_pins_a_nearly_empty_segment() -> None:
    full = segment((20 * MIB, ACTIVATION))
    sparse = segment((2 * MIB, STATE), (37 * MIB, None), (MIB, STATE), address=1 << 41)
    idle = segment((60 * MIB, None), address=1 << 42)
    found = analyze([full, sparse, idle])
    (pinned,) = found.sparse
    assert pinned.segment is sparse
    assert [block.number for block in pinned.pinned_by] == [0, 2]
    assert pinned.pinned_by[0].owner == STATE
    assert (pinned.used_ratio, pinned.free_bytes) == (3 / 40, 37 * MIB)
    assert found.largest_free_bytes == 60 * MIB
    assert found.scatter_ratio == pytest.approx(37 / 97)
    gains = {each.measure: each.gain_bytes for each in found.recommendations}
    assert gains == {
        Measure.EMPTY_CACHE: 60 * MIB,
        Measure.EXPANDABLE_SEGMENTS: 37 * MIB,
        Measure.ALLOCATE_LASTING_FIRST: 37 * MIB,
    }
    assert found.recommendations[0].measure == Measure.EMPTY_CACHE


def test_memory_of_other_streams_is_named() -> None:
    one = segment((20 * MIB, None), (20 * MIB, ACTIVATION))
    other = segment((30 * MIB, None), (20 * MIB, ACTIVATION), address=1 << 41, stream=1)
    gains = {each.measure: each.gain_bytes for each in analyze([one, other]).recommendations}
    assert gains[Measure.SHARE_STREAM] == 20 * MIB


def test_nothing_is_held() -> None:
    found = analyze([])
    assert (found.waste_ratio, found.scatter_ratio, found.recommendations) == (0.0, 0.0, ())


@settings(deadline=None, max_examples=25)
@given(runs())
def test_the_picture_shows_every_segment(run: Run) -> None:
    for config in (AllocatorConfig(), AllocatorConfig(expandable_segments=True)):
        segments = replay(labelled(run), config).segments
        root = ET.fromstring(draw_segment_map(segments))  # noqa: S314  (drawn here)
        tips = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
        for each in segments:
            assert any(f"{each.address:#x}" in tip for tip in tips)


def test_the_picture_bears_any_name() -> None:
    hostile = Owner('</title><script>alert("x")</script>\x00\x1b', Phase.FORWARD, Category.OTHER)
    picture = draw_segment_map([segment((2 * MIB, hostile))], title="<b>&\x01")
    ET.fromstring(picture)  # noqa: S314  (drawn here)
    assert "<script" not in picture
