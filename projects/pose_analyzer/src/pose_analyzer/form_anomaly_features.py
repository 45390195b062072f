"""A repetition as one row of numbers for `form_anomaly_detector`: by itself, or against a person's.

All functions take many repetitions at once. Trajectories come in units of about one, see
`in_units`; a signal that is not known is set to what is expected, and so counts as inconspicuous.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.phase_alignment import align, rows_at
from pose_analyzer.repetition_features import (
    N_PHASES,
    SIGNAL_NAMES,
    SUMMARY_NAMES,
    RepetitionFeatures,
    mirror,
)

UNITS: Final = np.where([name.endswith("_deg") for name in SIGNAL_NAMES], 30.0, 0.1)
"""Degrees, or body lengths, that make one: about what a fault changes."""
N_PARTS: Final = 5
N_FINE_PARTS: Final = 10
N_TEMPO: Final = 2
_START: Final = 3
_DURATION: Final = SUMMARY_NAMES.index("duration_s")
_PEAK: Final = SUMMARY_NAMES.index("peak_ratio")
_PARTS: Final = np.linspace(0, N_PHASES, N_PARTS + 1).astype(int)[:-1]
_FINE_PARTS: Final = np.linspace(0, N_PHASES, N_FINE_PARTS + 1).astype(int)[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """Repetitions in units of about one, NaN where unknown."""

    trajectory: Float[np.ndarray, "n 50 39"]
    mirrored: Float[np.ndarray, "n 50 39"]
    tempo: Float[np.ndarray, "n 2"]
    """Logarithm of the duration in seconds, and when the turning point comes."""

    def __getitem__(self, rows: np.ndarray | slice) -> "Course":
        return Course(self.trajectory[rows], self.mirrored[rows], self.tempo[rows])


def in_units(features: list[RepetitionFeatures]) -> Course:
    """Put repetitions side by side."""
    summary = np.stack([f.summary for f in features])
    return Course(
        np.stack([f.trajectory for f in features]) / UNITS,
        np.stack([mirror(f).trajectory for f in features]) / UNITS,
        np.column_stack([np.log(summary[:, _DURATION]), summary[:, _PEAK]]),
    )


def closer_image(
    course: Course, target: Float[np.ndarray, "50 39"]
) -> Float[np.ndarray, "n 50 39"]:
    """Each repetition, or its mirror image where that is closer to the target."""
    plain, mirrored = (
        np.nansum((image - target) ** 2, axis=(1, 2))
        for image in (course.trajectory, course.mirrored)
    )
    return np.where((mirrored < plain)[:, None, None], course.mirrored, course.trajectory)


def parts(values: Float[np.ndarray, "n 50 s"]) -> Float[np.ndarray, "n 5 s"]:
    """Mean over each fifth of the phases."""
    means: Float[np.ndarray, "n 5 s"] = np.add.reduceat(values, _PARTS, axis=1) / (
        N_PHASES / N_PARTS
    )
    return means


def fine_parts(values: Float[np.ndarray, "n 50 s"]) -> Float[np.ndarray, "n 10 s"]:
    """Mean over each tenth of the phases."""
    means: Float[np.ndarray, "n 10 s"] = np.add.reduceat(values, _FINE_PARTS, axis=1) / (
        N_PHASES / N_FINE_PARTS
    )
    return means


def _extremes(trajectory: Float[np.ndarray, "*n 50 39"]) -> Float[np.ndarray, "*n 5 39"]:
    high, low = trajectory.max(axis=-2), trajectory.min(axis=-2)
    ends = trajectory[..., 0, :], trajectory[..., -1, :]
    return np.stack([high, low, high - low, *ends], axis=-2)


def _flat(*values: np.ndarray) -> Float[np.ndarray, "n columns"]:
    return np.concatenate([v.reshape(len(v), -1) for v in values], axis=1)


def general_features(
    trajectory: Float[np.ndarray, "n 50 39"], tempo: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n columns"]:
    """Features of repetitions by themselves, as far as they depend little on who does them.

    From everything's own start, which takes out where keypoints always lie beside the joint and
    how a person is built; over its own spread, for the shape of its course; and the left side of
    the body beside the right.
    """
    moved = trajectory - trajectory[:, :_START].mean(axis=1, keepdims=True)
    change = trajectory - trajectory.mean(axis=1, keepdims=True)
    shape = change / (trajectory.std(axis=1, keepdims=True) + _STILL)
    sides = trajectory[:, :, _LEFT] - trajectory[:, :, _RIGHT]
    moved_sides = sides - sides[:, :_START].mean(axis=1, keepdims=True)
    high, low = moved.max(axis=1), moved.min(axis=1)
    by_part = (parts(values) for values in (shape, moved_sides, sides))
    return _flat(fine_parts(moved), high, low, high - low, *by_part, tempo)


# What moves less than this, in units of about one, has no shape worth knowing.
_STILL: Final = 0.15
_LEFT: Final = tuple(i for i, name in enumerate(SIGNAL_NAMES) if name.startswith("left"))
_RIGHT: Final = tuple(SIGNAL_NAMES.index(SIGNAL_NAMES[i].replace("left", "right")) for i in _LEFT)


@dataclass(frozen=True, slots=True, eq=False)
class Against:
    """Repetitions, and for each the references that it is held against."""

    trajectory: Float[np.ndarray, "n 50 39"]
    tempo: Float[np.ndarray, "n 2"]
    references: Float[np.ndarray, "n r 50 39"]
    reference_tempo: Float[np.ndarray, "n r 2"]
    weights: Float[np.ndarray, "n r"]
    """Of the references in their mean; rows sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """How repetitions differ from references; units: sd of one person's correct repetitions."""

    columns: Float[np.ndarray, "n columns"]
    fine: Float[np.ndarray, "n 390"]
    """Difference by tenths of the phases, for the axes along which faults show."""
    by_phase: Float[np.ndarray, "n 50 39"]
    distance: Float[np.ndarray, "n"]
    """Mean over signals of the RMS difference from the references' mean."""
    moved_distance: Float[np.ndarray, "n"]
    """The same from everything's own mean over time."""
    warped_distance: Float[np.ndarray, "n"]
    """RMS difference after dynamic time warping."""


def differences(held: Against, spread: Float[np.ndarray, "50 39"]) -> Differences:
    """Features of repetitions against references, in the person's own time and warped.

    Differences are made as wide as if there were three references: the mean of r references is
    itself uncertain, by one part in r of a repetition's variance.
    """
    n_references = held.references.shape[1]
    widen = np.sqrt((1.0 + 1.0 / 3.0) / (1.0 + 1.0 / n_references))
    weights = held.weights[:, :, None, None]
    mean = (held.references * weights).sum(axis=1)
    difference = widen * (held.trajectory - mean) / spread
    # From their own means over time, where keypoints that always lie beside the joint cancel.
    change = held.trajectory - held.trajectory.mean(axis=1, keepdims=True)
    reference_change = held.references - held.references.mean(axis=2, keepdims=True)
    shifted = widen * (change - (reference_change * weights).sum(axis=1)) / spread
    start = difference[:, : N_PHASES // 10].mean(axis=1, keepdims=True)
    placed, placed_total = _distances(difference, held.trajectory, held.references, spread)
    moved, moved_total = _distances(shifted, change, reference_change, spread)
    range_change = _extremes(held.trajectory) - (_extremes(held.references) * weights).sum(axis=1)
    tempo = widen * (held.tempo - (held.reference_tempo * held.weights[:, :, None]).sum(axis=1))
    warped, warped_distance = _warped(held.trajectory / spread, mean / spread)
    warped, warped_distance = widen * warped, widen * warped_distance
    in_parts = parts(
        np.concatenate(
            [difference, np.abs(difference), difference - start, shifted, np.abs(shifted),
             warped, np.abs(warped)], axis=2,
        )
    )  # fmt: skip
    columns = _flat(
        in_parts, range_change, placed, moved, np.sqrt((warped**2).mean(axis=1)),
        placed_total, moved_total, np.log(warped_distance)[:, None], tempo,
    )  # fmt: skip
    fine = fine_parts(difference).reshape(len(difference), -1)
    return Differences(
        columns, fine, difference / widen, placed_total[:, 0], moved_total[:, 0], warped_distance
    )


def _distances(
    difference: Float[np.ndarray, "n 50 39"],
    trajectory: Float[np.ndarray, "n 50 39"],
    references: Float[np.ndarray, "n r 50 39"],
    spread: Float[np.ndarray, "50 39"],
) -> tuple[Float[np.ndarray, "n 3 39"], Float[np.ndarray, "n 2"]]:
    """Per signal, and over all: from the mean, from the nearest reference, against scatter."""
    n_references = references.shape[1]
    from_mean = np.sqrt((difference**2).mean(axis=1))
    each = np.sqrt((((trajectory[:, None] - references) / spread) ** 2).mean(axis=2))
    nearest = each.min(axis=1)
    scattered = ((references - references.mean(axis=1, keepdims=True)) / spread) ** 2
    scatter = np.sqrt(scattered.mean(axis=(1, 2)) * n_references / (n_references - 1))
    relative = np.log((from_mean + _SMALL) / (0.5 + 0.5 * scatter))
    totals = np.column_stack([from_mean.mean(axis=1), nearest.mean(axis=1)])
    return np.stack([from_mean, nearest, relative], axis=1), totals


_SMALL: Final = 1e-6


def _warped(
    trajectory: Float[np.ndarray, "n 50 39"], mean: Float[np.ndarray, "n 50 39"]
) -> tuple[Float[np.ndarray, "n 50 39"], Float[np.ndarray, "n"]]:
    """Difference from the mean of the references after alignment, and its size."""
    laid = np.empty_like(trajectory)
    distance = np.empty(len(trajectory))
    for row, (one, other) in enumerate(zip(mean, trajectory, strict=True)):
        alignment = align(one, other)
        laid[row] = rows_at(other, alignment.rows)
        distance[row] = alignment.distance
    return laid - mean, distance + _SMALL


def leave_one_out(
    trajectory: Float[np.ndarray, "r 50 39"],
    tempo: Float[np.ndarray, "r 2"],
    spread: Float[np.ndarray, "50 39"],
) -> tuple[Against, Float[np.ndarray, "r"]]:
    """Each reference against the others, and how much each should weigh.

    The weight falls with the distance from the others: the first repetition of a set, or
    one that was cut badly, is often unlike the rest.
    """
    n = len(trajectory)
    others = np.array([[j for j in range(n) if j != i] for i in range(n)])
    held = Against(
        trajectory, tempo, trajectory[others], tempo[others], np.full((n, n - 1), 1.0 / (n - 1))
    )
    apart = ((trajectory - held.references.mean(axis=1)) / spread) ** 2
    closeness = 1.0 / (np.sqrt(apart.mean(axis=(1, 2))) + _SMALL)
    return held, closeness / closeness.sum()
