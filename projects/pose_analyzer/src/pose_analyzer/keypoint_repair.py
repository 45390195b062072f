"""Mend what detectors do to keypoints before they are filtered: exchanged left and right sides.

A detector that takes a person's front for their back for a moment also shows, on the way there and
back, bodies that are neither. Those frames cannot be mended; they are left out.
"""

from dataclasses import dataclass, replace
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
# A body within one pixel has no size that lengths could be scaled by.
_MIN_BODY_PX: Final = 1.0
# Exchanged sides must fit the prediction better by this factor in squared distance, and a chain
# must be this part of the body size (RMS) away from it, or the two sides cannot be told apart.
_MIN_GAIN: Final = 3.0
_MIN_SEPARATION: Final = 0.08
# Shoulders and hips this wide (geometric mean, part of the body size) show which way they face.
_MIN_TORSO_WIDTH: Final = 0.05
# A torso expected this wide (shoulders and hips, root of the sum of squares, part of the body
# size) faces the camera; from there nobody turns to the side within so short a step, while in an
# oblique view small errors and real turns change the width as much. What seems wider is a lost
# prediction.
_FRONTAL_TORSO_WIDTH: Final = (0.19, 0.35)
_MAX_STEP_S: Final = 0.07
# Narrower than the first part of the expected width, a torso is half turned; narrower than the
# second, it still is, when the frame before was already mended: detectors smooth their way back.
_HALF_TURNED: Final = 0.5
_STILL_TURNED: Final = 0.8
_MIN_TORSO_CONFIDENCE: Final = 0.3
# Further from where it is expected (part of the body size) it is not the same torso, half turned,
# but somebody else's or a lost prediction.
_MAX_TORSO_SHIFT: Final = 0.05
# Eyes and ears expected narrower than this (root of the sum of squares, part of the body size) are
# seen in profile.
_MIN_FACE_WIDTH: Final = 0.03
TORSO: Final = np.array([Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER, Coco.LEFT_HIP, Coco.RIGHT_HIP])
"""Keypoints whose widths show which way a person faces."""
# Slices cost a fifth of index arrays, and this runs for every person in every frame.
_TORSO_LEFT: Final = slice(Coco.LEFT_SHOULDER, Coco.LEFT_HIP + 1, 6)
_TORSO_RIGHT: Final = slice(Coco.RIGHT_SHOULDER, Coco.RIGHT_HIP + 1, 6)
_FACE_LEFT: Final = slice(Coco.LEFT_EYE, Coco.LEFT_EAR + 1, 2)
_FACE_RIGHT: Final = slice(Coco.RIGHT_EYE, Coco.RIGHT_EAR + 1, 2)


def body_size_px(keypoints_px: Float[np.ndarray, "17 2"], usable: Bool[np.ndarray, "17"]) -> float:
    """How large the person appears: the diagonal of the box around the usable keypoints.

    Returns
    -------
    float
        Pixels; NaN with fewer than two usable keypoints or all within one pixel.
    """
    points = keypoints_px[usable]
    if len(points) < 2:
        return float("nan")
    span = points.max(axis=0) - points.min(axis=0)
    size = float(np.hypot(span[0], span[1]))
    return size if size > _MIN_BODY_PX else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """Where a filter expects the keypoints of a frame before it sees them."""

    predicted_px: Float[np.ndarray, "17 2"]
    body_size_px: float
    swapped_since_s: Float[np.ndarray, "2"]
    """Since when the leg and the arm chain have been put back without a break; +inf if not."""
    torso_missing_s: float
    """For how long up to the previous frame no torso keypoint has been measured; 0 if it was."""
    step_s: float
    """Time since the previous frame."""


@dataclass(frozen=True, slots=True)
class RepairedKeypoints:
    """Measurement after swaps were undone."""

    keypoints_px: Float[np.ndarray, "17 2"]
    confidences: Float[np.ndarray, "17"]
    """0 where a keypoint fits neither way and is left out."""
    flags: UInt8[np.ndarray, "17"]
    swapped_since_s: Float[np.ndarray, "2"]


def undo_swaps(
    expectation: Expectation,
    time_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    confidences: Float[np.ndarray, "17"],
    patience_s: float = 0.5,
    max_left_out_s: float = 0.2,
) -> RepairedKeypoints:
    """Exchange left and right where that continues the motion far better.

    The whole body, or one chain of it (hips-knees-ankles or shoulders-elbows-wrists), is exchanged
    when the exchanged measurement lies closer to the prediction by a factor of three (in squared
    distance) and the sides are far enough apart to tell. A chain alone is left as it is where that
    would twist a torso whose shoulders and hips agree. A detector that keeps the exchanged labels
    for longer than `patience_s` is believed: the person has turned.

    A frame in which neither the measured nor the exchanged torso is nearly as wide as expected is
    left out: all its keypoints are flagged as rejected and get confidence 0. So is a face that
    fits neither way on a body that was put back. After `max_left_out_s` the frame is believed, and
    so is any at a low frame rate, since a person may turn between two frames.
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
    chain_direct, chain_mirrored = cost_direct.sum(axis=1), cost_mirrored.sum(axis=1)
    weight_sum = np.where(known, weight, 0.0).sum(axis=1)
    separation = (_MIN_SEPARATION * expectation.body_size_px) ** 2 * weight_sum
    swapped = (_MIN_GAIN * chain_mirrored < chain_direct) & (chain_direct > separation)
    body_swapped = _MIN_GAIN * chain_mirrored.sum() < chain_direct.sum() > separation.sum()
    if body_swapped or swapped.any():
        # Shoulders and hips, the first pair of each chain, move least and so tell most.
        torso_mirrored = cost_mirrored[:, :2].sum() < cost_direct[:, :2].sum()
        if body_swapped and torso_mirrored:
            swapped[:] = True
        elif swapped.any() and _torso_agrees(keypoints_px, expectation.body_size_px):
            swapped[:] = torso_mirrored
    repaired = RepairedKeypoints(
        keypoints_px, confidences, np.zeros(N_KEYPOINTS, dtype=np.uint8), np.full(2, np.inf)
    )
    if swapped.any():
        repaired = _put_back(expectation, repaired, swapped, time_s, patience_s)
    if expectation.step_s <= _MAX_STEP_S and expectation.torso_missing_s < max_left_out_s:
        repaired = _leave_out(expectation, repaired)
    return repaired


def _put_back(
    expectation: Expectation,
    measured: RepairedKeypoints,
    swapped: Bool[np.ndarray, "2"],
    time_s: float,
    patience_s: float,
) -> RepairedKeypoints:
    """Exchange the sides of the swapped chains unless they have been swapped for too long."""
    since = np.where(swapped, np.minimum(expectation.swapped_since_s, time_s), np.inf)
    put_back = swapped & (time_s - since < patience_s)
    order = np.arange(N_KEYPOINTS)
    if put_back.all() and _face_mirrored(expectation.predicted_px, measured.keypoints_px):
        order[_FACE] = MIRRORED_KEYPOINTS[_FACE]
    flags = measured.flags.copy()
    for chain in np.flatnonzero(put_back):
        order[_CHAIN_JOINTS[chain]] = _CHAIN_MIRRORED[chain]
        flags[_CHAIN_JOINTS[chain]] = KeypointFlag.SWAPPED
    return RepairedKeypoints(
        measured.keypoints_px[order], measured.confidences[order], flags, since
    )


def _leave_out(expectation: Expectation, repaired: RepairedKeypoints) -> RepairedKeypoints:
    """Reject a body that is half turned, or the face that stayed turned on one put back."""
    ratio = _torso_width_ratio(expectation, repaired)
    if ratio < _HALF_TURNED or (ratio < _STILL_TURNED and _is_mending(expectation, repaired)):
        rejected = slice(None)
    elif (
        repaired.flags[Coco.LEFT_SHOULDER]
        and repaired.flags[Coco.LEFT_HIP]
        and _face_width_ratio(expectation, repaired.keypoints_px) < _STILL_TURNED
    ):
        rejected = slice(Coco.NOSE, Coco.RIGHT_EAR + 1)
    else:
        return repaired
    flags, confidences = repaired.flags.copy(), repaired.confidences.copy()
    flags[rejected] = np.where(confidences[rejected] > 0, KeypointFlag.REJECTED, 0)
    confidences[rejected] = 0.0
    return replace(repaired, confidences=confidences, flags=flags)


def _is_mending(expectation: Expectation, repaired: RepairedKeypoints) -> bool:
    """Whether this frame or the one before was not as the detector gave it."""
    swapped_since_s = np.minimum(repaired.swapped_since_s, expectation.swapped_since_s)
    return expectation.torso_missing_s > 0 or bool((swapped_since_s < np.inf).any())


def _torso_width_ratio(expectation: Expectation, repaired: RepairedKeypoints) -> float:
    """Shoulders and hips over how wide they are expected, whichever side is where.

    NaN where a frontal torso is not expected, or not seen there for sure.
    """
    expected = expectation.predicted_px[_TORSO_LEFT] - expectation.predicted_px[_TORSO_RIGHT]
    expected_square = float(np.vdot(expected, expected))
    narrowest, widest = _FRONTAL_TORSO_WIDTH
    size_px = expectation.body_size_px
    if not (narrowest * size_px) ** 2 < expected_square < (widest * size_px) ** 2:
        return float("nan")
    if not repaired.confidences[TORSO].min() >= _MIN_TORSO_CONFIDENCE:
        return float("nan")
    moved = (repaired.keypoints_px[TORSO] - expectation.predicted_px[TORSO]).mean(axis=0)
    if not np.hypot(moved[0], moved[1]) < _MAX_TORSO_SHIFT * size_px:
        return float("nan")
    seen = repaired.keypoints_px[_TORSO_LEFT] - repaired.keypoints_px[_TORSO_RIGHT]
    return abs(float(np.vdot(seen, expected))) / expected_square


def _face_width_ratio(expectation: Expectation, keypoints_px: Float[np.ndarray, "17 2"]) -> float:
    """Eyes and ears over how wide they are expected; negative where their sides are exchanged.

    NaN where a profile is expected or not all of them are known.
    """
    expected = expectation.predicted_px[_FACE_LEFT] - expectation.predicted_px[_FACE_RIGHT]
    seen = keypoints_px[_FACE_LEFT] - keypoints_px[_FACE_RIGHT]
    expected_square = float(np.vdot(expected, expected))
    if not expected_square > (_MIN_FACE_WIDTH * expectation.body_size_px) ** 2:
        return float("nan")
    return float(np.vdot(seen, expected)) / expected_square


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
