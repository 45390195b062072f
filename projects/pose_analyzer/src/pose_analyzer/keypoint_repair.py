"""Mend what detectors do to keypoints before they are filtered: exchanged left and right sides."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_analyzer.skeletons import N_KEYPOINTS, Coco
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
# Exchanged sides must fit the prediction better by this factor in squared distance, and a chain
# must be this part of the body size (RMS) away from it, or the two sides cannot be told apart.
_MIN_GAIN: Final = 3.0
_MIN_SEPARATION: Final = 0.08


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
    """Exchange left and right of a limb chain where that continues the motion far better.

    A chain (hips-knees-ankles or shoulders-elbows-wrists) is exchanged when the exchanged
    measurement lies closer to the prediction by a factor of three (in squared distance) and the
    sides are far enough apart to tell. A detector that keeps the exchanged labels for longer than
    `patience_s` is believed: the person has turned.
    """
    direct = keypoints_px[_CHAIN_JOINTS]
    mirrored = keypoints_px[_CHAIN_MIRRORED]
    expected = expectation.predicted_px[_CHAIN_JOINTS]
    weight = np.minimum(confidences[_CHAIN_JOINTS], confidences[_CHAIN_MIRRORED])
    cost_direct = weight * np.square(direct - expected).sum(axis=-1)
    cost_mirrored = weight * np.square(mirrored - expected).sum(axis=-1)
    known = np.isfinite(cost_direct) & np.isfinite(cost_mirrored)
    cost_direct = np.where(known, cost_direct, 0.0).sum(axis=1)
    cost_mirrored = np.where(known, cost_mirrored, 0.0).sum(axis=1)
    weight_sum = np.where(known, weight, 0.0).sum(axis=1)
    separation = (_MIN_SEPARATION * expectation.body_size_px) ** 2 * weight_sum
    swapped = (_MIN_GAIN * cost_mirrored < cost_direct) & (cost_direct > separation)
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
    flags = np.zeros(N_KEYPOINTS, dtype=np.uint8)
    for chain in np.flatnonzero(put_back):
        order[_CHAIN_JOINTS[chain]] = _CHAIN_MIRRORED[chain]
        flags[_CHAIN_JOINTS[chain]] = KeypointFlag.SWAPPED
    return RepairedKeypoints(keypoints_px[order], confidences[order], flags, since)
