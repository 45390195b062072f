"""From which side the camera sees a person, estimated from one person's 2D keypoints over time.

The line through both shoulders (and both hips) is perpendicular to the body's sagittal plane,
whatever the posture. Its projected length over its true length is the cosine of the yaw: 1 seen
from the front or back, 0 from the side; standing, bent over or lying makes no difference. The true
length in pixels comes from the body's scale, which is taken from the limbs that are foreshortened
least and remembered, and from average body proportions.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.skeletons import Coco
from pose_analyzer.types import CameraView, View

# Segment lengths between joint centres as fractions of stature.
# Drillis & Contini 1966 as in Winter 2009, "Biomechanics and Motor Control", fig. 4.1.
THIGH_PER_STATURE: Final = 0.245
SHANK_PER_STATURE: Final = 0.246
UPPER_ARM_PER_STATURE: Final = 0.186
FOREARM_PER_STATURE: Final = 0.146
# Pose datasets place hips and shoulders higher and further in than those tables: mean of the people
# of UI-PRMD, with which triangulated detections agree (benchmarks/multiview_angles.py).
TORSO_PER_STATURE: Final = 0.31
SHOULDERS_PER_STATURE: Final = 0.165
HIPS_PER_STATURE: Final = 0.115
EARS_TO_SHOULDERS_PER_STATURE: Final = 0.11

# People's shoulder and hip widths differ by about this fraction of the average.
_WIDTH_SD_RATIO: Final = 0.12
_MIN_CONFIDENCE: Final = 0.3
# A person turns slowly against this; keypoint noise does not.
_YAW_TIME_CONSTANT_S: Final = 0.5
# The scale follows a limb that comes into the image plane quickly, and forgets it slowly, so that a
# squat or a push-up between two stretched postures does not shrink the person.
_SCALE_RISE_TIME_CONSTANT_S: Final = 0.3
_SCALE_FALL_TIME_CONSTANT_S: Final = 8.0

_LIMBS: Final = (
    (int(Coco.LEFT_SHOULDER), int(Coco.LEFT_ELBOW), UPPER_ARM_PER_STATURE),
    (int(Coco.RIGHT_SHOULDER), int(Coco.RIGHT_ELBOW), UPPER_ARM_PER_STATURE),
    (int(Coco.LEFT_ELBOW), int(Coco.LEFT_WRIST), FOREARM_PER_STATURE),
    (int(Coco.RIGHT_ELBOW), int(Coco.RIGHT_WRIST), FOREARM_PER_STATURE),
    (int(Coco.LEFT_SHOULDER), int(Coco.LEFT_HIP), TORSO_PER_STATURE),
    (int(Coco.RIGHT_SHOULDER), int(Coco.RIGHT_HIP), TORSO_PER_STATURE),
    (int(Coco.LEFT_HIP), int(Coco.LEFT_KNEE), THIGH_PER_STATURE),
    (int(Coco.RIGHT_HIP), int(Coco.RIGHT_KNEE), THIGH_PER_STATURE),
    (int(Coco.LEFT_KNEE), int(Coco.LEFT_ANKLE), SHANK_PER_STATURE),
    (int(Coco.RIGHT_KNEE), int(Coco.RIGHT_ANKLE), SHANK_PER_STATURE),
)
_WIDTHS: Final = (
    (int(Coco.LEFT_SHOULDER), int(Coco.RIGHT_SHOULDER), SHOULDERS_PER_STATURE),
    (int(Coco.LEFT_HIP), int(Coco.RIGHT_HIP), HIPS_PER_STATURE),
)


@dataclass(frozen=True, slots=True)
class ViewState:
    """What is remembered of a person between frames to judge the view."""

    time_s: float
    """Time of the last frame; NaN before the first."""
    stature_px: float
    """The person's standing height if it lay in the image plane at their distance; NaN unknown."""
    lateral_x: float
    """Smoothed projection of the unit vector from the right to the left side; NaN unknown."""
    lateral_y: float
    lateral_sd: float
    """Standard deviation of the smoothed projection's length that keypoint noise leaves."""


def initial_view_state() -> ViewState:
    """State before a person's first frame."""
    return ViewState(math.nan, math.nan, math.nan, math.nan, math.nan)


def update_view(
    state: ViewState,
    keypoints_px: Float[np.ndarray, "17 2"],
    sd_px: Float[np.ndarray, "17"],
    confidences: Float[np.ndarray, "17"],
    time_s: float,
) -> tuple[ViewState, CameraView]:
    """Estimate from which side one person is seen, given everything up to this frame.

    Parameters
    ----------
    state
        From the previous frame of the same person.
    keypoints_px
        COCO-17 keypoints in image pixels, NaN where unknown.
    sd_px
        Standard deviation of each coordinate.
    confidences
        0..1; keypoints under 0.3 are not used.
    time_s
        Time of this frame, not before the previous one.

    Returns
    -------
    tuple of ViewState and CameraView
        The state to pass next time, and the view. Unknown until two limbs and either shoulders or
        hips have been seen.
    """
    elapsed_s = 0.0 if math.isnan(state.time_s) else max(0.0, time_s - state.time_s)
    points: list[list[float]] = keypoints_px.tolist()
    known = [
        confidence >= _MIN_CONFIDENCE and x == x and y == y  # noqa: PLR0124 - NaN is not itself
        for confidence, (x, y) in zip(confidences.tolist(), points, strict=True)
    ]
    stature_px = _follow_stature(state.stature_px, _seen_stature(points, known), elapsed_s)
    lateral = _seen_lateral(points, sd_px.tolist(), known, stature_px)
    state = _follow_lateral(state, lateral, stature_px, elapsed_s, time_s)
    return state, _view_of(state)


def _seen_stature(points: list[list[float]], known: list[bool]) -> float:
    """Stature by the second least foreshortened limb: one misplaced keypoint does not decide."""
    statures = sorted(
        math.dist(points[start], points[end]) / fraction
        for start, end, fraction in _LIMBS
        if known[start] and known[end]
    )
    return statures[-2] if len(statures) > 1 else math.nan


def _follow_stature(remembered_px: float, seen_px: float, elapsed_s: float) -> float:
    if math.isnan(remembered_px):
        return seen_px
    if math.isnan(seen_px):
        return remembered_px
    rises = seen_px > remembered_px
    constant_s = _SCALE_RISE_TIME_CONSTANT_S if rises else _SCALE_FALL_TIME_CONSTANT_S
    return seen_px + (remembered_px - seen_px) * math.exp(-elapsed_s / constant_s)


def _seen_lateral(
    points: list[list[float]], sd_px: list[float], known: list[bool], stature_px: float
) -> tuple[float, float, float] | None:
    """x, y of the projected left-right unit vector in this frame, and its variance by noise."""
    total_weight = total_x = total_y = 0.0
    for left, right, fraction in _WIDTHS:
        width_px = fraction * stature_px
        if not (known[left] and known[right] and width_px > 0.0):
            continue
        noise = (sd_px[left] ** 2 + sd_px[right] ** 2) / width_px**2
        weight = 1.0 / (noise + _WIDTH_SD_RATIO**2)
        if math.isnan(weight):
            continue
        total_weight += weight
        total_x += weight * (points[left][0] - points[right][0]) / width_px
        total_y += weight * (points[left][1] - points[right][1]) / width_px
    if total_weight == 0.0:
        return None
    return total_x / total_weight, total_y / total_weight, 1.0 / total_weight


def _follow_lateral(
    state: ViewState,
    lateral: tuple[float, float, float] | None,
    stature_px: float,
    elapsed_s: float,
    time_s: float,
) -> ViewState:
    """Exponential average of the vector: its length alone would be biased upwards by noise."""
    if lateral is None:
        return ViewState(time_s, stature_px, state.lateral_x, state.lateral_y, state.lateral_sd)
    x, y, variance = lateral
    if math.isnan(state.lateral_x):
        return ViewState(time_s, stature_px, x, y, math.sqrt(variance))
    if x * state.lateral_x + y * state.lateral_y < -variance:
        # Sides exchanged by the detector, or a turn to the back: the view is the same.
        x, y = -x, -y
    keep = math.exp(-elapsed_s / _YAW_TIME_CONSTANT_S)
    return ViewState(
        time_s,
        stature_px,
        keep * state.lateral_x + (1.0 - keep) * x,
        keep * state.lateral_y + (1.0 - keep) * y,
        math.sqrt(keep * state.lateral_sd**2 + (1.0 - keep) * variance),
    )


def _view_of(state: ViewState) -> CameraView:
    if math.isnan(state.lateral_x):
        return CameraView(View.UNKNOWN, math.nan, math.nan)
    cosine = min(1.0, math.hypot(state.lateral_x, state.lateral_y))
    yaw_deg = math.degrees(math.acos(cosine))
    # d(yaw)/d(cosine) = -1/sin(yaw) grows without bound at the front; there the error of the cosine
    # itself limits how far the yaw can be off.
    sine = math.sqrt(1.0 - cosine**2 + state.lateral_sd**2)
    yaw_sd_deg = min(90.0, math.degrees(state.lateral_sd / sine))
    if yaw_deg > 60.0:
        return CameraView(View.SIDE, yaw_deg, yaw_sd_deg)
    label = View.FRONT if yaw_deg < 30.0 else View.THREE_QUARTER
    return CameraView(label, yaw_deg, yaw_sd_deg)
