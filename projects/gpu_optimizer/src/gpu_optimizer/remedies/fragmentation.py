"""What can be done against fragmentation, as changes to a timeline and to the allocator's settings.

A remedy never changes what the model needs: it only sets the allocator otherwise, asks for the same
memory in another order, or gives cached memory back at other times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from gpu_optimizer.allocator.config import (
    MIB,
    N_ROUNDUP_INTERVALS,
    SMALL_BYTES,
    AllocatorConfig,
)
from gpu_optimizer.allocator_replay import ReplayOptions
from gpu_optimizer.types import CATEGORIES, PHASES, Category, MemoryTimeline, Phase

_SPLIT_LIMITS_BYTES: Final = (64 * MIB, 256 * MIB, 512 * MIB)
_ROUNDUP_DIVISIONS: Final = (4, 8)
_GARBAGE_RATIO: Final = 0.8


class RemedyKind(StrEnum):
    """What has to be changed to apply a remedy."""

    NOTHING = "nothing"
    SETTING = "setting"
    """A value of `PYTORCH_ALLOC_CONF`: no code changes."""
    CODE = "code"
    """The program itself."""


@dataclass(frozen=True, slots=True)
class Case:
    """A timeline and everything that decides what it reserves."""

    timeline: MemoryTimeline
    config: AllocatorConfig
    options: ReplayOptions
    step_starts: tuple[int, ...]
    """Events with which the steps of the run begin; empty: not known."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One way to lower fragmentation."""

    name: str
    kind: RemedyKind
    explanation: str
    how: str
    """What to write, or to do."""
    change: Callable[[Case], Case]


def remedies(case: Case) -> tuple[Remedy, ...]:
    """Return the remedies that can be tried on a case, without those that need what it lacks."""
    found = [*_setting_remedies(case), _lasting_first(), _reserve_ahead()]
    if len(case.step_starts) > 1:
        found += [_largest_step_first(), _empty_cache_each_step(), _empty_cache_before_larger()]
    if len(np.unique(case.timeline.stream)) > 1:
        found += [_one_stream(), _private_pool()]
    expandable = next(each for each in found if each.name == "expandable segments")
    partners = {"one stream", "empty_cache before larger steps", "lasting tensors first"}
    found += [_both(expandable, other) for other in found if other.name in partners]
    return tuple(found)


def _setting_remedies(case: Case) -> list[Remedy]:
    def remedy(name: str, explanation: str, **changes: object) -> Remedy:
        def change(old: Case) -> Case:
            return replace(old, config=replace(old.config, **changes))  # type: ignore[arg-type]

        setting = change(case).config.as_setting()
        how = f"PYTORCH_ALLOC_CONF={setting}"
        return Remedy(name, RemedyKind.SETTING, explanation, how, change)

    found = [
        remedy(
            "expandable segments",
            "Blocks lie in one range of addresses that grows by pages, so no segment is too small "
            "to be used again.",
            expandable_segments=True,
        )
    ]
    found += [
        remedy(
            f"max_split_size {limit // MIB} MiB",
            "Blocks above the limit stay whole: small requests cannot cut them up, but large ones "
            "find fewer that fit.",
            max_split_size_bytes=limit,
        )
        for limit in _SPLIT_LIMITS_BYTES
    ]
    found += [
        remedy(
            f"roundup to 1/{divisions} of a power of two",
            "Sizes that differ little become the same size and fit each other's blocks; the "
            "rounding itself costs memory.",
            roundup_power2_divisions=(divisions,) * N_ROUNDUP_INTERVALS,
        )
        for divisions in _ROUNDUP_DIVISIONS
    ]
    if case.config.device_bytes is not None:
        found.append(
            remedy(
                f"garbage collection from {_GARBAGE_RATIO:.0%}",
                "Segments idle for long go back before memory runs short.",
                garbage_collection_ratio=_GARBAGE_RATIO,
                memory_fraction_ratio=min(case.config.memory_fraction_ratio, 0.999),
            )
        )
    return found


def _lasting_first() -> Remedy:
    return Remedy(
        "lasting tensors first",
        RemedyKind.CODE,
        "What is never freed is allocated before everything else, so it does not pin segments "
        "between temporaries.",
        "Create optimizer states and gradient buffers before the first forward pass.",
        _allocate_lasting_first,
    )


def _reserve_ahead() -> Remedy:
    return Remedy(
        "one large block ahead",
        RemedyKind.CODE,
        "One allocation as large as the run's peak, freed at once, leaves one segment from which "
        "everything else is cut.",
        "After the model is on the GPU: torch.empty(peak_bytes, dtype=torch.uint8, "
        "device='cuda'), then del.",
        _take_peak_ahead,
    )


def _largest_step_first() -> Remedy:
    return Remedy(
        "largest step first",
        RemedyKind.CODE,
        "Segments made for the largest shapes serve all smaller ones.",
        "Run one step on the largest shape before training, and discard its gradients.",
        _run_largest_first,
    )


def _empty_cache_each_step() -> Remedy:
    def change(case: Case) -> Case:
        marks = case.step_starts[1:]
        return replace(case, options=replace(case.options, empty_cache_before=marks))

    return Remedy(
        "empty_cache at every step",
        RemedyKind.CODE,
        "Nothing is kept for the next step; every step pays for its memory again.",
        "torch.cuda.empty_cache() at the start of each step.",
        change,
    )


def _empty_cache_before_larger() -> Remedy:
    def change(case: Case) -> Case:
        marks = _larger_steps(case)
        return replace(case, options=replace(case.options, empty_cache_before=marks))

    return Remedy(
        "empty_cache before larger steps",
        RemedyKind.CODE,
        "Segments that are too small for what comes go back before they are in the way.",
        "torch.cuda.empty_cache() before a step whose shape is larger than all before it.",
        change,
    )


def _one_stream() -> Remedy:
    def change(case: Case) -> Case:
        timeline = case.timeline
        return replace(case, timeline=replace(timeline, stream=np.zeros_like(timeline.stream)))

    return Remedy(
        "one stream",
        RemedyKind.CODE,
        "Memory freed on one stream serves the other; their work no longer overlaps.",
        "Run both on the same torch.cuda.Stream.",
        change,
    )


def _private_pool() -> Remedy:
    def change(case: Case) -> Case:
        others = [int(stream) for stream in np.unique(case.timeline.stream) if stream]
        pools = {stream: index + 1 for index, stream in enumerate(others)}
        return replace(case, options=replace(case.options, private_pool_of_stream=pools))

    return Remedy(
        "private pool for the second workload",
        RemedyKind.CODE,
        "The second workload's blocks cannot settle among the first one's.",
        "with torch.cuda.use_mem_pool(torch.cuda.MemPool()): ...",
        change,
    )


def _both(first: Remedy, second: Remedy) -> Remedy:
    def change(case: Case) -> Case:
        return second.change(first.change(case))

    return Remedy(
        f"{first.name}, {second.name}",
        RemedyKind.CODE,
        f"{first.explanation} {second.explanation}",
        f"{first.how}; {second.how}",
        change,
    )


def _requested_series(timeline: MemoryTimeline) -> np.ndarray:
    return np.cumsum(timeline.size_bytes)


def _step_bounds(case: Case) -> list[tuple[int, int]]:
    ends = (*case.step_starts[1:], len(case.timeline))
    return list(zip(case.step_starts, ends, strict=True))


def _step_peaks(case: Case) -> list[int]:
    series = _requested_series(case.timeline)
    return [int(series[start:end].max(initial=0)) for start, end in _step_bounds(case)]


def _larger_steps(case: Case) -> tuple[int, ...]:
    peaks = _step_peaks(case)
    return tuple(
        start
        for index, start in enumerate(case.step_starts)
        if index and peaks[index] > max(peaks[:index])
    )


def _reorder(timeline: MemoryTimeline, rows: np.ndarray) -> MemoryTimeline:
    return replace(
        timeline,
        size_bytes=timeline.size_bytes[rows],
        block=timeline.block[rows],
        module=timeline.module[rows],
        phase=timeline.phase[rows],
        category=timeline.category[rows],
        stream=timeline.stream[rows],
    )


def _moved(marks: Sequence[int], order: np.ndarray) -> tuple[int, ...]:
    """Where events are after reordering."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return tuple(int(places[mark]) for mark in marks)


def _allocate_lasting_first(case: Case) -> Case:
    timeline = case.timeline
    freed = timeline.block[timeline.size_bytes < 0]
    lasts = (timeline.size_bytes > 0) & ~np.isin(timeline.block, freed)
    order = np.concatenate([np.flatnonzero(lasts), np.flatnonzero(~lasts)])
    options = replace(
        case.options, empty_cache_before=_moved(case.options.empty_cache_before, order)
    )
    return replace(
        case,
        timeline=_reorder(timeline, order),
        options=options,
        step_starts=_moved(case.step_starts, order),
    )


def _insert(case: Case, at: int, rows: dict[str, np.ndarray]) -> Case:
    """Put events into a case before one of its own, its marks moved along."""
    timeline = case.timeline

    def joined(name: str, column: np.ndarray) -> np.ndarray:
        return np.concatenate([column[:at], rows[name].astype(column.dtype), column[at:]])

    n_new = len(rows["size_bytes"])

    def shift(marks: Sequence[int]) -> tuple[int, ...]:
        return tuple(mark + n_new if mark >= at else mark for mark in marks)

    return replace(
        case,
        timeline=replace(
            timeline,
            size_bytes=joined("size_bytes", timeline.size_bytes),
            block=joined("block", timeline.block),
            module=joined("module", timeline.module),
            phase=joined("phase", timeline.phase),
            category=joined("category", timeline.category),
            stream=joined("stream", timeline.stream),
        ),
        options=replace(case.options, empty_cache_before=shift(case.options.empty_cache_before)),
        step_starts=shift(case.step_starts),
    )


def _take_peak_ahead(case: Case) -> Case:
    """One block per stream, as large as what its large blocks need at most after the setup."""
    timeline = case.timeline
    at = case.step_starts[0] if case.step_starts else 0
    is_large = np.abs(timeline.size_bytes) > SMALL_BYTES
    taken = []
    for stream in np.unique(timeline.stream).tolist():
        counted = np.where(is_large & (timeline.stream == stream), timeline.size_bytes, 0)
        series = np.cumsum(counted)
        before = int(series[at - 1]) if at else 0
        taken.append((stream, int(series[at:].max(initial=0)) - before))
    wanted = [(stream, size) for stream, size in taken if size > 0]
    first = int(timeline.block.max(initial=-1)) + 1
    sizes = np.array([size for _, size in wanted], dtype=np.int64)
    numbers = np.arange(first, first + len(wanted))
    n_rows = 2 * len(wanted)
    rows = {
        "size_bytes": np.concatenate([sizes, -sizes]),
        "block": np.concatenate([numbers, numbers]),
        "module": np.zeros(n_rows),
        "phase": np.full(n_rows, PHASES.index(Phase.SETUP)),
        "category": np.full(n_rows, CATEGORIES.index(Category.OTHER)),
        "stream": np.array([stream for stream, _ in wanted] * 2),
    }
    return _insert(case, at, rows)


def _run_largest_first(case: Case) -> Case:
    """The largest step once more, before the first; what it would leave behind is freed again."""
    timeline = case.timeline
    peaks = _step_peaks(case)
    start, end = _step_bounds(case)[peaks.index(max(peaks))]
    made = timeline.block[start:end][timeline.size_bytes[start:end] > 0]
    copied = start + np.flatnonzero(np.isin(timeline.block[start:end], made))
    freed = timeline.block[copied][timeline.size_bytes[copied] < 0]
    left = copied[(timeline.size_bytes[copied] > 0) & ~np.isin(timeline.block[copied], freed)]
    source = np.concatenate([copied, left])
    rows = {
        name: getattr(timeline, name)[source].copy()
        for name in ("size_bytes", "block", "module", "phase", "category", "stream")
    }
    rows["size_bytes"][len(copied) :] *= -1
    rows["block"] += int(timeline.block.max(initial=-1)) + 1
    return _insert(case, case.step_starts[0], rows)
