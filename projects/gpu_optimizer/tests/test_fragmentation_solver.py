"""Remedies change neither what a run needs nor each other's timelines, and the best comes first."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from gpu_optimizer.allocator.config import AllocatorConfig, InvalidAllocatorSettingError
from gpu_optimizer.allocator_replay import ReplayOptions, replay
from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.fragmentation_solver import (
    apply_settings,
    least_device_bytes,
    measure_live,
    solve,
)
from gpu_optimizer.remedies.fragmentation import Case, RemedyKind, remedies
from gpu_optimizer.types import MemoryTimeline

from .timelines import MIB, Run, labelled, runs, timeline


def growing_steps(n_steps: int = 12) -> tuple[MemoryTimeline, tuple[int, ...]]:
    """Each step needs four blocks, a little larger than those before, and leaves a small one."""
    rows: list[tuple[int, int]] = [(0, 40 * MIB)]
    starts = []
    number = 1
    for step in range(n_steps):
        starts.append(len(rows))
        blocks = [(number + i, (30 + 2 * step) * MIB) for i in range(4)]
        rows += blocks
        rows.append((number + 4, 3 * MIB))
        rows += [(block, -size) for block, size in reversed(blocks)]
        number += 5
    return timeline(rows), tuple(starts)


def test_growing_shapes_are_cured() -> None:
    run, starts = growing_steps()
    solution = solve(run, step_starts=starts)
    assert solution.before.waste_ratio > 0.5
    assert solution.best.waste_ratio < 0.1
    by_name = {trial.remedy.name: trial for trial in solution.ranked}
    for name in ("largest step first", "one large block ahead", "empty_cache before larger steps"):
        assert by_name[name].reserved_peak_bytes < solution.before.reserved_peak_bytes
    cached = by_name["empty_cache at every step"]
    assert cached.n_cuda_mallocs > solution.before.n_cuda_mallocs
    setting = solution.best_of(RemedyKind.SETTING)
    assert setting is not None
    assert setting.setting == "expandable_segments:True"
    assert setting.waste_ratio < solution.before.waste_ratio


def test_remedies_that_need_steps_or_streams_are_left_out_without_them() -> None:
    run, starts = growing_steps(3)
    names = {trial.remedy.name for trial in solve(run).ranked}
    assert "largest step first" not in names
    assert "one stream" not in names
    two = timeline(
        zip(run.block.tolist(), run.size_bytes.tolist(), strict=True),
        (run.block % 2).tolist(),
    )
    names = {trial.remedy.name for trial in solve(two, step_starts=starts).ranked}
    assert {"largest step first", "one stream", "private pool for the second workload"} <= names


def test_two_streams_that_take_turns_can_share() -> None:
    rows, streams = [], []
    for turn in range(6):
        rows += [(turn, 60 * MIB), (turn, -60 * MIB)]
        streams += [turn % 2] * 2
    solution = solve(timeline(rows, streams))
    by_name = {trial.remedy.name: trial for trial in solution.ranked}
    assert solution.before.waste_ratio == pytest.approx(0.5)
    assert by_name["one stream"].waste_ratio == pytest.approx(0.0)


def test_out_of_memory_ranks_last() -> None:
    run, starts = growing_steps()
    config = AllocatorConfig(device_bytes=320 * MIB)
    solution = solve(run, config, step_starts=starts)
    assert solution.best.fits
    fits = [trial.fits for trial in solution.ranked]
    assert fits == sorted(fits, reverse=True)


def test_least_device() -> None:
    run, starts = growing_steps()
    case = Case(run, AllocatorConfig(), ReplayOptions(), starts)
    least_bytes = least_device_bytes(case, grain_bytes=MIB)
    for device_bytes, fits in ((least_bytes, True), (least_bytes - MIB, False)):
        result = replay(run, AllocatorConfig(device_bytes=device_bytes))
        assert (result.out_of_memory is None) is fits
    assert least_bytes < replay(run).reserved_peak_bytes


@settings(deadline=None, max_examples=25)
@given(runs(max_blocks=25))
def test_remedies_keep_what_is_allocated(run: Run) -> None:
    """Every remedy's timeline is whole, and ends with the same blocks as it would without."""
    original = labelled(run)
    starts = tuple(range(0, len(original), 9))
    case = Case(original, AllocatorConfig(), ReplayOptions(), starts)
    kept_bytes = int(original.size_bytes.sum())
    for remedy in remedies(case):
        changed = remedy.change(case)
        result = replay(changed.timeline, changed.config, changed.options)
        assert int(changed.timeline.size_bytes.sum()) == kept_bytes
        assert len(result.reserved_bytes) == len(changed.timeline)
        assert set(np.unique(original.block)) <= set(np.unique(changed.timeline.block))
    np.testing.assert_array_equal(case.timeline.size_bytes, labelled(run).size_bytes)


@pytest.fixture
def _default_allocator() -> Iterator[None]:
    yield
    apply_settings(AllocatorConfig())


@pytest.mark.usefixtures("_default_allocator")
def test_pytorch_takes_the_settings_of_all_remedies() -> None:
    for trial in solve(growing_steps(3)[0]).ranked:
        assert apply_settings(AllocatorConfig.parse(trial.setting)) == trial.setting


@pytest.mark.usefixtures("_default_allocator")
@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:20",
        "roundup_power2_divisions:[64:8,256:4,>:1],garbage_collection_threshold:0.6",
        "roundup_power2_divisions:[64:0]",
        "expandable_segments:True,pinned_num_register_threads:8",
        "max_split_size_mb:19",
        "max_split_size_mb:x",
        "max_non_split_rounding_mb:10",
        "garbage_collection_threshold:1.0",
        "garbage_collection_threshold:nan",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:[64:8",
        "roundup_power2_divisions:[60:8]",
        "expandable_segments:true",
        "expandable_segments",
        "backend:cudaMallocAsync",
        "bogus:1",
    ],
)
def test_pytorch_and_this_package_take_the_same_settings(text: str) -> None:
    try:
        AllocatorConfig.parse(text)
    except InvalidAllocatorSettingError:
        with pytest.raises((ValueError, RuntimeError)):
            torch._C._accelerator_setAllocatorSettings(text)
    else:
        torch._C._accelerator_setAllocatorSettings(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measuring_needs_a_gpu() -> None:
    with pytest.raises(NoGpuError):
        measure_live(lambda: None)


@pytest.mark.gpu
def test_replay_agrees_with_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    from gpu_optimizer.snapshots.files import from_structure

    def workload() -> None:
        for step in range(8):
            kept = [torch.empty((30 + 2 * step) * MIB, device="cuda", dtype=torch.uint8)]
            kept += [torch.empty(3000 + step, device="cuda") for _ in range(200)]

    for setting in ("", "expandable_segments:True", "roundup_power2_divisions:4"):
        config = AllocatorConfig.parse(setting)
        torch.cuda.empty_cache()
        apply_settings(config)
        torch.cuda.memory._record_memory_history(context=None)
        live = measure_live(workload)
        snapshot = from_structure(torch.cuda.memory._snapshot())
        torch.cuda.memory._record_memory_history(enabled=None)
        result = replay(snapshot.timeline, config)
        assert result.reserved_peak_bytes == pytest.approx(live.reserved_peak_bytes, rel=0.03)
        assert result.allocated_peak_bytes == pytest.approx(live.allocated_peak_bytes, rel=0.01)
    apply_settings(AllocatorConfig())
