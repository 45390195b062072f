"""How one repetition differs from a pattern, moment by moment and signal by signal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.form_measures import PAIRS, FormMeasures, Image, shown_signals
from pose_analyzer.form_references import Mode, Pattern
from pose_analyzer.form_types import Component
from pose_analyzer.phase_alignment import align, rows_at
from pose_analyzer.repetition_features import SIGNAL_NAMES

# Further off than so many standard deviations it does not matter how far: a keypoint that jumps
# away must not outweigh the rest of the body.
MOST_SD: Final = 6.0
# Loss at the limit below which nineteen of twenty correct repetitions stay. The same for all
# movements: by a general reference so steep that correct and incorrect repetitions of strangers lie
# some 20 points apart in the hardest movement, and correct ones keep about 80. People stray far
# less from themselves than faults do, so that a personal one need not be steep: it leaves 60 points
# at the limit (benchmarks/form_scores.py).
AT_LIMIT: Final[Mapping[Mode, Mapping[Component, float]]] = {
    "general": {Component.DEVIATION: 1.25, Component.SYMMETRY: 0.35},
    "personal": {Component.DEVIATION: 0.5, Component.SYMMETRY: 0.35},
}
MAX_LOSS: Final = 3.0
"""Of one component."""
MIN_SIGNALS: Final = 3
"""Fewer are no body to judge."""
_LEFT: Final = np.array([left for left, _ in PAIRS])
_RIGHT: Final = np.array([right for _, right in PAIRS])


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One repetition beside a pattern. Rows are those of the pattern."""

    image: Image
    rows: Float[np.ndarray, "25"]
    """Row of the repetition that matches each of the pattern's."""
    judged: Bool[np.ndarray, "39"]
    """Signals that both show; nothing else counts."""
    differences: Float[np.ndarray, "25 39"]
    """Repetition minus pattern after alignment, in the signals' own units; NaN if not judged."""
    strangeness: Float[np.ndarray, "39"]
    """How unusual each signal's course is: squared standard deviations of its mean and, averaged,
    of the rest; 2 on average over correct repetitions, NaN if not judged."""
    deviation: float
    """Fourth root of the mean squared strangeness, so that one joint far off is not averaged away
    by many that are not; NaN if nothing is judged."""
    asymmetries: Float[np.ndarray, "25 10"]
    """Left minus right, less the pattern's, in standard deviations; NaN if not judged."""
    asymmetry: float


def compare(
    repetition: FormMeasures, pattern: Pattern, wanted: Bool[np.ndarray, "39"]
) -> Comparison:
    """Compare the repetition, or its mirror image if that is closer, with the pattern.

    Parameters
    ----------
    repetition
        From `form_measures.measure_form`.
    pattern
        Of about the same view.
    wanted
        Signals that matter for the exercise.
    """
    one, other = (
        _compared(image, pattern, wanted & shown_signals(repetition, image, pattern.view))
        for image in repetition.images
    )
    return other if other.deviation < one.deviation else one


def _compared(image: Image, pattern: Pattern, shown: Bool[np.ndarray, "39"]) -> Comparison:
    judged = shown & np.isfinite(pattern.mean).all(axis=0)
    scatter = pattern.scatter
    scale = np.hypot(scatter.offsets, scatter.courses)
    alignment = align((pattern.mean / scale)[:, judged], (image.signals / scale)[:, judged])
    aligned = rows_at(image.signals, alignment.rows)
    differences = np.where(judged, aligned - pattern.mean, np.nan)
    offsets = differences.mean(axis=0)
    strangeness = _squared(offsets, scatter.offsets)
    strangeness = strangeness + _squared(differences - offsets, scatter.courses).mean(axis=0)
    both = judged[_LEFT] & judged[_RIGHT]
    lopsided = differences[:, _LEFT] - differences[:, _RIGHT]
    asymmetries = np.clip(lopsided / scatter.asymmetry, -MOST_SD, MOST_SD)
    return Comparison(
        image=image,
        rows=alignment.rows,
        judged=judged,
        differences=differences,
        strangeness=strangeness,
        deviation=float(np.mean(strangeness[judged] ** 2) ** 0.25)
        if judged.any()
        else float("nan"),
        asymmetries=asymmetries,
        asymmetry=_rms(asymmetries[:, both]),
    )


def _squared(
    values: Float[np.ndarray, "*rows 39"], scale: Float[np.ndarray, "*rows 39"]
) -> Float[np.ndarray, "*rows 39"]:
    squared: Float[np.ndarray, "*rows 39"] = np.minimum((values / scale) ** 2, MOST_SD**2)
    return squared


def _rms(values: Float[np.ndarray, "rows columns"]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def columns_of(signals: tuple[str, ...]) -> Bool[np.ndarray, "39"]:
    """Which columns the named signals are."""
    return np.array([name in signals for name in SIGNAL_NAMES])


def beyond(value: float, limits: tuple[float, float]) -> float:
    """0 up to the first limit, 1 at the second, straight on from there."""
    return max(0.0, (value - limits[0]) / (limits[1] - limits[0]))
