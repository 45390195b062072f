"""Mend what detectors do to keypoints before they are filtered: exchanged left and right sides."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, N_KEYPOINTS, Coco
from pose_analyzer.types import KeypointFlag

# Limb chains whose sides detectors confuse; each row is (left, right).
_LEG: Final = np.array(
    [
        (Coco.LEFT_HIP, Coco.RIGHT_HIP),
        (Coco.LEFT_KNEE, Coco.RIGHT_KNEE),
        (Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE),
    ]
)
_ARM: Final = np.array(
    [
        (Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER),
        (Coco.LEFT_ELBOW, Coco.RIGHT_ELBOW),
        (Coco.LEFT_WRIST, Coco.RIGHT_WRIST),
    ]
)
_CHAIN_PAIRS: Final = np.stack([_LEG, _ARM])  # (chains, pairs, side)
_CHAIN_JOINTS: Final = _CHAIN_PAIRS.reshape(2, 6)
_CHAIN_MIRRORED: Final = _CHAIN_PAIRS[:, :, ::-1].reshape(2, 6)
_FACE: Final = np.array([Coco.LEFT_EYE, Coco.RIGHT_EYE, Coco.LEFT_EAR, Coco.RIGHT_EAR])
# Exchanged sides must fit the prediction better by this factor in squared distance, and a chain
# must be this part of the body size (RMS) away from it, or the two sides cannot be told apart.
_MIN_GAIN: Final = 3.0
_MIN_SEPARATION: Final = 0.08
# Shoulders and hips this wide (geometric mean, part of the body size) show which way they face.
_MIN_TORSO_WIDTH: Final = 0.05


def body_size_px(keypoints_px: Float[np.ndarray, "17 2"], usable: Bool[np.ndarray, "17"]) -> float:
    """How large the person appears: the diagonal of the box around the usable keypoints.

    Returns
    -------
    float
        Pixels; NaN with fewer than two usable keypoints or all in one place.
    """
    points = keypoints_px[usable]
    if len(points) < 2:
        return float("nan")
    span = points.max(axis=0) - points.min(axis=0)
    size = float(np.hypot(span[0], span[1]))
    return size if size > 0 else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """Where a filter expects the keypoints of a frame before it sees them."""

    predicted_px: Float[np.ndarray, "17 2"]
    body_size_px: float
    swapped_since_s: Float[np.ndarray, "2"]
    """Since when the leg and the arm chain have been put back without a break; +inf if not."""


@dataclass(frozen=True, slots=True)
class RepairedKeypoints:
    """Measurement after swaps were undone."""

    keypoints_px: Float[np.ndarray, "17 2"]
    confidences: Float[np.ndarray, "17"]
    flags: UInt8[np.ndarray, "17"]
    swapped_since_s: Float[np.ndarray, "2"]


def undo_swaps(
    expectation: Expectation,
    time_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    confidences: Float[np.ndarray, "17"],
    patience_s: float = 0.5,
) -> RepairedKeypoints:
    """Exchange left and right where that continues the motion far better.

    The whole body, or one chain of it (hips-knees-ankles or shoulders-elbows-wrists), is exchanged
    when the exchanged measurement lies closer to the prediction by a factor of three (in squared
    distance) and the sides are far enough apart to tell. A chain alone is left as it is where that
    would twist a torso whose shoulders and hips agree. A detector that keeps the exchanged labels
    for longer than `patience_s` is believed: the person has turned.
    """
    direct = keypoints_px[_CHAIN_JOINTS]
    mirrored = keypoints_px[_CHAIN_MIRRORED]
    expected = expectation.predicted_px[_CHAIN_JOINTS]
    weight = np.minimum(confidences[_CHAIN_JOINTS], confidences[_CHAIN_MIRRORED])
    cost_direct = weight * np.square(direct - expected).sum(axis=-1)
    cost_mirrored = weight * np.square(mirrored - expected).sum(axis=-1)
    known = np.isfinite(cost_direct) & np.isfinite(cost_mirrored)
    cost_direct = np.where(known, cost_direct, 0.0)
    cost_mirrored = np.where(known, cost_mirrored, 0.0)
    # Shoulders and hips, the first pair of each chain, move least and so tell most.
    torso_mirrored = cost_mirrored[:, :2].sum() < cost_direct[:, :2].sum()
    cost_direct, cost_mirrored = cost_direct.sum(axis=1), cost_mirrored.sum(axis=1)
    weight_sum = np.where(known, weight, 0.0).sum(axis=1)
    separation = (_MIN_SEPARATION * expectation.body_size_px) ** 2 * weight_sum
    swapped = (_MIN_GAIN * cost_mirrored < cost_direct) & (cost_direct > separation)
    body_swapped = _MIN_GAIN * cost_mirrored.sum() < cost_direct.sum() > separation.sum()
    if body_swapped and torso_mirrored:
        swapped[:] = True
    elif swapped.any() and _torso_agrees(keypoints_px, expectation.body_size_px):
        swapped[:] = torso_mirrored
    if not swapped.any():
        return RepairedKeypoints(
            keypoints_px,
            confidences,
            np.zeros(N_KEYPOINTS, dtype=np.uint8),
            np.full(2, np.inf),
        )
    since = np.where(swapped, np.minimum(expectation.swapped_since_s, time_s), np.inf)
    put_back = swapped & (time_s - since < patience_s)
    order = np.arange(N_KEYPOINTS)
    if put_back.all() and _face_mirrored(expectation.predicted_px, keypoints_px):
        order[_FACE] = MIRRORED_KEYPOINTS[_FACE]
    flags = np.zeros(N_KEYPOINTS, dtype=np.uint8)
    for chain in np.flatnonzero(put_back):
        order[_CHAIN_JOINTS[chain]] = _CHAIN_MIRRORED[chain]
        flags[_CHAIN_JOINTS[chain]] = KeypointFlag.SWAPPED
    return RepairedKeypoints(keypoints_px[order], confidences[order], flags, since)


def _torso_agrees(keypoints_px: Float[np.ndarray, "17 2"], body_size_px: float) -> bool:
    """Whether shoulders and hips are seen wide enough and have the same side on the same side."""
    shoulders = keypoints_px[Coco.LEFT_SHOULDER] - keypoints_px[Coco.RIGHT_SHOULDER]
    hips = keypoints_px[Coco.LEFT_HIP] - keypoints_px[Coco.RIGHT_HIP]
    return bool(shoulders @ hips > (_MIN_TORSO_WIDTH * body_size_px) ** 2)


def _face_mirrored(
    predicted_px: Float[np.ndarray, "17 2"], keypoints_px: Float[np.ndarray, "17 2"]
) -> bool:
    """Whether eyes and ears, too, fit better with their sides exchanged."""
    direct = np.square(keypoints_px[_FACE] - predicted_px[_FACE]).sum(axis=1)
    mirrored = np.square(keypoints_px[MIRRORED_KEYPOINTS[_FACE]] - predicted_px[_FACE]).sum(axis=1)
    known = np.isfinite(direct) & np.isfinite(mirrored)
    return bool(mirrored[known].sum() < direct[known].sum())
