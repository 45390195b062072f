"""Which points enclose which joint angle, and how errors of points become errors of angles.

Works on any number of dimensions and leading axes; NaN marks what is unknown and propagates.
"""

from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.skeletons import N_KEYPOINTS, Coco

# Points the angles need beyond COCO's, appended to it.
_LEFT_FOOT, _RIGHT_FOOT, _HIPS, _SHOULDERS, _EARS = range(N_KEYPOINTS, N_KEYPOINTS + 5)
_N_POINTS: Final = N_KEYPOINTS + 5
N_JOINTS: Final = 10
"""The first ten angles are enclosed by two limbs, the last two by one limb and the vertical."""

# The angle at `_VERTEX` between the limbs to `_FIRST` and to `_SECOND`; the inclinations have no
# second limb and repeat the vertex.
_FIRST: Final = np.array([7, 8, 5, 6, 5, 6, 11, 12, 13, 14, _SHOULDERS, _EARS])
_VERTEX: Final = np.array([5, 6, 7, 8, 11, 12, 13, 14, 15, 16, _HIPS, _SHOULDERS])
_SECOND: Final = np.array(
    [11, 12, 9, 10, 13, 14, 15, 16, _LEFT_FOOT, _RIGHT_FOOT, _HIPS, _SHOULDERS]
)


def with_derived_points(
    points: Float[np.ndarray, "*batch 17 dims"], feet: Float[np.ndarray, "*batch 2 dims"] | None
) -> Float[np.ndarray, "*batch 22 dims"]:
    """COCO points, feet, and the middles of hips, shoulders and ears.

    The face shows one ear from the side: then that ear stands for the middle. The nose would not
    do, it lies some 10 cm before the ears.
    """
    extended = np.empty((*points.shape[:-2], _N_POINTS, points.shape[-1]))
    extended[..., :N_KEYPOINTS, :] = points
    extended[..., _LEFT_FOOT : _RIGHT_FOOT + 1, :] = np.nan if feet is None else feet
    extended[..., _HIPS, :] = 0.5 * (points[..., Coco.LEFT_HIP, :] + points[..., Coco.RIGHT_HIP, :])
    extended[..., _SHOULDERS, :] = 0.5 * (
        points[..., Coco.LEFT_SHOULDER, :] + points[..., Coco.RIGHT_SHOULDER, :]
    )
    left_ear, right_ear = points[..., Coco.LEFT_EAR, :], points[..., Coco.RIGHT_EAR, :]
    both = 0.5 * (left_ear + right_ear)
    extended[..., _EARS, :] = np.where(np.isnan(both), np.fmax(left_ear, right_ear), both)
    return extended


def with_derived_variances(
    variance: Float[np.ndarray, "*batch 17"], feet: Float[np.ndarray, "*batch 2"] | None
) -> Float[np.ndarray, "*batch 22"]:
    """Variances of the points of `with_derived_points`, errors of different points independent."""
    extended = np.empty((*variance.shape[:-1], _N_POINTS))
    extended[..., :N_KEYPOINTS] = variance
    extended[..., _LEFT_FOOT : _RIGHT_FOOT + 1] = np.nan if feet is None else feet
    extended[..., _HIPS] = 0.25 * (variance[..., Coco.LEFT_HIP] + variance[..., Coco.RIGHT_HIP])
    extended[..., _SHOULDERS] = 0.25 * (
        variance[..., Coco.LEFT_SHOULDER] + variance[..., Coco.RIGHT_SHOULDER]
    )
    left_ear, right_ear = variance[..., Coco.LEFT_EAR], variance[..., Coco.RIGHT_EAR]
    both = 0.25 * (left_ear + right_ear)
    extended[..., _EARS] = np.where(np.isnan(both), np.fmax(left_ear, right_ear), both)
    return extended


def limbs(
    points: Float[np.ndarray, "*batch 22 dims"], up: Float[np.ndarray, "dims"]
) -> tuple[Float[np.ndarray, "*batch 12 dims"], Float[np.ndarray, "*batch 12 dims"]]:
    """Vectors from each angle's vertex along its two limbs."""
    vertex = points[..., _VERTEX, :]
    first = points[..., _FIRST, :] - vertex
    second = points[..., _SECOND, :] - vertex
    second[..., N_JOINTS:, :] = up
    return first, second


def enclosed_deg(
    first: Float[np.ndarray, "*batch angles dims"], second: Float[np.ndarray, "*batch angles dims"]
) -> Float[np.ndarray, "*batch angles"]:
    """Measure angles between vectors by Kahan's formula, accurate where arccos is not: near 180.

    W. Kahan 2006, "How Futile are Mindless Assessments of Roundoff", section 12.  A vector without
    length, or too short for its square to be told from zero, encloses no angle: NaN.
    """
    first_unit, second_unit = _units(first), _units(second)
    half_rad = np.arctan2(lengths(first_unit - second_unit), lengths(first_unit + second_unit))
    degrees: Float[np.ndarray, "*batch angles"] = np.degrees(2.0 * half_rad)
    return degrees


def _units(vectors: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
    length = lengths(vectors)[..., None]
    units: Float[np.ndarray, "*batch dims"] = vectors / np.where(length > 0.0, length, np.nan)
    return units


def lengths(vectors: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch"]:
    """Euclidean length along the last axis."""
    root: Float[np.ndarray, "*batch"] = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    return root


def propagated_sd_deg(
    first: Float[np.ndarray, "*batch 12 dims"],
    second: Float[np.ndarray, "*batch 12 dims"],
    variance: Float[np.ndarray, "*batch 22"],
) -> Float[np.ndarray, "*batch 12"]:
    """Propagate the points' variances to the enclosed angles; see `angle_sd_2d`."""
    between = first - second
    first_squared = np.einsum("...i,...i->...", first, first)
    second_squared = np.einsum("...i,...i->...", second, second)
    between_squared = np.einsum("...i,...i->...", between, between)
    second_variance = variance[..., _SECOND]
    # The vertical has no error, and the vertex turns only the one limb: unit length and unit ratio.
    second_variance[..., N_JOINTS:] = 0.0
    second_squared[..., N_JOINTS:] = 1.0
    between_squared[..., N_JOINTS:] = 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        squared_rad = (
            variance[..., _FIRST] / first_squared
            + second_variance / second_squared
            + variance[..., _VERTEX] * between_squared / (first_squared * second_squared)
        )
    return np.degrees(np.sqrt(np.where(np.isfinite(squared_rad), squared_rad, np.nan)))
