"""Whether a repetition is done as it should be, by models of people who did it right and wrong.

Two ways: *personal*, against the person's own good repetitions, and *general*, without any. In both
trees decide that know faults (trained on people who acted them); beside them stands how unusual the
repetition is. Between normal and faulty lies a band in which the detector does not decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from pose_analyzer.form_anomaly_features import (
    N_PARTS,
    UNITS,
    Against,
    Course,
    Differences,
    closer_image,
    differences,
    general_features,
    in_units,
    leave_one_out,
)
from pose_analyzer.form_trees import Trees
from pose_analyzer.repetition_features import SIGNAL_NAMES, RepetitionFeatures

Verdict = Literal["normal", "faulty", "unsure"]
Mode = Literal["personal", "general", "none"]

MIN_REFERENCES: Final = 3
"""Own repetitions that make a personal baseline: each is also held against the others' mean."""
# Signals of which fewer are known say too little about the whole body.
_MIN_KNOWN_RATIO: Final = 0.6
# Differences beyond this many sd are no better known than that they are large.
_MAX_SD: Final = 20.0
_N_UNUSUAL: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """From measures of a repetition to the odds that it is faulty, and where to decide."""

    weights: Float[np.ndarray, "measures"]
    bias: float
    normal_below: float
    """Log odds below which a repetition is normal."""
    faulty_above: float
    """Log odds above which it is faulty."""

    def log_odds(self, measures: Float[np.ndarray, "n measures"]) -> Float[np.ndarray, "n"]:
        """Logistic regression; as many faulty as correct repetitions before anything is seen."""
        odds: Float[np.ndarray, "n"] = measures @ self.weights + self.bias
        return odds

    def verdict(self, log_odds: float) -> Verdict:
        """Normal, faulty, or neither."""
        if log_odds > self.faulty_above:
            return "faulty"
        return "normal" if log_odds < self.normal_below else "unsure"


@dataclass(frozen=True, slots=True, eq=False)
class FaultAxes:
    """Directions along which faulty repetitions scatter more than correct ones."""

    axes: Float[np.ndarray, "390 k"]
    """Correct repetitions have unit variance along each."""
    gain: Float[np.ndarray, "k"]
    """1 - variance of correct over that of faulty repetitions."""

    def columns(self, fine: Float[np.ndarray, "n 390"]) -> Float[np.ndarray, "n columns"]:
        """Along each axis, without sign, and the log likelihood ratio of Gaussians without mean."""
        along = fine @ self.axes
        return np.column_stack([along, np.abs(along), along**2 @ self.gain])


@dataclass(frozen=True, slots=True, eq=False)
class PersonalModel:
    """Judges by differences from the person's own repetitions."""

    spread: Float[np.ndarray, "50 39"]
    """Sd between correct repetitions of one person, units of about one."""
    decision: Decision
    """On log odds of the trees; where there are none, on `distance_measures`."""
    axes: FaultAxes | None = None
    trees: Trees | None = None
    forest: Trees | None = None
    """Depth at which trees isolate a repetition; less for unusual ones."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """A logistic regression, with the scaling of its columns worked into the weights."""

    weights: Float[np.ndarray, "columns"]
    bias: float

    def log_odds(self, columns: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "n"]:
        """Of being faulty."""
        odds: Float[np.ndarray, "n"] = columns @ self.weights + self.bias
        return odds


@dataclass(frozen=True, slots=True, eq=False)
class GeneralModel:
    """Judges by the repetition alone."""

    expected: Float[np.ndarray, "50 39"]
    """Mean of correct repetitions, for signals that are not known."""
    trees: Trees
    forest: Trees
    linear: LinearModel
    """Errs on other people than the trees do."""
    decision: Decision
    """On `general_measures`."""


@dataclass(frozen=True, slots=True, eq=False)
class FormModel:
    """What is known of one exercise in one view; of exercises without training, `general` None."""

    exercise: str
    view: str
    personal: PersonalModel
    general: GeneralModel | None


@dataclass(frozen=True, slots=True)
class Unusual:
    """Where a repetition differs most from what is expected."""

    signal: str
    """One of `repetition_features.SIGNAL_NAMES`."""
    phase: float
    """Middle of the part of the repetition: 0 onset, 0.5 turning point, 1 end."""
    difference: float
    """Mean over that part, degrees or body lengths; positive where more than expected."""
    in_sd: float
    """The same in sd of a person's own correct repetitions."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What the detector says of one repetition."""

    verdict: Verdict
    mode: Mode
    """None: there is neither a personal baseline nor a general model of this exercise."""
    probability: float
    """That it is faulty, if half of all repetitions were; NaN where not judged."""
    score: float
    """Its log odds; NaN where not judged."""
    known_ratio: float
    """Share of the signals that could be seen; too small a one is not judged."""
    isolation: float = float("nan")
    """Of the isolation forest: 0.5 as usual as any correct repetition, towards 1 for rare ones; NaN
    without training."""
    distance_sd: float = float("nan")
    """From the person's own repetitions after warping in time, in sd of theirs."""
    unusual: tuple[Unusual, ...] = ()
    """Most unusual first; in personal mode only."""


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """A person's own good repetitions, ready to be held against; see `learn_references`."""

    course: Course
    weights: Float[np.ndarray, "r"]
    own: Float[np.ndarray, "2 measures"]
    """Mean and maximum over the references of `base_measures`, each held against the others."""


def learn_references(
    repetitions: Sequence[RepetitionFeatures], model: FormModel
) -> References | None:
    """Own good repetitions of the model's exercise and view as a baseline.

    Signals unknown in one are taken from the others. Repetitions that show too little of the body
    are left out; None if fewer than three remain.
    """
    seen = [r for r in repetitions if _known(r).mean() >= _MIN_KNOWN_RATIO]
    if len(seen) < MIN_REFERENCES:
        return None
    course = in_units(seen)
    trajectory = closer_image(course, course.trajectory[0])
    filled = _filled(trajectory, _mean_known(trajectory))
    return references_of(filled, np.nan_to_num(course.tempo), model.personal)


def references_of(
    trajectory: Float[np.ndarray, "r 50 39"],
    tempo: Float[np.ndarray, "r 2"],
    model: PersonalModel,
) -> References:
    """Repetitions in units of about one, of one side and without gaps, as a baseline."""
    held, weights = leave_one_out(trajectory, tempo, model.spread)
    base = base_measures(differences(held, model.spread), model.axes)
    own = np.stack([base.mean(axis=0), base.max(axis=0)])
    return References(Course(trajectory, trajectory, tempo), weights, own)


def judge(features: RepetitionFeatures, references: References | None, model: FormModel) -> Anomaly:
    """Judge one repetition of the model's exercise and view.

    Parameters
    ----------
    features
        Signals that are not known count as inconspicuous.
    references
        The person's own, learned with the same model; None judges by the general model.
    """
    known_ratio = float(_known(features).mean())
    mode: Mode = "personal" if references else "general" if model.general else "none"
    if known_ratio < _MIN_KNOWN_RATIO:
        return _undecided(mode, known_ratio)
    course = in_units([features])
    if references:
        return _judge_personal(hold(course, references), references, model.personal, known_ratio)
    if model.general:
        return _judge_general(course, model.general, known_ratio)
    return _undecided(mode, known_ratio)


def _judge_personal(
    held: Against, references: References, model: PersonalModel, known_ratio: float
) -> Anomaly:
    found = differences(held, model.spread)
    own = references.own[None]
    measures, isolation = distance_measures(found, own), float("nan")
    if model.axes and model.trees and model.forest:
        columns = tree_columns(found, own, model.axes)
        measures = tree_measures(model.trees, columns)
        isolation = _isolation(model.forest, columns)
    return replace(
        _decided(model.decision, measures, "personal", known_ratio),
        isolation=isolation,
        distance_sd=float(found.warped_distance[0]),
        unusual=_most_unusual(found, model.spread),
    )


def _judge_general(course: Course, model: GeneralModel, known_ratio: float) -> Anomaly:
    images = general_columns(course, model)
    decided = _decided(model.decision, general_measures(images, model), "general", known_ratio)
    return replace(decided, isolation=min(_isolation(model.forest, c) for c in images))


def _undecided(mode: Mode, known_ratio: float) -> Anomaly:
    return Anomaly("unsure", mode, float("nan"), float("nan"), known_ratio)


def _decided(
    decision: Decision, measures: Float[np.ndarray, "1 measures"], mode: Mode, known_ratio: float
) -> Anomaly:
    score = float(decision.log_odds(measures)[0])
    probability = float(1.0 / (1.0 + np.exp(-np.clip(score, -50.0, 50.0))))
    return Anomaly(decision.verdict(score), mode, probability, score, known_ratio)


def hold(course: Course, references: References) -> Against:
    """Repetitions against one person's references; each mirrored where that is closer."""
    own, weights = references.course.trajectory, references.weights
    mean = (own * weights[:, None, None]).sum(axis=0)
    trajectory = _filled(closer_image(course, mean), mean)
    n = len(trajectory)
    tempo = references.course.tempo
    usual = weights @ tempo
    return Against(
        trajectory,
        np.where(np.isfinite(course.tempo), course.tempo, usual),
        np.broadcast_to(own, (n, *own.shape)),
        np.broadcast_to(tempo, (n, *tempo.shape)),
        np.broadcast_to(weights, (n, len(weights))),
    )


def base_measures(found: Differences, axes: FaultAxes | None) -> Float[np.ndarray, "n measures"]:
    """Logarithms of how far repetitions are away, in several ways; the last along fault axes."""
    distances = (found.distance, found.moved_distance, found.warped_distance)
    measures = [np.log(distance + _SMALL) for distance in distances]
    if axes:
        along = axes.columns(found.fine)[:, -1]
        measures.append(np.log(np.maximum(along, 0.0) + _LIKELIHOOD_FLOOR))
    return np.stack(measures, axis=1)


def distance_measures(
    found: Differences, own: Float[np.ndarray, "n 2 measures"]
) -> Float[np.ndarray, "n 6"]:
    """Distances, and those of the references from each other, for exercises without trees."""
    base = base_measures(found, None)
    return np.concatenate([base, own[:, 0, : base.shape[1]]], axis=1)


def tree_columns(
    found: Differences, own: Float[np.ndarray, "n 2 measures"], axes: FaultAxes
) -> Float[np.ndarray, "n columns"]:
    """What trees and forest look at.

    Last, and several times so that random trees find them, come distances beside those of the
    references from each other: who never does two repetitions alike is not faulty for it.
    """
    base = base_measures(found, axes)
    beside = np.concatenate([base - own[:, 0], base - own[:, 1], own[:, 0]], axis=1)
    return np.concatenate(
        [found.columns, axes.columns(found.fine), np.repeat(beside, _N_COPIES, axis=1)], axis=1
    )


_LIKELIHOOD_FLOOR: Final = 10.0
_N_COPIES: Final = 5


def tree_measures(
    trees: Trees, columns: Float[np.ndarray, "n columns"]
) -> Float[np.ndarray, "n 1"]:
    """Log odds of the trees, in the precision they were trained in."""
    return _logit(trees.mean_value(columns.astype(np.float32)))[:, None]


def general_columns(
    course: Course, model: GeneralModel
) -> tuple[Float[np.ndarray, "n columns"], Float[np.ndarray, "n columns"]]:
    """What trees and forest look at, of repetitions and of their mirror images.

    Keypoint errors may turn the choice of the leading leg: both images are judged.
    """
    tempo = np.nan_to_num(course.tempo)
    plain, mirrored = (
        general_features(_filled(image, model.expected), tempo)
        for image in (course.trajectory, course.mirrored)
    )
    return plain, mirrored


def general_measures(
    images: tuple[Float[np.ndarray, "n columns"], Float[np.ndarray, "n columns"]],
    model: GeneralModel,
) -> Float[np.ndarray, "n 1"]:
    """Log odds of the trees and a part of the linear model's, mean of both images.

    The part makes both count about alike: the linear model's log odds are some four times as wide
    (benchmarks/form_evaluation.py).
    """
    both = [
        tree_measures(model.trees, columns) + _LINEAR_PART * model.linear.log_odds(columns)[:, None]
        for columns in images
    ]
    measures: Float[np.ndarray, "n 1"] = np.mean(both, axis=0)
    return measures


_LINEAR_PART: Final = 0.25


def _isolation(forest: Trees, columns: Float[np.ndarray, "1 columns"]) -> float:
    """Anomaly score of Liu, Ting & Zhou 2008, equation 2."""
    depth = float(forest.mean_value(columns.astype(np.float32))[0])
    return float(2.0 ** (-depth / ISOLATION_DEPTH))


ISOLATION_SAMPLES: Final = 64
ISOLATION_DEPTH: Final = (
    2.0 * (np.log(ISOLATION_SAMPLES - 1) + 0.5772)
    - 2.0 * (ISOLATION_SAMPLES - 1) / ISOLATION_SAMPLES
)
"""Mean depth of a leaf in a random binary tree of so many samples (equation 1 there)."""


_SMALL: Final = 1e-6


def _logit(share: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Log odds, kept finite where all trees agree."""
    inside = 0.01 + 0.98 * share
    odds: Float[np.ndarray, "n"] = np.log(inside / (1.0 - inside))
    return odds


def _known(features: RepetitionFeatures) -> np.ndarray:
    known: np.ndarray = np.isfinite(features.trajectory).all(axis=0)
    return known


def _mean_known(trajectory: Float[np.ndarray, "n 50 39"]) -> Float[np.ndarray, "50 39"]:
    """Mean over the repetitions that show a signal; 0 where none does."""
    known = np.isfinite(trajectory)
    total = np.where(known, trajectory, 0.0).sum(axis=0)
    mean: Float[np.ndarray, "50 39"] = total / np.maximum(known.sum(axis=0), 1)
    return mean


def _filled(
    trajectory: Float[np.ndarray, "n 50 39"], expected: Float[np.ndarray, "50 39"]
) -> Float[np.ndarray, "n 50 39"]:
    return np.where(np.isfinite(trajectory), trajectory, expected)


def _most_unusual(found: Differences, spread: Float[np.ndarray, "50 39"]) -> tuple[Unusual, ...]:
    """Parts of signals that differ most, each signal once."""
    in_sd = found.by_phase[0].reshape(N_PARTS, -1, len(SIGNAL_NAMES))
    part_sd = np.clip(in_sd.mean(axis=1), -_MAX_SD, _MAX_SD)
    difference = (found.by_phase[0] * spread).reshape(in_sd.shape).mean(axis=1) * UNITS
    parts_of = np.abs(part_sd).argmax(axis=0)
    signals = np.arange(len(SIGNAL_NAMES))
    order = np.argsort(-np.abs(part_sd[parts_of, signals]))[:_N_UNUSUAL]
    return tuple(
        Unusual(
            SIGNAL_NAMES[signal],
            (int(parts_of[signal]) + 0.5) / N_PARTS,
            float(difference[parts_of[signal], signal]),
            float(part_sd[parts_of[signal], signal]),
        )
        for signal in order
    )
