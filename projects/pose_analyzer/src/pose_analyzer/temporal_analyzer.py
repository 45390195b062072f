"""Repetitions, phases and tempo from movement features, one frame at a time.

An exercise moves between a *start* and a *full* position along one feature. Progress is 0 at the
start position and 1 at the full one; two thresholds with a dead band between them (hysteresis)
say when a position is reached. A repetition is counted at the end of its concentric phase: at the
start position for exercises that begin with the eccentric phase (squat: counted when standing
again; a deadlift begun on the floor: at lockout), at the full position for those that begin with
the concentric one (curl, overhead press).
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.movement_features import FEATURE_INDEX, FEATURE_NAMES
from pose_analyzer.skeletons import ANGLE_NAMES, N_ANGLES
from pose_analyzer.types import Phase, RangeOfMotion, Repetition

Zone = Literal["unknown", "start", "full"]
Where = Literal["start", "full", "all"]
Statistic = Literal["mean", "min", "max", "range"]

# A position's mean is taken with this memory, so that only its latest moments count.
_MEMORY_S: Final = 0.4
# How far a deep movement may widen the start position.
_MAX_STRETCH: Final = 1.3


@dataclass(frozen=True, slots=True)
class Condition:
    """A statistic of one feature, at one position or over the whole repetition, in bounds.

    A condition on a feature that was never seen fails.
    """

    feature: str
    at: Where = "full"
    statistic: Statistic = "mean"
    min: float = -math.inf
    max: float = math.inf


@dataclass(frozen=True, slots=True)
class Movement:
    """How the repetitions of one exercise show themselves."""

    exercise: str
    feature: str
    start: float
    """Feature value at the start position (progress 0)."""
    full: float
    """Feature value at the full position (progress 1)."""
    first_phase: Literal["eccentric", "concentric"]
    enter_start: float = 0.3
    """Progress at or below which the start position is reached."""
    enter_full: float = 0.7
    """Progress at or above which the full position is reached."""
    min_s: float = 0.4
    """Shortest credible repetition: time away from the position where it is counted."""
    min_travel_s: float = 0.03
    """Shortest credible way between the two positions."""
    max_travel_s: float = 15.0
    """Longest credible way between the two positions."""
    recognise_after: int = 1
    """So many repetitions are needed before the exercise is recognised without being named."""
    conditions: tuple[tuple[Condition, ...], ...] = ()
    """All must hold; each is a tuple of alternatives of which one suffices."""

    def progress(self, features: Float[np.ndarray, "12"]) -> float:
        """0 at the start position, 1 at the full one; NaN if the feature is unknown."""
        value = float(features[FEATURE_INDEX[self.feature]])
        return (value - self.start) / (self.full - self.start)


@dataclass(frozen=True, slots=True, eq=False)
class _Extremes:
    """Running statistics since the last counted repetition."""

    start_mean: Float[np.ndarray, "12"]
    full_mean: Float[np.ndarray, "12"]
    feature_min: Float[np.ndarray, "12"]
    feature_max: Float[np.ndarray, "12"]
    angle_min_deg: Float[np.ndarray, "12"]
    angle_max_deg: Float[np.ndarray, "12"]
    n_trusted: Float[np.ndarray, "12"]
    n_frames: int
    depth: float


@dataclass(frozen=True, slots=True, eq=False)
class CounterState:
    """What the counter of one exercise remembers of one person."""

    time_s: float = math.nan
    since_s: float = math.nan
    """Since when the person has been watched without a break."""
    seen_s: float = math.nan
    """When progress was last known."""
    zone: Zone = "unknown"
    """The position reached last."""
    here: Zone = "unknown"
    """The position held now; unknown between the two."""
    progress: float = math.nan
    left_start_s: float = math.nan
    entered_full_s: float = math.nan
    left_full_s: float = math.nan
    entered_start_s: float = math.nan
    turn_s: float = math.nan
    extremes: _Extremes | None = None
    counted: bool = False
    """The repetition under way is counted already (concentric-first exercises)."""
    repetitions: tuple[Repetition, ...] = ()
    n_rejected: int = 0
    """Full movements that were no repetition of this exercise."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One frame as the counter sees it."""

    time_s: float
    features: Float[np.ndarray, "12"]
    angles_deg: Float[np.ndarray, "12"]
    angles_trusted: Bool[np.ndarray, "12"]


# A repetition whose beginning was not seen must have been watched for so long.
_MIN_WATCHED_S: Final = 0.45
# After so long without knowing the progress, the counter starts over.
_LOST_S: Final = 1.5


def _no_extremes() -> _Extremes:
    n = len(FEATURE_NAMES)
    return _Extremes(
        start_mean=np.full(n, np.nan),
        full_mean=np.full(n, np.nan),
        feature_min=np.full(n, np.inf),
        feature_max=np.full(n, -np.inf),
        angle_min_deg=np.full(N_ANGLES, np.inf),
        angle_max_deg=np.full(N_ANGLES, -np.inf),
        n_trusted=np.zeros(N_ANGLES),
        n_frames=0,
        depth=-math.inf,
    )


def _blend(
    mean: Float[np.ndarray, "12"], value: Float[np.ndarray, "12"], gain: float
) -> Float[np.ndarray, "12"]:
    blended = mean + gain * (value - mean)
    return np.where(np.isnan(mean), value, np.where(np.isnan(value), mean, blended))


def _accumulate(
    extremes: _Extremes, observation: Observation, progress: float, dt_s: float, zone: Zone
) -> _Extremes:
    gain = 1.0 - math.exp(-dt_s / _MEMORY_S)
    features, angles = observation.features, observation.angles_deg
    start_mean, full_mean = extremes.start_mean, extremes.full_mean
    if zone == "start":
        start_mean = _blend(start_mean, features, gain)
    elif zone == "full":
        full_mean = _blend(full_mean, features, gain)
    return _Extremes(
        start_mean=start_mean,
        full_mean=full_mean,
        feature_min=np.fmin(extremes.feature_min, features),
        feature_max=np.fmax(extremes.feature_max, features),
        angle_min_deg=np.fmin(extremes.angle_min_deg, angles),
        angle_max_deg=np.fmax(extremes.angle_max_deg, angles),
        n_trusted=extremes.n_trusted + observation.angles_trusted,
        n_frames=extremes.n_frames + 1,
        depth=max(extremes.depth, progress),
    )


def _statistic(condition: Condition, extremes: _Extremes) -> float:
    index = FEATURE_INDEX[condition.feature]
    if condition.at == "start":
        return float(extremes.start_mean[index])
    if condition.at == "full":
        return float(extremes.full_mean[index])
    low, high = float(extremes.feature_min[index]), float(extremes.feature_max[index])
    return {"min": low, "max": high, "range": high - low, "mean": (low + high) / 2.0}[
        condition.statistic
    ]


def _holds(condition: Condition, extremes: _Extremes) -> bool:
    return condition.min <= _statistic(condition, extremes) <= condition.max


def _is_repetition(movement: Movement, state: CounterState, time_s: float) -> bool:
    extremes = state.extremes
    if extremes is None or not all(
        any(_holds(condition, extremes) for condition in alternatives)
        for alternatives in movement.conditions
    ):
        return False
    if movement.first_phase == "eccentric":
        away_s, travel_s = time_s - state.left_start_s, time_s - state.left_full_s
    else:
        away_s, travel_s = time_s - state.left_full_s, time_s - state.left_start_s
    if movement.first_phase == "eccentric" and math.isnan(state.left_start_s):
        # Under way when first seen, as a lift from the floor: believed if watched for a while.
        if time_s - state.since_s < _MIN_WATCHED_S:
            return False
    return not (
        away_s < movement.min_s
        or travel_s < movement.min_travel_s
        or travel_s > movement.max_travel_s
    )


def _span_s(begin_s: float, end_s: float) -> float:
    """Time between two instants; 0 where one was not seen."""
    span = end_s - begin_s
    return span if span > 0 else 0.0


def _ranges(extremes: _Extremes) -> tuple[RangeOfMotion, ...]:
    return tuple(
        RangeOfMotion(
            angle=name,
            min_deg=float(extremes.angle_min_deg[i]),
            max_deg=float(extremes.angle_max_deg[i]),
            trusted=bool(extremes.n_trusted[i] >= 0.5 * extremes.n_frames),
        )
        for i, name in enumerate(ANGLE_NAMES)
        if np.isfinite(extremes.angle_min_deg[i])
    )


def _counted(movement: Movement, state: CounterState, time_s: float) -> Repetition:
    assert state.extremes is not None  # noqa: S101 - holds by `_is_repetition`
    out_s = _span_s(state.left_start_s, state.entered_full_s)
    if movement.first_phase == "eccentric":
        start_s = _first_known(state.left_start_s, state.entered_full_s, time_s)
        eccentric_s, concentric_s = out_s, _span_s(state.left_full_s, time_s)
        hold_s, turn_s = _span_s(state.entered_full_s, state.left_full_s), state.turn_s
    else:
        start_s = _first_known(state.left_start_s, time_s)
        eccentric_s, concentric_s = 0.0, _span_s(state.left_start_s, time_s)
        hold_s, turn_s = 0.0, time_s
    return Repetition(
        exercise=movement.exercise,
        number=len(state.repetitions) + 1,
        start_s=start_s,
        turn_s=turn_s,
        end_s=time_s,
        eccentric_s=eccentric_s,
        hold_s=hold_s,
        concentric_s=concentric_s,
        depth=state.extremes.depth,
        ranges=_ranges(state.extremes),
    )


def _first_known(*times_s: float) -> float:
    return next(t for t in times_s if not math.isnan(t))


def _zone_of(movement: Movement, progress: float, depth: float) -> Zone:
    # Somebody who goes beyond the full position has a larger scale altogether.
    if progress <= movement.enter_start * min(max(1.0, depth), _MAX_STRETCH):
        return "start"
    if progress >= movement.enter_full:
        return "full"
    return "unknown"


def phase_of(movement: Movement, state: CounterState, previous_progress: float) -> Phase:
    """Phase of the movement: top and bottom are where the concentric phase ends and begins."""
    if math.isnan(state.progress):
        return Phase.UNKNOWN
    zone = state.here
    eccentric_first = movement.first_phase == "eccentric"
    if zone == "start":
        return Phase.TOP if eccentric_first else Phase.BOTTOM
    if zone == "full":
        return Phase.BOTTOM if eccentric_first else Phase.TOP
    if state.zone == "unknown":
        return Phase.UNKNOWN
    leaving = state.zone == "start"
    if math.isfinite(previous_progress) and state.progress != previous_progress:
        leaving = state.progress > previous_progress
    return Phase.ECCENTRIC if leaving == eccentric_first else Phase.CONCENTRIC


def lose_sight(state: CounterState) -> CounterState:
    """Forget the movement under way, keep what was counted."""
    return CounterState(repetitions=state.repetitions, n_rejected=state.n_rejected)


def step(movement: Movement, state: CounterState, observation: Observation) -> CounterState:
    """Advance the counter of one exercise by one frame.

    Parameters
    ----------
    movement
        The exercise.
    state
        From the previous frame; `CounterState()` at the first.
    observation
        This frame; frames must come in order.

    Returns
    -------
    CounterState
        Its `repetitions` hold everything counted so far. A repetition that was counted at the
        full position is completed (eccentric time, end) when the start position is reached again.
    """
    time_s = observation.time_s
    progress = movement.progress(observation.features)
    if math.isnan(progress):
        if time_s - state.seen_s > _LOST_S:
            return replace(lose_sight(state), time_s=time_s)
        return replace(state, time_s=time_s, progress=math.nan)
    dt_s = time_s - state.time_s if not math.isnan(state.time_s) else 0.0
    depth = max(progress, state.extremes.depth if state.extremes else -math.inf)
    here = _zone_of(movement, progress, depth)
    extremes = _accumulate(
        state.extremes or _no_extremes(), observation, progress, dt_s, here
    )
    turn_s = time_s if progress >= depth else state.turn_s
    before, left_s = state.here, state.seen_s
    state = replace(
        state,
        time_s=time_s,
        since_s=time_s if math.isnan(state.since_s) else state.since_s,
        seen_s=time_s,
        progress=progress,
        here=here,
        extremes=extremes,
        turn_s=turn_s,
    )
    if before == here:
        return state
    if before == "start":
        state = replace(state, left_start_s=left_s)
    elif before == "full":
        state = replace(state, left_full_s=left_s)
        if movement.first_phase == "concentric":
            # The next repetition begins: what was held at the full position is not part of it.
            state = replace(state, extremes=_no_extremes())
    if here == "start":
        return _arrive_start(movement, state, time_s)
    if here == "full":
        return _arrive_full(movement, state, time_s)
    return state


def _arrive_start(movement: Movement, state: CounterState, time_s: float) -> CounterState:
    came_from_full = state.zone == "full"
    state = replace(state, zone="start", entered_start_s=time_s)
    if not came_from_full:
        return state
    if movement.first_phase == "eccentric":
        return _try_count(movement, state, time_s)
    if state.counted and state.repetitions:
        last = state.repetitions[-1]
        completed = replace(
            last,
            end_s=time_s,
            hold_s=_span_s(last.turn_s, state.left_full_s),
            eccentric_s=_span_s(state.left_full_s, time_s),
        )
        state = replace(state, repetitions=(*state.repetitions[:-1], completed))
    return replace(state, counted=False)


def _arrive_full(movement: Movement, state: CounterState, time_s: float) -> CounterState:
    came_from_start = state.zone == "start"
    state = replace(state, zone="full", entered_full_s=time_s)
    if came_from_start and movement.first_phase == "concentric":
        return _try_count(movement, state, time_s)
    return state


def _try_count(movement: Movement, state: CounterState, time_s: float) -> CounterState:
    """Count the repetition that ends here, or note that it was none; start the next one."""
    fresh = _no_extremes()
    if not _is_repetition(movement, state, time_s):
        return replace(state, extremes=fresh, counted=False, n_rejected=state.n_rejected + 1)
    repetition = _counted(movement, state, time_s)
    return replace(
        state, extremes=fresh, counted=True, repetitions=(*state.repetitions, repetition)
    )
