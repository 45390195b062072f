"""What the body is doing, as the few numbers that exercise files may name.

All features are read off the image plane, without calibration: lengths are divided by the
person's own trunk length at its longest, so they depend neither on distance, nor on stature, nor
on resolution. Left and right are merged by confidence: a side hidden from the camera counts for
little.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.skeletons import Coco

FEATURE_NAMES: Final = (
    "hip_height",
    "shoulder_height",
    "hand_rise",
    "lower_hand_rise",
    "hand_height",
    "ankle_spread",
    "leg_split",
    "elbow_deg",
    "bent_elbow_deg",
    "shoulder_deg",
    "hip_deg",
    "knee_deg",
    "trunk_lean_deg",
)
"""The order of every feature vector.

hip_height, shoulder_height, hand_height
    Height over the lower ankle in trunk lengths; standing about 1.4, 2.4 and (arms hanging) 1.3.
hand_rise
    Height of the hands over the shoulders in trunk lengths; hanging arms about -1.1.
lower_hand_rise
    The same of the hand that is lower, among those seen.
ankle_spread
    Distance of the ankles in the image in trunk lengths.
leg_split
    How unequally the legs stand, 0 side by side, 1 and more in a lunge: one knee lower than the
    other, feet behind one another in the line of sight, or far apart across it.
elbow_deg, shoulder_deg, hip_deg, knee_deg
    Joint angles in the image plane, merged over both sides.
bent_elbow_deg
    Angle of the elbow that is bent more, among those seen: one arm at a time counts as well.
trunk_lean_deg
    Trunk against the vertical: 0 upright, 90 lying.
"""
FEATURE_INDEX: Final = {name: index for index, name in enumerate(FEATURE_NAMES)}

# Limb lengths as multiples of trunk length (shoulder to hip, 0.288 of stature): thigh 0.245 plus
# shank 0.246; upper arm 0.186 plus forearm 0.146. Winter 2009, "Biomechanics and Motor Control of
# Human Movement", figure 4.1.
_LEG_PER_TRUNK: Final = (0.245 + 0.246) / 0.288
_ARM_PER_TRUNK: Final = (0.186 + 0.146) / 0.288
_GROW_S: Final = 0.15
_SHRINK_S: Final = 4.0
_MIN_LIMB_CONFIDENCE: Final = 0.5

# Differences, in trunk lengths, at which legs count as fully split (leg_split = 1): height of the
# knees; feet closer together than the shoulders, seen from the front; feet further apart.
_SPLIT_KNEES: Final = 0.4
_SPLIT_NARROW: Final = 0.3
_SPLIT_WIDE: Final = 0.7

_ELBOW: Final = (Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW, Coco.LEFT_WRIST)
_SHOULDER: Final = (Coco.LEFT_HIP, Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW)
_HIP: Final = (Coco.LEFT_SHOULDER, Coco.LEFT_HIP, Coco.LEFT_KNEE)
_KNEE: Final = (Coco.LEFT_HIP, Coco.LEFT_KNEE, Coco.LEFT_ANKLE)

_Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ScaleState:
    """Trunk length of the person in the image, followed over time."""

    time_s: float = math.nan
    trunk_px: float = math.nan


def _distance(a: _Point, b: _Point) -> float:
    return math.hypot(a[0] - b[0], a[1] - b[1])


def _middle(a: _Point, b: _Point) -> _Point:
    return (a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0


def _angle_deg(a: _Point, b: _Point, c: _Point) -> float:
    """Angle at `b` between the directions to `a` and `c`."""
    ux, uy, vx, vy = a[0] - b[0], a[1] - b[1], c[0] - b[0], c[1] - b[1]
    return math.degrees(math.atan2(abs(ux * vy - uy * vx), ux * vx + uy * vy))


def _merge(left: float, right: float, left_confidence: float, right_confidence: float) -> float:
    """Mean of both sides; the fourth power makes the clearly better seen side decide."""
    if math.isnan(left):
        return right
    if math.isnan(right):
        return left
    left_weight, right_weight = left_confidence**4 + 1e-9, right_confidence**4 + 1e-9
    return (left * left_weight + right * right_weight) / (left_weight + right_weight)


def _lower(left: float, right: float, left_confidence: float, right_confidence: float) -> float:
    """The smaller value, of a side that is seen at least half as well as the other."""
    if math.isnan(left) or left_confidence < right_confidence / 2.0:
        return right
    if math.isnan(right) or right_confidence < left_confidence / 2.0:
        return left
    return min(left, right)


def _update_scale(
    state: ScaleState, time_s: float, points: list[_Point], confidence: list[float]
) -> ScaleState:
    """Follow the longest trunk the body can have had: fast up, slowly down.

    A foreshortened trunk (bending towards the camera) is replaced by what visible arms and legs
    say about it.
    """
    candidates = [
        _distance(
            _middle(points[Coco.LEFT_SHOULDER], points[Coco.RIGHT_SHOULDER]),
            _middle(points[Coco.LEFT_HIP], points[Coco.RIGHT_HIP]),
        )
    ]
    for first, ratio in ((Coco.LEFT_HIP, _LEG_PER_TRUNK), (Coco.LEFT_SHOULDER, _ARM_PER_TRUNK)):
        for root in (first, first + 1):
            if min(confidence[root], confidence[root + 2], confidence[root + 4]) > (
                _MIN_LIMB_CONFIDENCE
            ):
                upper = _distance(points[root], points[root + 2])
                lower = _distance(points[root + 2], points[root + 4])
                candidates.append((upper + lower) / ratio)
    longest = max((c for c in candidates if not math.isnan(c)), default=math.nan)
    if math.isnan(longest):
        return ScaleState(time_s, state.trunk_px)
    if math.isnan(state.trunk_px):
        return ScaleState(time_s, longest)
    constant_s = _GROW_S if longest > state.trunk_px else _SHRINK_S
    gain = 1.0 - math.exp(-(time_s - state.time_s) / constant_s)
    return ScaleState(time_s, state.trunk_px + gain * (longest - state.trunk_px))


def _joint_angles(
    points: list[_Point], confidence: list[float], joints: tuple[int, int, int]
) -> tuple[float, float, float, float]:
    """Angle at the middle joint of a left triple and of its right twin; confidences of both."""
    a, b, c = joints
    return (
        _angle_deg(points[a], points[b], points[c]),
        _angle_deg(points[a + 1], points[b + 1], points[c + 1]),
        min(confidence[a], confidence[b], confidence[c]),
        min(confidence[a + 1], confidence[b + 1], confidence[c + 1]),
    )


def _leg_split(points: list[_Point], trunk_px: float) -> float:
    knees = abs(points[Coco.LEFT_KNEE][1] - points[Coco.RIGHT_KNEE][1]) / trunk_px
    feet = _distance(points[Coco.LEFT_ANKLE], points[Coco.RIGHT_ANKLE]) / trunk_px
    shoulders = _distance(points[Coco.LEFT_SHOULDER], points[Coco.RIGHT_SHOULDER]) / trunk_px
    parts = (
        knees / _SPLIT_KNEES,
        (shoulders - feet) / _SPLIT_NARROW,
        (feet - shoulders) / _SPLIT_WIDE,
    )
    return max((p for p in parts if not math.isnan(p)), default=math.nan)


def measure_movement(
    state: ScaleState,
    time_s: float,
    keypoints_px: Float[np.ndarray, "17 2"],
    confidences: Float[np.ndarray, "17"],
) -> tuple[ScaleState, Float[np.ndarray, "13"]]:
    """Features of one frame.

    Parameters
    ----------
    state
        From the previous frame; `ScaleState()` at the first.
    time_s
        Must not lie before the previous frame's.
    keypoints_px
        Smoothed; NaN where unknown.
    confidences
        0..1.

    Returns
    -------
    state
        To pass on with the next frame.
    features
        In the order of `FEATURE_NAMES`; NaN where the keypoints do not tell.
    """
    points: list[_Point] = [(x, y) for x, y in keypoints_px.tolist()]
    confidence: list[float] = confidences.tolist()
    scale = _update_scale(state, time_s, points, confidence)
    trunk_px = scale.trunk_px if scale.trunk_px > 0 else math.nan
    shoulders = _middle(points[Coco.LEFT_SHOULDER], points[Coco.RIGHT_SHOULDER])
    hips = _middle(points[Coco.LEFT_HIP], points[Coco.RIGHT_HIP])
    ankles_y = [
        y for y in (points[Coco.LEFT_ANKLE][1], points[Coco.RIGHT_ANKLE][1]) if not math.isnan(y)
    ]
    floor_y = max(ankles_y, default=math.nan)
    hands = (
        points[Coco.LEFT_SHOULDER][1] - points[Coco.LEFT_WRIST][1],
        points[Coco.RIGHT_SHOULDER][1] - points[Coco.RIGHT_WRIST][1],
        confidence[Coco.LEFT_WRIST],
        confidence[Coco.RIGHT_WRIST],
    )
    hand_rise = _merge(*hands)
    elbows = _joint_angles(points, confidence, _ELBOW)
    features = (
        (floor_y - hips[1]) / trunk_px,
        (floor_y - shoulders[1]) / trunk_px,
        hand_rise / trunk_px,
        _lower(*hands) / trunk_px,
        (floor_y - shoulders[1] + hand_rise) / trunk_px,
        _distance(points[Coco.LEFT_ANKLE], points[Coco.RIGHT_ANKLE]) / trunk_px,
        _leg_split(points, trunk_px),
        _merge(*elbows),
        _lower(*elbows),
        _merge(*_joint_angles(points, confidence, _SHOULDER)),
        _merge(*_joint_angles(points, confidence, _HIP)),
        _merge(*_joint_angles(points, confidence, _KNEE)),
        math.degrees(math.atan2(abs(shoulders[0] - hips[0]), hips[1] - shoulders[1])),
    )
    return scale, np.array(features)
