"""How many of 100 points one repetition, or a set of them, is worth, and where the others went.

Each component has a loss: nothing while the repetition strays as correct ones usually do, then
growing. The total is ``100 exp(-sum of losses)``, so that it stays between 0 and 100, and what it
lacks is shared among the losses in proportion. What this camera does not show loses nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.form_comparison import (
    AT_LIMIT,
    MAX_LOSS,
    MIN_SIGNALS,
    Comparison,
    beyond,
    columns_of,
    compare,
)
from pose_analyzer.form_measures import (
    IS_ANGLE,
    PAIRS,
    FormMeasures,
    angle_of,
    joint_of,
    measure_form,
    other_side,
)
from pose_analyzer.form_references import FormReference, Pattern
from pose_analyzer.form_types import (
    CannotJudge,
    Component,
    FormScore,
    PointLoss,
    Reason,
    ReferenceUsed,
    RepetitionTrack,
    Unit,
)
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.types import Phase, View

# Loss per standard deviation beyond what is free.
_PER_SD: Final = {Component.SMOOTHNESS: 0.05, Component.RANGE: 0.08, Component.TEMPO: 0.1}
_FREE_SD: Final = {Component.SMOOTHNESS: 2.0, Component.RANGE: 1.65, Component.TEMPO: 2.0}
# Whatever people's scatter, half again as slow or as fast as the reference is within limits.
_FREE_TEMPO: Final = 0.4
# Smaller losses are not worth a word: what they lack is shared among the others of the component.
_MIN_POINTS: Final = 0.5
# A signal that moves by less than this has no range to cover.
_MIN_RANGE: Final = np.where(IS_ANGLE, 15.0, 0.06)
# Where a deviation is as large as this share of its worst, it belongs to the same stretch.
_STRETCH_RATIO: Final = 0.5
# Places follow from angles: a bent hip moves knees and shoulders. Where both are off, angles are to
# blame; from the side, which shows all angles of legs and trunk, they alone and the pelvis's way.
_BLAME: Final = np.where(IS_ANGLE, 1.0, 0.2)
_IS_CONSEQUENCE: Final = ~IS_ANGLE & ~np.array(["pelvis" in name for name in SIGNAL_NAMES])
_RANGED: Final = np.array([n.endswith(("_deg", "pelvis_up")) for n in SIGNAL_NAMES])


@dataclass(frozen=True, slots=True)
class _Part:
    """A share of one component's loss, and what is to blame."""

    component: Component
    loss: float
    joint: str
    amount: float
    unit: Unit
    row: int
    first: int
    last: int
    text: str


def score_repetition(track: RepetitionTrack, reference: FormReference | None) -> FormScore:
    """Score one repetition against a reference.

    Parameters
    ----------
    track
        The repetition's frames.
    reference
        Of the same exercise; None if there is none: then nothing is judged.

    Returns
    -------
    FormScore
        Without a total if there is no reference for this view, or nothing to be judged in it.
    """
    if len(track.times_s) < 2 or not np.all(np.diff(track.times_s) > 0.0):
        return _unscored(Reason.CONFIDENCE)
    return score_measures(measure_form(track), track, reference)


def score_measures(
    measures: FormMeasures, track: RepetitionTrack, reference: FormReference | None
) -> FormScore:
    """As `score_repetition`, with what has been measured already."""
    pattern = (
        None
        if reference is None
        else reference.pattern_at(measures.yaw_deg, returns_only=measures.returns_only)
    )
    if reference is None or pattern is None:
        return _unscored(Reason.NO_REFERENCE)
    comparison = compare(measures, pattern, columns_of(reference.signals))
    if np.count_nonzero(comparison.judged) < MIN_SIGNALS:
        return _unscored(Reason.CONFIDENCE)
    parts = _parts(measures, comparison, pattern, AT_LIMIT[reference.mode])
    sums = {
        component: None if found is None else min(MAX_LOSS, sum(part.loss for part in found))
        for component, found in parts.items()
    }
    lost = sum(loss for loss in sums.values() if loss is not None)
    total = 100.0 * float(np.exp(-lost))
    per_loss = (100.0 - total) / lost if lost > 0.0 else 0.0
    times_s = np.interp(comparison.rows, np.arange(len(measures.times_s)), measures.times_s)
    losses = [
        _point_loss(part, per_loss, times_s, track)
        for found in parts.values()
        for part in _worth_telling(found or (), per_loss)
    ]
    return FormScore(
        total=total,
        components={c: None if s is None else 100.0 * float(np.exp(-s)) for c, s in sums.items()},
        losses=tuple(sorted(losses, key=lambda loss: -loss.points)),
        cannot_judge=(
            *_unseen_angles(reference, comparison, pattern.view),
            *(CannotJudge(c.value, Reason.VIEW) for c, s in sums.items() if s is None),
        ),
        reference=ReferenceUsed(
            reference.name, reference.mode, pattern.view, pattern.mean, reference.signals
        ),
    )


def score_set(scores: Sequence[FormScore]) -> FormScore:
    """Score a set: means over the repetitions that could be scored, with all their losses."""
    known = [score for score in scores if score.total is not None]
    if not known:
        return _unscored(Reason.NO_REFERENCE) if not scores else replace(scores[-1], losses=())
    losses = [
        replace(loss, points=loss.points / len(known)) for score in known for loss in score.losses
    ]
    cannot = dict.fromkeys(item for score in known for item in score.cannot_judge)
    return FormScore(
        total=float(np.mean([score.total for score in known if score.total is not None])),
        components={c: _mean_known(score.components[c] for score in known) for c in Component},
        losses=tuple(sorted(losses, key=lambda loss: -loss.points)),
        cannot_judge=tuple(cannot),
        reference=known[-1].reference,
    )


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _unscored(reason: Reason) -> FormScore:
    return FormScore(
        total=None,
        components=dict.fromkeys(Component),
        losses=(),
        cannot_judge=tuple(CannotJudge(component.value, reason) for component in Component),
        reference=None,
    )


def _parts(
    measures: FormMeasures,
    comparison: Comparison,
    pattern: Pattern,
    at_limit: Mapping[Component, float],
) -> dict[Component, tuple[_Part, ...] | None]:
    return {
        Component.DEVIATION: tuple(_deviation(comparison, pattern, at_limit[Component.DEVIATION])),
        Component.SYMMETRY: None
        if np.isnan(comparison.asymmetry)
        else tuple(_symmetry(comparison, pattern, at_limit[Component.SYMMETRY])),
        Component.SMOOTHNESS: _smoothness(measures, pattern),
        Component.RANGE: _range(comparison, pattern),
        Component.TEMPO: _tempo(measures, pattern),
    }


def _deviation(comparison: Comparison, pattern: Pattern, at_limit: float) -> Iterator[_Part]:
    """Share the loss among the signals that are further off than usual."""
    usual, _ = limits = pattern.scatter.deviation_limits
    loss = at_limit * beyond(comparison.deviation, limits)
    excess = np.nan_to_num(np.maximum(comparison.strangeness**2 - usual**4, 0.0)) * _BLAME
    if pattern.view is View.SIDE and excess[IS_ANGLE].any():
        excess = np.where(_IS_CONSEQUENCE, 0.0, excess)
    if not loss > 0.0:
        return
    for column in np.flatnonzero(excess):
        row, first, last = _stretch(comparison.differences[:, column])
        amount = float(comparison.differences[row, column])
        yield _Part(
            Component.DEVIATION,
            loss * float(excess[column] / excess.sum()),
            joint_of(SIGNAL_NAMES[column], pattern.view, swapped=comparison.image.swapped),
            amount,
            "deg" if IS_ANGLE[column] else "body_ratio",
            row,
            first,
            last,
            _direction(amount),
        )


def _symmetry(comparison: Comparison, pattern: Pattern, at_limit: float) -> Iterator[_Part]:
    usual, _ = limits = pattern.scatter.symmetry_limits
    loss = at_limit * beyond(comparison.asymmetry, limits)
    excess = np.nan_to_num(np.maximum((comparison.asymmetries**2).mean(axis=0) - usual**2, 0.0))
    if not loss > 0.0:
        return
    for pair in np.flatnonzero(excess):
        row, first, last = _stretch(comparison.asymmetries[:, pair])
        left, right = PAIRS[pair]
        amount = float(comparison.differences[row, left] - comparison.differences[row, right])
        name = SIGNAL_NAMES[left if amount > 0.0 else right]
        yield _Part(
            Component.SYMMETRY,
            loss * float(excess[pair] / excess.sum()),
            joint_of(name, pattern.view, swapped=comparison.image.swapped),
            abs(amount),
            "deg" if IS_ANGLE[left] else "body_ratio",
            row,
            first,
            last,
            "more",
        )


def _smoothness(measures: FormMeasures, pattern: Pattern) -> tuple[_Part, ...] | None:
    missing = pattern.smoothness - measures.smoothness
    if np.isnan(missing):
        return None
    excess = missing / pattern.scatter.smoothness - _FREE_SD[Component.SMOOTHNESS]
    return _whole(Component.SMOOTHNESS, excess, -missing, "ratio", "less")


def _tempo(measures: FormMeasures, pattern: Pattern) -> tuple[_Part, ...]:
    ratio = np.log(measures.duration_s) - pattern.log_duration
    free = max(_FREE_TEMPO, _FREE_SD[Component.TEMPO] * pattern.scatter.log_duration)
    excess = (abs(ratio) - free) / pattern.scatter.log_duration
    amount = measures.duration_s - float(np.exp(pattern.log_duration))
    return _whole(Component.TEMPO, excess, amount, "s", "slower" if ratio > 0.0 else "faster")


def _whole(
    component: Component, excess_sd: float, amount: float, unit: Unit, text: str
) -> tuple[_Part, ...]:
    """Loss of the whole repetition, blamed on no joint."""
    if not excess_sd > 0.0:
        return ()
    loss = _PER_SD[component] * excess_sd
    return (_Part(component, loss, "body", amount, unit, 12, 0, 24, text),)


def _range(comparison: Comparison, pattern: Pattern) -> tuple[_Part, ...] | None:
    """Too small a range costs; too large a one shows as a deviation."""
    wanted = np.ptp(pattern.mean, axis=0)
    with np.errstate(invalid="ignore"):
        judged = comparison.judged & _RANGED & (wanted > _MIN_RANGE)
    columns = np.flatnonzero(judged)
    if not columns.size:
        return None
    lacking = wanted - np.ptp(comparison.image.signals, axis=0)
    excess = lacking / pattern.scatter.ranges - _FREE_SD[Component.RANGE]
    return tuple(
        _Part(
            Component.RANGE,
            _PER_SD[Component.RANGE] * float(excess[column]) / columns.size,
            joint_of(SIGNAL_NAMES[column], pattern.view, swapped=comparison.image.swapped),
            -float(lacking[column]),
            "deg" if IS_ANGLE[column] else "body_ratio",
            *_stretch(pattern.mean[:, column] - pattern.mean[0, column]),
            "less",
        )
        for column in columns
        if excess[column] > 0.0
    )


def _stretch(z: np.ndarray) -> tuple[int, int, int]:
    """Row of the largest magnitude, and the rows around it of at least half as much, same sign."""
    row = int(np.argmax(np.abs(z)))
    part_of = z * np.sign(z[row]) >= _STRETCH_RATIO * abs(z[row])
    outside = np.flatnonzero(~part_of)
    before, after = outside[outside < row], outside[outside > row]
    first = int(before[-1]) + 1 if before.size else 0
    last = int(after[0]) - 1 if after.size else len(z) - 1
    return row, first, last


def _direction(amount: float) -> str:
    return "more" if amount > 0.0 else "less"


def _worth_telling(parts: Sequence[_Part], per_loss: float) -> list[_Part]:
    """Leave out parts of few points, but always keep the largest; the sum stays.

    The sum is what the component loses, which is at most `MAX_LOSS`.
    """
    if not parts:
        return []
    lost = min(MAX_LOSS, sum(part.loss for part in parts))
    largest = max(part.loss for part in parts)
    kept = [p for p in parts if p.loss == largest or per_loss * p.loss >= _MIN_POINTS]
    factor = lost / sum(part.loss for part in kept)
    return [replace(part, loss=part.loss * factor) for part in kept]


def _point_loss(
    part: _Part, per_loss: float, times_s: Float[np.ndarray, "25"], track: RepetitionTrack
) -> PointLoss:
    at_s = float(times_s[part.row])
    return PointLoss(
        component=part.component,
        points=per_loss * part.loss,
        repetition=track.repetition.number,
        phase=_phase_at(track, at_s),
        joint=part.joint,
        amount=part.amount,
        unit=part.unit,
        at_s=at_s,
        from_s=float(times_s[part.first]),
        to_s=float(times_s[part.last]),
        text_key=f"{part.component.value}.{part.text}",
        row=part.row,
    )


def _phase_at(track: RepetitionTrack, time_s: float) -> Phase:
    return track.phases[int(np.argmin(np.abs(track.times_s - time_s)))]


def _unseen_angles(
    reference: FormReference, comparison: Comparison, view: View
) -> Iterator[CannotJudge]:
    """Angles the exercise is about, but which are not to be seen from here."""
    for column, signal in enumerate(SIGNAL_NAMES):
        angle = angle_of(signal)
        if angle is None or signal not in reference.signals:
            continue
        # From the front, what is judged of the trunk is how it leans sideways.
        is_sagittal = angle == "trunk_inclination" or "hip" in angle or "knee" in angle
        hidden = is_sagittal and view is not View.SIDE
        if comparison.judged[column] and not hidden:
            continue
        name = other_side(angle) if comparison.image.swapped else angle
        yield CannotJudge(name, Reason.VIEW if hidden else Reason.CONFIDENCE)
