"""What is said of each finished repetition: score, faults, anomaly, cue. One pure step per frame.

A repetition is judged once, when counting is done with it: its end may move until the next one
begins or the person rests. All memory is in `JudgeState`, so the same frames give the same words
whichever way they arrive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pose_analyzer.form_anomalies import AnomalyState, judge_anomaly, remember
from pose_analyzer.form_anomaly_detector import FormModel
from pose_analyzer.form_baseline import (
    PersonalBaseline,
    accept,
    from_reference,
    is_acceptable,
)
from pose_analyzer.form_coach import CoachConfig, CoachState, CoachTexts, advise
from pose_analyzer.form_faults import FaultRule, SideAmounts, look_for_faults
from pose_analyzer.form_measures import measure_form
from pose_analyzer.form_references import FormReference
from pose_analyzer.form_scorer import score_measures
from pose_analyzer.form_session import SessionConfig, SessionState, recognised
from pose_analyzer.form_types import FormUpdate, RepetitionTrack
from pose_analyzer.live_form import LiveForm, LiveFormState, follow_form
from pose_analyzer.repetition_tracks import AROUND_S, first_s, last_s, track_of
from pose_analyzer.temporal_analyzer import CounterState, Movement
from pose_analyzer.types import PersonFrame, Phase


@dataclass(frozen=True, slots=True, eq=False)
class ExerciseForm:
    """What one exercise is judged by."""

    signals: tuple[str, ...]
    """What is compared; see `form_references.signals_for`."""
    rules: tuple[FaultRule, ...] = ()
    reference: FormReference | None = None
    keep_reference: bool = False
    """Somebody chose it: nobody's own repetitions take its place."""
    own: FormReference | None = None
    """What earlier sessions taught of this person's own way; it takes the reference's place."""
    models: Mapping[str, FormModel] = field(default_factory=dict)
    """By view."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgeConfig:
    """How form is judged."""

    exercises: Mapping[str, ExerciseForm]
    """By name; what is not here is counted but not judged."""
    texts: CoachTexts
    coach: CoachConfig = field(default_factory=CoachConfig)


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What is known of one person's way of doing one exercise."""

    n_judged: int = 0
    """Repetitions of the present count that are done with."""
    coach: CoachState = field(default_factory=CoachState)
    baseline: PersonalBaseline | None = None
    anomalies: AnomalyState = field(default_factory=AnomalyState)
    amounts: SideAmounts = field(default_factory=dict)
    """Of the latest repetition of each side."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgeState:
    """What is remembered of one person between frames; ``JudgeState()`` first."""

    frames: tuple[PersonFrame, ...] = ()
    """Those a repetition not yet judged may need."""
    learned: Mapping[str, Learned] = field(default_factory=dict)
    """By exercise."""
    live: LiveFormState = field(default_factory=LiveFormState)
    """Of the repetition under way."""
    now: LiveForm | None = None
    """How the latest frame compares; None between repetitions and where nothing can be judged."""


# While no exercise is recognised, so much is kept for the repetitions that will show which it is.
_UNRECOGNISED_S: Final = 12.0
# Nothing older is needed: counting remembers no longer courses either.
_LONGEST_S: Final = 32.0
# Until so many frames can go, none are dropped: each time costs a copy.
_TRIM_FRAMES: Final = 16


def step(
    config: JudgeConfig,
    state: JudgeState,
    session: SessionConfig,
    counted: SessionState,
    person: PersonFrame,
) -> tuple[JudgeState, tuple[FormUpdate, ...]]:
    """Take in one frame of one person, and judge what has ended.

    Parameters
    ----------
    config
        The same at every step.
    state
        ``JudgeState()`` first, then what the previous step returned.
    session, counted, person
        Configuration, state and answer of `form_session.step` for this frame.

    Returns
    -------
    tuple of JudgeState and tuple of FormUpdate
        Mostly none; several when an exercise is recognised late.
    """
    if person.landmarks is not None:
        person = replace(person, landmarks=None, angles_3d=None)
    state = replace(state, frames=(*state.frames, person))
    index = recognised(session, counted)
    if index is None:
        return _trimmed(state, person.time_s - _UNRECOGNISED_S), ()
    counter = counted.counters[index]
    state, updates = _judge_ended(config, state, counter, person.time_s)
    state = _followed(config, state, session.movements[index], counter, person)
    return _trimmed(state, _needed_from_s(state, counter, person.time_s)), updates


def finish(
    config: JudgeConfig, state: JudgeState, session: SessionConfig, counted: SessionState
) -> tuple[JudgeState, tuple[FormUpdate, ...]]:
    """Judge what has ended when no more frames come."""
    index = recognised(session, counted)
    if index is None:
        return state, ()
    return _judge_ended(config, state, counted.counters[index], float("inf"))


def n_settled(state: JudgeState, exercise: str) -> int:
    """How many of the repetitions counted of an exercise are done with."""
    known = state.learned.get(exercise)
    return 0 if known is None else known.n_judged


def forget_counts(state: JudgeState) -> JudgeState:
    """Begin to count anew; what was learned of the person stays."""
    return JudgeState(
        learned={
            exercise: replace(one, n_judged=0, coach=CoachState())
            for exercise, one in state.learned.items()
        }
    )


def _followed(
    config: JudgeConfig,
    state: JudgeState,
    movement: Movement,
    counter: CounterState,
    person: PersonFrame,
) -> JudgeState:
    """Compare the frame with the reference, as part of the repetition under way."""
    form = config.exercises.get(movement.exercise)
    rest = Phase.TOP if movement.eccentric_first else Phase.BOTTOM
    # Nobody rests for long within a repetition, but some wait for long between two.
    if form is None or person.phase is rest:
        return replace(state, live=LiveFormState(), now=None)
    live = LiveFormState() if len(counter.trace) <= 1 else state.live
    learned = state.learned.get(movement.exercise) or _nothing_learned(movement.exercise, form)
    live, now = follow_form(_reference(form, learned, person.view.yaw_deg), live, person)
    return replace(state, live=live, now=now)


def _reference(
    form: ExerciseForm, learned: Learned, yaw_deg: float, *, returns_only: bool = False
) -> FormReference | None:
    """What somebody is compared with: their own way once it is known from here."""
    own = None if learned.baseline is None else learned.baseline.reference()
    if own is None or own.pattern_at(yaw_deg, returns_only=returns_only) is None:
        return form.reference
    return own


def _judge_ended(
    config: JudgeConfig, state: JudgeState, counter: CounterState, now_s: float
) -> tuple[JudgeState, tuple[FormUpdate, ...]]:
    if not counter.repetitions:
        return state, ()
    exercise = counter.repetitions[0].exercise
    known = state.learned.get(exercise)
    n_judged = n_settled(state, exercise)
    if n_judged == len(counter.repetitions):
        return state, ()
    form = config.exercises.get(exercise)
    learned = known or _nothing_learned(exercise, form)
    is_last = now_s == float("inf")
    updates = []
    for position in range(n_judged, len(counter.repetitions)):
        repetition = counter.repetitions[position]
        settled = is_last or position < len(counter.repetitions) - 1 or not counter.open
        if not settled or now_s < last_s(repetition):
            break
        learned = replace(learned, n_judged=position + 1)
        before_s = counter.repetitions[position - 1].end_s if position else float("-inf")
        # Of what was counted before the exercise was recognised the frames may be gone.
        seen = state.frames and state.frames[0].time_s <= repetition.start_s
        track = track_of(state.frames, repetition, before_s) if seen else None
        if form is not None and track is not None:
            at_s = state.frames[-1].time_s
            learned, update = _judge(config, form, learned, track, at_s)
            updates.append(update)
    if learned.n_judged == n_judged:
        return state, ()
    return replace(state, learned={**state.learned, exercise: learned}), tuple(updates)


def _nothing_learned(exercise: str, form: ExerciseForm | None) -> Learned:
    if form is None or form.keep_reference:
        return Learned()
    if form.own is not None:
        return Learned(baseline=from_reference(form.own))
    if form.reference is not None and form.reference.mode == "personal":
        return Learned(baseline=from_reference(form.reference))
    return Learned(baseline=PersonalBaseline(exercise, form.signals))


def _judge(
    config: JudgeConfig, form: ExerciseForm, learned: Learned, track: RepetitionTrack, now_s: float
) -> tuple[Learned, FormUpdate]:
    """Judge one repetition, and learn from it if it was good."""
    measures = measure_form(track)
    reference = _reference(form, learned, measures.yaw_deg, returns_only=measures.returns_only)
    score = score_measures(measures, track, reference)
    findings = look_for_faults(track, form.rules, learned.amounts)
    view = track.view.value
    model = form.models.get(view)
    anomaly = None
    if model is not None and not measures.returns_only:
        anomaly = judge_anomaly(learned.anomalies, view, measures.features, model)
    number = track.repetition.number
    coach, cue = advise(config.coach, config.texts, learned.coach, findings, number, now_s)
    learned = replace(learned, coach=coach, amounts=findings.amounts)
    accepted = not findings.faults and is_acceptable(score)
    if accepted:
        anomalies = learned.anomalies
        if model is not None and not measures.returns_only:
            anomalies = remember(anomalies, view, measures.features, model)
        baseline = learned.baseline
        if baseline is not None:
            general = form.reference
            if general is not None and general.mode != "general":
                general = None
            baseline = accept(baseline, measures, general)
        learned = replace(learned, baseline=baseline, anomalies=anomalies)
    return learned, FormUpdate(
        track_id=track.track_id,
        repetition=number,
        score=score,
        faults=findings.faults,
        cannot_judge=findings.cannot_judge,
        anomaly=anomaly,
        cue=cue,
        exercise=track.repetition.exercise,
        yaw_deg=measures.yaw_deg,
        accepted=accepted,
    )


def _needed_from_s(state: JudgeState, counter: CounterState, now_s: float) -> float:
    """From when on frames may belong to a repetition that is still to be judged."""
    from_s = counter.trace[0][0] if counter.trace else now_s
    if counter.repetitions:
        n_judged = n_settled(state, counter.repetitions[0].exercise)
        if n_judged < len(counter.repetitions):
            from_s = min(from_s, first_s(counter.repetitions[n_judged]))
    return max(from_s - 2.0 * AROUND_S, now_s - _LONGEST_S)


def _trimmed(state: JudgeState, from_s: float) -> JudgeState:
    frames = state.frames
    if len(frames) <= _TRIM_FRAMES or frames[_TRIM_FRAMES].time_s >= from_s:
        return state
    first = next((i for i, frame in enumerate(frames) if frame.time_s >= from_s), len(frames))
    return replace(state, frames=frames[first:])
