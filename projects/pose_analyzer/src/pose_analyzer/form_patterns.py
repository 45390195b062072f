"""Patterns made of measured repetitions: of many people, or of one person's few."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.form_comparison import compare
from pose_analyzer.form_measures import IS_ANGLE, N_ROWS, PAIRS, FormMeasures, measure_form
from pose_analyzer.form_references import FormReference, Pattern, Scatter
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.repetition_tracks import returns_only, view_at, way_back
from pose_analyzer.types import View

# Scatter of one person's correct repetitions where no data say better: the medians of those that
# scripts/make_pose_references.py finds in the people of UI-PRMD, keypoint errors included. Gym
# sets are less even in tempo than those recordings.
_USUAL: Final = np.where(IS_ANGLE, 5.0, 0.02)
_USUAL_RANGE: Final = np.where(IS_ANGLE, 8.0, 0.02)
_USUAL_ASYMMETRY_FACTOR: Final = 2.6
_USUAL_LOG_DURATION: Final = 0.2
_USUAL_SMOOTHNESS: Final = 0.5
_USUAL_LIMITS: Final = (1.2, 2.1)
_USUAL_SYMMETRY_LIMITS: Final = (0.8, 1.4)
# So much further do people stray from each other than each from themselves: the same source.
_BETWEEN_PEOPLE: Final = 1.8
# Nobody is known more closely than this, however alike the repetitions a pattern was made of.
_FLOOR: Final = np.where(IS_ANGLE, 1.5, 0.007)
N_OWN: Final = 3
"""Repetitions that a personal pattern is usually made of."""
# How many repetitions of one's own weigh as much as what others' scatter tells of one's own.
_LENT_COUNTS: Final = 2
_LEFT: Final = np.array([left for left, _ in PAIRS])
_RIGHT: Final = np.array([right for _, right in PAIRS])


@dataclass(frozen=True, slots=True)
class TeachingSpec:
    """What a reference to be taught is called and meant for."""

    name: str
    exercise: str
    signals: tuple[str, ...]
    """What is compared; see `form_references.signals_for`."""
    provenance: Mapping[str, str]
    for_everyone: bool = False
    """Others than who showed the repetitions are compared with it."""


Session = Sequence[FormMeasures]
"""Repetitions of one person, from one place of the camera."""
Signals = Float[np.ndarray, "repetitions 25 39"]


def taught_pattern(
    repetitions: Sequence[FormMeasures],
    general: Pattern | None = None,
    *,
    for_everyone: bool = False,
) -> Pattern:
    """The way of who showed these repetitions, one or more, all seen from one view.

    Parameters
    ----------
    repetitions
        At least one.
    general
        The same exercise and view of many people, if there is one: it knows how far one person's
        repetitions stray, which few repetitions do not tell.
    for_everyone
        Whether others are to be compared with it, who are built otherwise.
    """
    if for_everyone:
        between = usual_scatter(_BETWEEN_PEOPLE) if general is None else general.scatter
        return _pattern(repetitions, between)
    own = None if general is None else general.own_scatter
    pattern = _pattern(repetitions, usual_scatter() if own is None else own)
    # What is lent holds for a mean of three; the mean of fewer is itself less certain.
    widened = np.sqrt((1.0 + 1.0 / len(repetitions)) / (1.0 + 1.0 / N_OWN))
    lent = pattern.scatter
    lent = replace(
        lent,
        offsets=lent.offsets * widened,
        courses=lent.courses * widened,
        ranges=lent.ranges * widened,
        asymmetry=lent.asymmetry * widened,
    )
    scatter = _widened_by(lent, _oriented(repetitions, pattern.mean), pattern.mean)
    return replace(pattern, n_people=1, scatter=scatter)


def _widened_by(lent: Scatter, signals: Signals, mean: Float[np.ndarray, "25 39"]) -> Scatter:
    """Scatter of somebody whose repetitions lie so far apart, never less than what is lent.

    Variances of a few repetitions are pooled with the lent one as if that came of `_LENT_COUNTS`
    more (the mean of an inverse gamma posterior; Gelman et al. 2013, "Bayesian Data Analysis",
    section 2.6). They only widen: repetitions in a row are more alike than those of another day.
    """
    n_free = len(signals) - 1
    if n_free < 1:
        return lent
    residuals = signals - mean
    offsets = residuals.mean(axis=1)
    lopsided = residuals[:, :, _LEFT] - residuals[:, :, _RIGHT]
    ranges = np.ptp(signals, axis=1)

    def pooled(lent_sd: np.ndarray, squares: np.ndarray) -> np.ndarray:
        known = np.where(np.isfinite(squares), squares, n_free * lent_sd**2)
        variance = (_LENT_COUNTS * lent_sd**2 + known) / (_LENT_COUNTS + n_free)
        sd: np.ndarray = np.maximum(lent_sd, np.sqrt(variance))
        return sd

    return replace(
        lent,
        offsets=pooled(lent.offsets, (offsets**2).sum(axis=0)),
        courses=pooled(lent.courses, ((residuals - offsets[:, None]) ** 2).sum(axis=0)),
        ranges=pooled(lent.ranges, ((ranges - ranges.mean(axis=0)) ** 2).sum(axis=0)),
        asymmetry=pooled(lent.asymmetry, (lopsided**2).mean(axis=1).sum(axis=0)),
    )


def general_pattern(
    people: Mapping[str, Sequence[Session]], wanted: Bool[np.ndarray, "39"], view: View
) -> Pattern:
    """What the correct repetitions of several people have in common, seen from one view.

    Limits come from people compared with a pattern of the others, and of each person's repetitions
    with a pattern of three others of their own.

    Parameters
    ----------
    people
        At least three, each with sessions of more than `N_OWN` repetitions.
    wanted
        Signals that matter for the exercise.
    view
        Where the camera stood.
    """
    sessions = [session for of_person in people.values() for session in of_person]
    own_scatter = _own_scatter(sessions, wanted, view)
    together = {name: [r for one in own for r in one] for name, own in people.items()}
    whole = _general(list(together.values()), view)
    left_out = [
        (found.deviation, found.asymmetry)
        for name in together
        for others in [[reps for other, reps in together.items() if other != name]]
        for pattern in [_general(others, view)]
        for r in together[name]
        for found in [compare(r, pattern, wanted)]
    ]
    return replace(whole, scatter=_with_limits(whole.scatter, left_out), own_scatter=own_scatter)


def taught_reference(
    spec: TeachingSpec, tracks: Sequence[RepetitionTrack], general: FormReference | None = None
) -> FormReference:
    """Make a reference of the repetitions somebody showed, with a pattern for each view of them.

    Raises
    ------
    ValueError
        If there is no repetition whose view is known.
    """
    known = [track for track in tracks if track.view is not View.UNKNOWN]
    halves = [way_back(track) for track in known if not returns_only(track.repetition)]
    shown = [measure_form(track) for track in (*known, *halves) if track is not None]
    if not shown:
        raise ValueError("no repetition was seen well enough to know from where")
    patterns = []
    for kind in dict.fromkeys((one.view, one.returns_only) for one in shown):
        alike = [one for one in shown if (one.view, one.returns_only) == kind]
        yaw_deg = float(np.median([one.yaw_deg for one in alike]))
        lender = None if general is None else general.pattern_at(yaw_deg)
        patterns.append(taught_pattern(alike, lender, for_everyone=spec.for_everyone))
    return FormReference(
        name=spec.name,
        exercise=spec.exercise,
        mode="general" if spec.for_everyone else "personal",
        provenance=spec.provenance,
        signals=spec.signals,
        patterns=tuple(patterns),
    )


def usual_scatter(factor: float = 1.0) -> Scatter:
    """Scatter of one person's repetitions where no data say better, or a multiple of it."""
    return Scatter(
        offsets=factor * _USUAL,
        courses=np.tile(factor * _USUAL, (N_ROWS, 1)),
        ranges=factor * _USUAL_RANGE,
        asymmetry=_USUAL_ASYMMETRY_FACTOR * factor * _USUAL[_LEFT],
        log_duration=factor * _USUAL_LOG_DURATION,
        smoothness=factor * _USUAL_SMOOTHNESS,
        deviation_limits=_USUAL_LIMITS,
        symmetry_limits=_USUAL_SYMMETRY_LIMITS,
    )


def _general(people: Sequence[Session], view: View) -> Pattern:
    everybody = [repetition for person in people for repetition in person]
    pattern = _pattern(everybody, usual_scatter())
    signals = _oriented(everybody, pattern.mean)
    return replace(
        pattern,
        view=view,
        n_people=len(people),
        scatter=_scatter_of(
            signals - np.nanmean(signals, axis=0),
            np.ptp(signals, axis=1),
            [np.log(r.duration_s) for r in everybody],
            [r.smoothness for r in everybody],
        ),
    )


def _own_scatter(
    sessions: Sequence[Session], wanted: Bool[np.ndarray, "39"], view: View
) -> Scatter:
    """Of each person's repetitions about the mean of `N_OWN` others of the same session."""
    residuals, ranges, durations, smoothness, pairs = [], [], [], [], []
    for repetitions in sessions:
        for first in range(0, len(repetitions) - N_OWN + 1, N_OWN):
            own = repetitions[first : first + N_OWN]
            rest = [*repetitions[:first], *repetitions[first + N_OWN :]]
            pattern = _pattern(own, usual_scatter())
            signals = _oriented(rest, pattern.mean)
            residuals.append(signals - pattern.mean)
            ranges.append(np.ptp(signals, axis=1) - np.ptp(pattern.mean, axis=0))
            durations += [np.log(r.duration_s) - pattern.log_duration for r in rest]
            smoothness += [r.smoothness - pattern.smoothness for r in rest]
            pairs.append((pattern, _oriented(own, pattern.mean), rest))
    scatter = _scatter_of(np.concatenate(residuals), np.concatenate(ranges), durations, smoothness)
    compared = []
    for pattern, shown, rest in pairs:
        own_scatter = _widened_by(scatter, shown, pattern.mean)
        alone = replace(pattern, scatter=own_scatter, view=view)
        compared += [compare(repetition, alone, wanted) for repetition in rest]
    return _with_limits(scatter, [(c.deviation, c.asymmetry) for c in compared])


def _pattern(repetitions: Sequence[FormMeasures], scatter: Scatter) -> Pattern:
    mean = _mean(_oriented(repetitions, repetitions[0].images[0].signals))
    mean = _mean(_oriented(repetitions, mean))
    yaw_deg = float(np.median([r.yaw_deg for r in repetitions]))
    return Pattern(
        view=view_at(yaw_deg),
        yaw_deg=yaw_deg,
        n_people=1,
        n_repetitions=len(repetitions),
        mean=mean,
        log_duration=float(np.mean([np.log(r.duration_s) for r in repetitions])),
        smoothness=float(np.mean([r.smoothness for r in repetitions])),
        scatter=scatter,
        returns_only=repetitions[0].returns_only,
    )


def _oriented(repetitions: Sequence[FormMeasures], target: Float[np.ndarray, "25 39"]) -> Signals:
    """Each repetition, or its mirror image where that is closer to the target."""
    return np.stack([closer_signals(r, target) for r in repetitions])


def closer_signals(
    repetition: FormMeasures, target: Float[np.ndarray, "25 39"]
) -> Float[np.ndarray, "25 39"]:
    """Signals of the repetition, or of its mirror image where that is closer to the target."""
    plain, mirrored = (image.signals for image in repetition.images)
    one, other = (np.nansum(((signals - target) / _USUAL) ** 2) for signals in (plain, mirrored))
    return mirrored if other < one else plain


def _mean(signals: Signals) -> Float[np.ndarray, "25 39"]:
    """NaN where fewer than half of the repetitions know."""
    known = np.isfinite(signals)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, signals, 0.0).sum(axis=0) / known.sum(axis=0)
    enough: Float[np.ndarray, "25 39"] = np.where(known.mean(axis=0) >= 0.5, mean, np.nan)
    return enough


def _scatter_of(
    residuals: Signals,
    ranges: Float[np.ndarray, "repetitions 39"],
    log_durations: Sequence[float],
    smoothness: Sequence[float],
) -> Scatter:
    """Sd of the residuals about zero, half shrunk to their mean over phases, known better."""
    offsets = residuals.mean(axis=1)
    variance = np.nanmean((residuals - offsets[:, None]) ** 2, axis=0)
    courses = np.sqrt((variance + np.nanmean(variance, axis=0)) / 2.0)
    lopsided = residuals[:, :, _LEFT] - residuals[:, :, _RIGHT]
    return Scatter(
        offsets=np.maximum(np.sqrt(np.nanmean(offsets**2, axis=0)), _FLOOR),
        courses=np.maximum(courses, _FLOOR),
        ranges=np.maximum(np.nanstd(ranges, axis=0), _FLOOR),
        asymmetry=np.maximum(np.sqrt(np.nanmean(lopsided**2, axis=(0, 1))), _FLOOR[_LEFT]),
        log_duration=float(np.std(log_durations)),
        smoothness=float(np.std(smoothness)),
        deviation_limits=_USUAL_LIMITS,
        symmetry_limits=_USUAL_SYMMETRY_LIMITS,
    )


def _with_limits(scatter: Scatter, found: Sequence[tuple[float, float]]) -> Scatter:
    """Limits from deviations and asymmetries of correct repetitions."""
    low, high = np.nanquantile(np.array(found), [0.5, 0.95], axis=0).tolist()
    return replace(scatter, deviation_limits=(low[0], high[0]), symmetry_limits=(low[1], high[1]))
