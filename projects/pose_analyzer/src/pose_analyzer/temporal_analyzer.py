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
from jaxtyping import Float

from pose_analyzer.movement_features import FEATURE_INDEX
from pose_analyzer.repetition_evidence import (
    Condition,
    Evidence,
    Observation,
    Zone,
    accumulate,
    continued,
    holds,
    no_evidence,
    ranges_of_motion,
)
from pose_analyzer.repetition_tempo import Trace, measure_tempo
from pose_analyzer.types import Phase, Repetition

# How far a deep movement may widen the start position.
_MAX_STRETCH: Final = 1.3
# A repetition whose beginning was not seen must have been watched for so long.
_MIN_WATCHED_S: Final = 0.45
# After so long without knowing the progress, the counter starts over.
_LOST_S: Final = 1.5
# A counted repetition is over once progress rises again by so much above its lowest value, or
# when nothing has come after it for so long.
_SETTLED_RISE: Final = 0.05
_SETTLED_S: Final = 2.0
# Ranges of motion take in the positions a repetition starts from and ends in, for so long.
_AROUND_S: Final = 0.3
# Longest course of progress that is remembered.
_TRACE_S: Final = 30.0
# Slower than this part of the way per second is holding; speeds are averaged over _SPEED_S.
_HOLD_SPEED_PER_S: Final = 0.25
_SPEED_S: Final = 0.1


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

    @property
    def eccentric_first(self) -> bool:
        """Whether a repetition begins with the eccentric phase."""
        return self.first_phase == "eccentric"

    def progress(self, features: Float[np.ndarray, "13"]) -> float:
        """0 at the start position, 1 at the full one; NaN if the feature is unknown."""
        value = float(features[FEATURE_INDEX[self.feature]])
        return (value - self.start) / (self.full - self.start)


@dataclass(frozen=True, slots=True, eq=False)
class CounterState:
    """What the counter of one exercise remembers of one person."""

    time_s: float = math.nan
    since_s: float = math.nan
    """Since when the person has been watched without a break."""
    seen_s: float = math.nan
    """When progress was last known."""
    progress: float = math.nan
    speed_per_s: float = 0.0
    """Smoothed rate of progress."""
    zone: Zone = "unknown"
    """The position reached last."""
    here: Zone = "unknown"
    """The position held now; unknown between the two."""
    left_start_s: float = math.nan
    left_full_s: float = math.nan
    trace: Trace = ()
    """Course of the repetition under way."""
    observations: tuple[Observation, ...] = ()
    """The frames of `trace`."""
    evidence: Evidence | None = None
    open: bool = False
    """The latest repetition is counted but not over: its end and ranges may still grow."""
    repetitions: tuple[Repetition, ...] = ()
    n_rejected: int = 0
    """Full movements that were no repetition of this exercise."""


def lose_sight(state: CounterState) -> CounterState:
    """Forget the movement under way, keep what was counted."""
    return CounterState(repetitions=state.repetitions, n_rejected=state.n_rejected)


def phase_of(movement: Movement, state: CounterState) -> Phase:
    """Phase of the movement: top and bottom are where the concentric phase ends and begins."""
    if math.isnan(state.progress) or state.zone == "unknown":
        return Phase.UNKNOWN
    if state.here != "unknown" and abs(state.speed_per_s) < _HOLD_SPEED_PER_S:
        at_top = (state.here == "start") == movement.eccentric_first
        return Phase.TOP if at_top else Phase.BOTTOM
    going_out = state.speed_per_s > 0
    return Phase.ECCENTRIC if going_out == movement.eccentric_first else Phase.CONCENTRIC


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
        Its `repetitions` hold everything counted so far. The latest one still grows until the
        movement settles: end, tempo and ranges of motion are final once the next one begins.
    """
    time_s = observation.time_s
    progress = movement.progress(observation.features)
    if math.isnan(progress):
        if time_s - state.seen_s > _LOST_S:
            return replace(lose_sight(state), time_s=time_s)
        return replace(state, time_s=time_s, progress=math.nan)
    before, seen_s = state.here, state.seen_s
    state = _observe(movement, state, observation, progress)
    if before != state.here:
        if before == "start":
            state = replace(state, left_start_s=seen_s)
        elif before == "full":
            state = replace(state, left_full_s=seen_s)
            if not movement.eccentric_first and not state.open:
                # Nothing was counted there: the next repetition begins on the way down.
                state = _start_next(state)
        if state.here == "start":
            state = _arrive_start(movement, state)
        elif state.here == "full":
            state = _arrive_full(movement, state)
    return _refine(movement, state) if state.open else state


def _observe(
    movement: Movement, state: CounterState, observation: Observation, progress: float
) -> CounterState:
    """Take in one frame, without judging it."""
    time_s = observation.time_s
    dt_s = 0.0 if math.isnan(state.time_s) else time_s - state.time_s
    evidence = state.evidence or no_evidence()
    here = _zone_of(movement, progress, max(progress, evidence.depth))
    speed = state.speed_per_s
    elapsed_s = time_s - state.seen_s
    if elapsed_s > 0:
        gain = 1.0 - math.exp(-elapsed_s / _SPEED_S)
        speed += gain * ((progress - state.trace[-1][1]) / elapsed_s - speed)
    trace = (*state.trace, (time_s, progress))
    observations = (*state.observations, observation)
    if time_s - trace[0][0] > _TRACE_S:
        trace, observations = trace[1:], observations[1:]
    # `dataclasses.replace` would take five times as long, for each frame and each exercise.
    return CounterState(
        time_s=time_s,
        since_s=time_s if math.isnan(state.since_s) else state.since_s,
        seen_s=time_s,
        progress=progress,
        speed_per_s=speed,
        zone=state.zone,
        here=here,
        left_start_s=state.left_start_s,
        left_full_s=state.left_full_s,
        trace=trace,
        observations=observations,
        evidence=accumulate(evidence, observation, progress, dt_s, here),
        open=state.open,
        repetitions=state.repetitions,
        n_rejected=state.n_rejected,
    )


def _zone_of(movement: Movement, progress: float, depth: float) -> Zone:
    # Somebody who goes beyond the full position has a larger scale altogether.
    if progress <= movement.enter_start * min(max(1.0, depth), _MAX_STRETCH):
        return "start"
    if progress >= movement.enter_full:
        return "full"
    return "unknown"


def _arrive_start(movement: Movement, state: CounterState) -> CounterState:
    came_from_full = state.zone == "full"
    state = replace(state, zone="start")
    if came_from_full and movement.eccentric_first:
        return _try_count(movement, state)
    return state


def _arrive_full(movement: Movement, state: CounterState) -> CounterState:
    came_from_start = state.zone == "start"
    state = replace(state, zone="full")
    if came_from_start and not movement.eccentric_first:
        return _try_count(movement, state)
    return state


def _try_count(movement: Movement, state: CounterState) -> CounterState:
    """Count the repetition that ends here, or note that it was none."""
    if not _is_repetition(movement, state):
        return replace(_start_next(state), n_rejected=state.n_rejected + 1)
    number = len(state.repetitions) + 1
    return replace(
        state, open=True, repetitions=(*state.repetitions, _measured(movement, state, number))
    )


def _is_repetition(movement: Movement, state: CounterState) -> bool:
    evidence, time_s = state.evidence, state.time_s
    if evidence is None or not all(
        any(holds(condition, evidence) for condition in alternatives)
        for alternatives in movement.conditions
    ):
        return False
    away_s, travel_s = time_s - state.left_full_s, time_s - state.left_start_s
    if movement.eccentric_first:
        away_s, travel_s = travel_s, away_s
        # Under way when first seen, as a lift from the floor: believed if watched for a while.
        if math.isnan(state.left_start_s) and time_s - state.since_s < _MIN_WATCHED_S:
            return False
    # Comparisons with an instant that was not seen (NaN) are false.
    return not (
        away_s < movement.min_s
        or travel_s < movement.min_travel_s
        or travel_s > movement.max_travel_s
    )


def _measured(movement: Movement, state: CounterState, number: int) -> Repetition:
    tempo = measure_tempo(state.trace)
    first_s, last_s = tempo.start_s - _AROUND_S, tempo.end_s + _AROUND_S
    within = [o for o in state.observations if first_s <= o.time_s <= last_s]
    eccentric_s, concentric_s = tempo.out_s, tempo.back_s
    if not movement.eccentric_first:
        eccentric_s, concentric_s = concentric_s, eccentric_s
    return Repetition(
        exercise=movement.exercise,
        number=number,
        start_s=tempo.start_s,
        turn_s=tempo.turn_s,
        end_s=tempo.end_s,
        eccentric_s=eccentric_s,
        hold_s=tempo.hold_s,
        concentric_s=concentric_s,
        depth=max(progress for _, progress in state.trace),
        ranges=ranges_of_motion(within),
    )


def _refine(movement: Movement, state: CounterState) -> CounterState:
    """Let the latest repetition grow until the start position is settled in."""
    measured = _measured(movement, state, len(state.repetitions))
    if state.time_s - state.trace[0][0] > _TRACE_S:
        return _start_next(state)
    if state.zone == "start":
        turn = next(i for i, (time_s, _) in enumerate(state.trace) if time_s >= measured.turn_s)
        lowest = min(progress for _, progress in state.trace[turn:])
        left = state.here != "start"
        rested = state.time_s - measured.end_s > _SETTLED_S
        if left or rested or state.progress > lowest + _SETTLED_RISE:
            return _start_next(state)
    return replace(state, repetitions=(*state.repetitions[:-1], measured))


def _start_next(state: CounterState) -> CounterState:
    """Begin the next repetition with the present frame."""
    evidence = state.evidence
    if evidence is not None:
        # It begins where the last one ended: at a start position that may be left at once.
        evidence = continued(evidence) if state.zone == "start" else None
    return replace(
        state,
        open=False,
        trace=state.trace[-1:],
        observations=state.observations[-1:],
        evidence=evidence,
    )
