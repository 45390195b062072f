"""Which modules' saved tensors could wait on the host, on top of a choice of regions.

What hides under computing is worked out as the swapper itself does it (`offload.schedule`), from
estimated times instead of measured ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from gpu_optimizer.offload.schedule import (
    LinkSpeed,
    OffloadSchedule,
    SavedStorage,
    SaveTimeline,
    choose,
    schedule_all,
)
from gpu_optimizer.planning.peak_model import PeakModel
from gpu_optimizer.planning.regions import Candidate
from gpu_optimizer.planning.times import StepTimes

MIN_BYTES: Final = 1 << 20
"""Smaller tensors stay."""
_LINK_PART_RATIO: Final = 0.9
"""Of the link's speed: a step's own copies use it as well."""
_STALL_RATIOS: Final = (0.0, 0.03, 0.1)
"""Parts of a step that may be spent waiting, tried in turn."""


@dataclass(frozen=True, slots=True)
class OffloadChoice:
    """Modules whose saved tensors leave the GPU."""

    modules: tuple[str, ...]
    peak_bytes: int
    stall_s: float
    offloaded_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Movable:
    """Storages that only saved tensors keep alive, in the order they are saved in."""

    size_bytes: Int64[np.ndarray, "storages"]
    first_saved: Int64[np.ndarray, "storages"]
    """Moments."""
    last_saved: Int64[np.ndarray, "storages"]
    first_used: Int64[np.ndarray, "storages"]
    modules: tuple[frozenset[int], ...]
    """Numbers of the modules that save each."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.size_bytes)


def choose_offload(
    model: PeakModel,
    chosen: Sequence[Candidate],
    times: StepTimes,
    link: LinkSpeed,
    target_bytes: int,
) -> OffloadChoice | None:
    """Choose modules so that the peak falls to a target with the least waiting.

    Parameters
    ----------
    model
        Of the recorded step.
    chosen
        Regions that are computed again; what they keep cannot be offloaded.
    times
        When the step's operations run.
    link
        To the host.
    target_bytes
        Allocated peak.

    Returns
    -------
    OffloadChoice or None
        None if nothing can be gained. Its peak is above the target if that is out of reach.
    """
    movable = _movable(model, chosen)
    if not len(movable):
        return None
    timeline = _timeline(model, chosen, times, movable)
    usable = link.slower(_LINK_PART_RATIO)
    found: list[OffloadChoice] = []
    for stall_ratio in _STALL_RATIOS:
        schedule = choose(timeline, usable, stall_ratio * timeline.step_s, target_bytes)
        if schedule.trips:
            found.append(_by_modules(model, movable, timeline, (schedule, usable)))
        if found and found[-1].peak_bytes <= target_bytes:
            return found[-1]
    return min(found, key=lambda each: (each.peak_bytes, each.stall_s), default=None)


def _by_modules(
    model: PeakModel,
    movable: _Movable,
    timeline: SaveTimeline,
    scheduled: tuple[OffloadSchedule, LinkSpeed],
) -> OffloadChoice:
    """Round up to whole modules: everything that one of them saves goes."""
    schedule, link = scheduled
    modules = {min(movable.modules[trip.storage]) for trip in schedule.trips}
    numbers = [number for number, savers in enumerate(movable.modules) if savers & modules]
    whole = schedule_all(timeline, link, numbers, schedule.stall_s)
    names = model.graph.recording.timeline.modules
    return OffloadChoice(
        modules=tuple(names[each] for each in sorted(modules)),
        peak_bytes=whole.peak_bytes,
        stall_s=whole.stall_s,
        offloaded_bytes=whole.offloaded_bytes,
    )


def _movable(model: PeakModel, chosen: Sequence[Candidate]) -> _Movable:
    """Find what autograd keeps outside of all regions, inside of the model, and nobody else."""
    blocks, saves, clock = model.blocks, model.saves, model.clock
    in_region = _in_regions(model, chosen)
    module_of = model.graph.operations.module
    own = np.flatnonzero(saves.block >= 0)
    n_saves = np.bincount(saves.block[own], minlength=len(blocks))
    free = ~in_region[saves.operation[own]] & _in_model(model)[saves.operation[own]]
    n_free = np.bincount(saves.block[own[free]], minlength=len(blocks))
    held = np.zeros(len(blocks), np.bool_)
    for call in (call for each in chosen for call in each.repeats):
        held[call.held_block] = True
    outlives = blocks.unsaved >= blocks.freed
    usable = (n_saves > 0) & (n_free == n_saves) & ~held & ~outlives
    usable &= blocks.size_bytes >= MIN_BYTES
    groups: dict[int, list[int]] = {}
    for save in own[usable[saves.block[own]]].tolist():
        groups.setdefault(int(saves.block[save]), []).append(save)
    found = sorted(groups, key=lambda block: int(saves.operations_before[groups[block]].min()))
    saved = [
        clock.before[np.minimum(saves.operations_before[groups[b]], len(clock.before) - 1)]
        for b in found
    ]
    return _Movable(
        size_bytes=blocks.size_bytes[found],
        first_saved=np.array([each.min() for each in saved], np.int64),
        last_saved=np.array([each.max() for each in saved], np.int64),
        first_used=np.array([saves.asked[groups[block]].min() for block in found], np.int64),
        modules=tuple(
            frozenset(module_of[saves.operation[groups[block]]].tolist()) for block in found
        ),
    )


def _in_regions(model: PeakModel, chosen: Sequence[Candidate]) -> Bool[np.ndarray, "operations"]:
    inside = np.zeros(len(model.graph.operations), np.bool_)
    for first, last in (span for each in chosen for span in each.spans):
        inside[first:last] = True
    return inside


def _in_model(model: PeakModel) -> Bool[np.ndarray, "operations"]:
    """Mark what runs within the model's forward pass: the swapper's hooks see no more."""
    calls = model.graph.calls
    inside = np.zeros(len(model.graph.operations), np.bool_)
    for first, last in zip(calls.first_operation, calls.last_operation, strict=True):
        inside[first:last] = True
    return inside


def _timeline(
    model: PeakModel, chosen: Sequence[Candidate], times: StepTimes, movable: _Movable
) -> SaveTimeline:
    """Describe the step as the swapper does: a tick at each saving and each use."""
    curve, clock = model.curve(chosen), model.clock
    last = int(np.flatnonzero(_in_model(model)).max(initial=0))
    forward_end = int(clock.after[last])
    seen = (np.array([0, forward_end]), movable.first_saved, movable.last_saved, movable.first_used)
    moments = np.unique(np.minimum(np.concatenate(seen), len(curve) - 1))
    tick = {int(moment): number for number, moment in enumerate(moments)}
    reached_s = _reached_s(model, chosen, times)
    starts = np.searchsorted(clock.before, moments)
    return SaveTimeline(
        time_s=reached_s[starts].tolist(),
        live_bytes=np.maximum.reduceat(curve, moments).tolist(),
        forward_end=tick[min(forward_end, len(curve) - 1)],
        storages=[
            SavedStorage(
                size_bytes=int(movable.size_bytes[number]),
                first_saved=tick[int(movable.first_saved[number])],
                last_saved=tick[int(movable.last_saved[number])],
                first_used=tick[int(movable.first_used[number])],
            )
            for number in range(len(movable))
        ],
        step_s=float(reached_s[-1]),
    )


def _reached_s(
    model: PeakModel, chosen: Sequence[Candidate], times: StepTimes
) -> Float64[np.ndarray, "operations_and_end"]:
    """Return when each operation begins, with the time of what is computed again before it."""
    spent_s = times.operation_s.copy()
    for each in chosen:
        moments = np.concatenate([call.burst_moment for call in each.repeats])
        before = np.minimum(np.searchsorted(model.clock.before, moments), len(spent_s) - 1)
        np.add.at(spent_s, before, each.recompute_s / max(len(moments), 1))
    return np.concatenate([[0.0], np.cumsum(spent_s)])
