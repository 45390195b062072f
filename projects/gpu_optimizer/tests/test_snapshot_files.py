"""Snapshots: read without running anything, written so that PyTorch's own viewer reads them."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.cuda import _memory_viz

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator.segments import BlockState
from gpu_optimizer.allocator_replay import ReplayOptions, replay
from gpu_optimizer.snapshots.export import to_snapshot, write_snapshot
from gpu_optimizer.snapshots.files import (
    RecordedOom,
    from_structure,
    parse_snapshot,
    read_snapshot,
)
from gpu_optimizer.snapshots.plain_pickle import (
    InvalidSnapshotError,
    SnapshotLimits,
    read_plain_pickle,
)

from .timelines import MIB, Run, labelled, runs, timeline

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.lists(inner).map(tuple)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(plain, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_is_read_as_pickle_reads_it(value: Any, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(value, protocol=protocol)) == value


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "run"
    data = pickle.dumps({"segments": [Bomb(target)], "device_traces": []}, protocol=protocol)
    with pytest.raises(InvalidSnapshotError):
        parse_snapshot(data)
    assert not target.exists()
    pickle.loads(data)  # noqa: S301  (the bomb does go off where pickles are loaded)
    assert target.exists()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_plain_pickle(b"\x80\x04" + data)
    except InvalidSnapshotError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04]",
        b"\x80\x04.",
        b"\x80\x04e.",
        b"\x80\x04h\x05.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8b\xff\xff\xff\x7f" + b"\xff" * 40 + b".",
        b"\x80\x04]]a" + b"(" * 1000 + b".",
        b"\x80\x04}]]s.",
        b"\x80\x04}K\x01K\x01s.",
        b"\x80\x02Vtext\n.",
        b"[1, 2]",
        b'{"segments": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"segments": [], "segments": []}',
    ],
)
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidSnapshotError):
        parse_snapshot(data)


def test_limits_hold(tmp_path: Path) -> None:
    limits = SnapshotLimits(max_bytes=10_000, max_objects=100)
    with pytest.raises(InvalidSnapshotError, match="more than 100 values"):
        read_plain_pickle(b"\x80\x04" + b"]" * 200 + b".", limits)
    path = tmp_path / "large.pickle"
    path.write_bytes(bytes(20_000))
    with pytest.raises(InvalidSnapshotError, match="larger than"):
        read_snapshot(path, limits=limits)
    # A list that is named many times counts each time.
    blocks = [{"size": 512, "state": "inactive"}] * 30
    segment = {"address": 0, "total_size": 512 * 30, "blocks": blocks}
    with pytest.raises(InvalidSnapshotError, match="more than 100 records"):
        from_structure({"segments": [segment] * 5, "device_traces": []}, limits=limits)


def test_damaged_records_are_refused() -> None:
    good = to_snapshot(timeline([(0, 3 * MIB), (1, 512)]))
    from_structure(good)
    for key, value in (
        ("address", -1),
        ("address", "0"),
        ("total_size", 2**70),
        ("total_size", 1),
        ("blocks", None),
        ("blocks", [1]),
        ("segment_pool_id", 3),
        ("stream", 1.5),
    ):
        damaged = json.loads(json.dumps(good))
        damaged["segments"][0][key] = value
        with pytest.raises(InvalidSnapshotError):
            from_structure(damaged)


@settings(deadline=None, max_examples=40)
@given(runs(max_blocks=25), st.booleans(), st.booleans())
def test_a_timeline_survives_being_written_and_read(
    run: Run, expandable: bool, as_json: bool
) -> None:
    original = labelled(run)
    config = AllocatorConfig(expandable_segments=expandable)
    written = to_snapshot(original, config)
    data = json.dumps(written).encode() if as_json else pickle.dumps(written)
    snapshot = parse_snapshot(data)
    read = snapshot.timeline
    np.testing.assert_array_equal(read.size_bytes, original.size_bytes)
    np.testing.assert_array_equal(read.phase, original.phase)
    np.testing.assert_array_equal(read.category, original.category)
    assert [read.modules[i] for i in read.module] == [original.modules[i] for i in original.module]
    result = replay(original, config)
    np.testing.assert_array_equal(replay(read, config).reserved_bytes, result.reserved_bytes)
    assert sum(segment.size_bytes for segment in snapshot.segments) == sum(
        segment.size_bytes for segment in result.segments
    )
    mapped = snapshot.device_bytes.get("segment_alloc", 0)
    mapped += snapshot.device_bytes.get("segment_map", 0)
    assert mapped == result.reserved_bytes[-1:].sum()


def test_pytorchs_own_viewer_reads_what_is_written(tmp_path: Path) -> None:
    run = timeline([(0, 3 * MIB), (1, 512), (2, 30 * MIB), (0, -3 * MIB)])
    path = tmp_path / "snapshot.pickle"
    write_snapshot(to_snapshot(run), path)
    loaded = pickle.loads(path.read_bytes())  # noqa: S301  (written above)
    assert "total_reserved: 52.0MiB" in _memory_viz.segsum(loaded)
    assert "cudaMalloc" in _memory_viz.trace(loaded)
    flames: list[str] = []
    _memory_viz.memory(loaded, format_flamegraph=flames.append)
    assert "active_allocated" in flames[0]
    page = _memory_viz.trace_plot(loaded)
    assert "<html>" in page


def test_blocks_older_than_the_history_come_first() -> None:
    whole = to_snapshot(timeline([(0, 3 * MIB), (1, 512), (2, 30 * MIB), (0, -3 * MIB)]))
    trace = whole["device_traces"][0]
    start = [entry["action"] for entry in trace].index("alloc", 5)
    cut = {**whole, "device_traces": [trace[start:]]}
    snapshot = from_structure(cut)
    assert snapshot.n_before == 2
    assert sorted(snapshot.timeline.size_bytes[:2].tolist()) == [512, 3 * MIB]
    assert snapshot.timeline.size_bytes[2:].tolist() == [30 * MIB, -3 * MIB]
    replay(snapshot.timeline)


def test_releases_and_oom_are_kept() -> None:
    run = timeline([(0, 60 * MIB), (0, -60 * MIB), (1, 512), (2, 200 * MIB)])
    config = AllocatorConfig(device_bytes=100 * MIB)
    options = ReplayOptions(empty_cache_before=(2,))
    snapshot = from_structure(to_snapshot(run, config, options))
    assert snapshot.cache_releases == (2,)
    assert snapshot.ooms == (RecordedOom(3, 200 * MIB, 98 * MIB),)
    assert snapshot.device_bytes["segment_free"] == 60 * MIB


def test_a_snapshot_as_pytorch_writes_it() -> None:
    """Fields, pointers as streams, shared call stacks and two devices as in torch 2.11."""
    frames = [
        {"filename": "??", "line": 0, "name": "c10::cuda::malloc"},
        {"filename": "/site/torch/nn/modules/linear.py", "line": 134, "name": "forward"},
        {"filename": "/workspace/train.py", "line": 12, "name": "step"},
    ]
    stream = 94_551_234_567_890
    base = 140_000_000_000_000
    entry = {"frames": frames, "stream": stream, "time_us": 1, "compile_context": "N/A"}
    content = {
        "segments": [
            {
                "device": 1,
                "address": base,
                "total_size": 2 * MIB,
                "allocated_size": 512,
                "active_size": 1024,
                "requested_size": 1000,
                "stream": stream,
                "segment_type": "small",
                "segment_pool_id": (0, 0),
                "is_expandable": False,
                "registration_counter": -1,
                "frames": frames,
                "blocks": [
                    _block(base, 512, 488, "active_allocated", frames),
                    _block(base + 512, 512, 512, "active_pending_free", frames),
                    _block(base + 1024, 2 * MIB - 1024, 0, "inactive", []),
                ],
            }
        ],
        "device_traces": [
            [],
            [
                {"action": "segment_alloc", "addr": base, "size": 2 * MIB, **entry},
                {"action": "alloc", "addr": base, "size": 488, **entry},
                {"action": "alloc", "addr": base + 512, "size": 512, **entry},
                {"action": "free_requested", "addr": base + 512, "size": 512, **entry},
                {"action": "snapshot", "addr": 0, "size": 1024, **entry},
            ],
        ],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
    }
    out = io.BytesIO()
    pickle.dump(content, out)
    snapshot = parse_snapshot(out.getvalue())
    assert snapshot.settings == "max_split_size_mb:64"
    (segment,) = snapshot.segments
    assert [block.state for block in segment.blocks] == [
        BlockState.ALLOCATED,
        BlockState.PENDING,
        BlockState.FREE,
    ]
    owner = segment.blocks[0].owner
    assert owner is not None
    assert owner.module == "/workspace/train.py:12:step"
    assert len(owner.frames) == 3
    assert snapshot.timeline.stream.tolist() == [1, 1, 1]
    # No free was completed in this history, so requested ones count.
    assert snapshot.timeline.size_bytes.tolist() == [488, 512, -512]


def _block(
    address: int, size: int, requested: int, state: str, frames: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "address": address,
        "size": size,
        "requested_size": requested,
        "state": state,
        "frames": frames,
    }
