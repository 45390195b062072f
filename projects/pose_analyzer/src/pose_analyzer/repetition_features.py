"""What one repetition looked like, as numbers that can be compared between repetitions.

A repetition of any length and frame rate becomes a fixed number of samples of joint angles and
normalised joint positions over its phase. They do not depend on where the person stands in the
image, how large, on the tempo, on a camera rolled about its axis, nor on which side of the body
leads: the body is put upright, to unit size, and mirrored so that the leading leg is the left.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.skeletons import KEYPOINT_NAMES, MIRRORED_KEYPOINTS, Coco

N_PHASES: Final = 50
"""Samples over one repetition: the first at its onset, half of them up to its turning point, the
last at its end."""

ANGLE_SIGNALS: Final = (
    *(
        f"{side}_{joint}_deg"
        for joint in ("shoulder", "elbow", "hip", "knee")
        for side in ("left", "right")
    ),
    "trunk_lean_deg",
    "shoulder_tilt_deg",
    "hip_tilt_deg",
)
_HEAD: Final = 0
_PLACED: Final = (_HEAD, *range(5, 17))
POSITION_SIGNALS: Final = tuple(
    f"{name}_{axis}" for name in ("head", *KEYPOINT_NAMES[5:]) for axis in ("forward", "up")
)
PELVIS_SIGNALS: Final = ("pelvis_forward", "pelvis_up")
SIGNAL_NAMES: Final = (*ANGLE_SIGNALS, *POSITION_SIGNALS, *PELVIS_SIGNALS)
"""Columns of every trajectory.

Angles: enclosed at the joint in the image plane, 0 to 180; `trunk_lean_deg` from the body's mean
axis towards the front (or, seen from the front, towards the leading leg), the tilts of the lines
through both shoulders and both hips likewise signed. Positions: from the middle of the hips, in
body lengths; the head is the middle of its known keypoints. Pelvis: its way since the start of the
repetition, in body lengths.
"""

SUMMARY_NAMES: Final = ("duration_s", "peak_ratio", "travel", "facing")
"""From onset to end of the movement in seconds, when the turning point comes as a share of it, how
far the pose goes from the starting pose (along its main direction, all joints together, in body
lengths), and how much the person faces sideways: 0 from the front or back, near 1 from the side."""

_GRID: Final = np.linspace(0.0, 1.0, 101)
# Width of the smoothing kernel as a share of the repetition, so that tempo changes nothing: 75 ms
# in 2.5 s. Human movement has little above 6 Hz (Winter 2009, "Biomechanics and Motor Control of
# Human Movement", chapter 3), of which this kernel passes half in a repetition of one second.
_KERNEL_RATIO: Final = 0.03
_MIN_CONFIDENCE: Final = 0.1
_MIN_KNOWN_RATIO: Final = 0.5
_TURN_RATIO: Final = 0.9
_ONSET_RATIO: Final = 0.1
_LIMBS: Final = (
    (Coco.LEFT_HIP, Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW),
    (Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW, Coco.LEFT_WRIST),
    (Coco.LEFT_SHOULDER, Coco.LEFT_HIP, Coco.LEFT_KNEE),
    (Coco.LEFT_HIP, Coco.LEFT_KNEE, Coco.LEFT_ANKLE),
)


@dataclass(frozen=True, slots=True)
class RepetitionFeatures:
    """One repetition, comparable with any other of the same exercise and view."""

    trajectory: Float[np.ndarray, "50 39"]
    """Columns as in `SIGNAL_NAMES`; NaN where the keypoints do not tell."""
    summary: Float[np.ndarray, "4"]
    """As in `SUMMARY_NAMES`."""
    times_s: Float[np.ndarray, "50"]
    """When each row of the trajectory was."""
    swapped: bool
    """Whether what is called left here is the person's right."""


def measure_repetition(
    times_s: Float[np.ndarray, "frames"],
    keypoints_px: Float[np.ndarray, "frames 17 2"],
    confidences: Float[np.ndarray, "frames 17"],
) -> RepetitionFeatures:
    """Features of the frames from the start of a repetition to its end.

    Parameters
    ----------
    times_s
        Increasing; any frame rate, even or not.
    keypoints_px
        x right, y down; NaN where unknown.
    confidences
        0..1; below 0.1 counts as unknown.

    Raises
    ------
    ValueError
        If there are fewer than two frames, or times do not increase.
    """
    if len(times_s) < 2 or not np.all(np.diff(times_s) > 0.0):
        raise ValueError("a repetition needs two frames or more, in increasing time")
    duration_s = float(times_s[-1] - times_s[0])
    smooth = _resample((times_s - times_s[0]) / duration_s, keypoints_px, confidences)
    body, facing, swapped = _normalise(smooth)
    way = _main_movement(body)
    knots = _phase_knots(way)
    phases = np.interp(np.linspace(0.0, 1.0, N_PHASES), (0.0, 0.5, 1.0), knots)
    signals = _signals(body)
    trajectory = np.stack([np.interp(phases, _GRID, column) for column in signals.T], axis=1)
    peak_ratio = (knots[1] - knots[0]) / (knots[2] - knots[0])
    moving_s = duration_s * (knots[2] - knots[0])
    travel = float(way.max())
    summary = np.array([moving_s, peak_ratio, travel, facing])
    return RepetitionFeatures(trajectory, summary, times_s[0] + phases * duration_s, swapped)


def _resample(
    shares: Float[np.ndarray, "frames"],
    keypoints_px: Float[np.ndarray, "frames 17 2"],
    confidences: Float[np.ndarray, "frames 17"],
) -> Float[np.ndarray, "101 17 2"]:
    """Smooth positions on an even grid, by local linear regression (Fan & Gijbels 1996, chapter 3).

    Linear, because a kernel mean is biased at both ends. Gaps are bridged in a straight line; a
    keypoint that is unknown for more than half of the repetition stays NaN.
    """
    known = np.isfinite(keypoints_px).all(axis=2) & (confidences >= _MIN_CONFIDENCE)
    weight = np.where(known, confidences, 0.0)
    # A frame stands for the time around it, however unevenly frames come.
    weight = weight * np.gradient(shares)[:, None]
    values = np.where(known[..., None], keypoints_px, 0.0)
    lag = shares[None, :] - _GRID[:, None]
    width = max(_KERNEL_RATIO, 0.75 * float(np.median(np.diff(shares))))
    kernel = np.exp(-0.5 * (lag / width) ** 2)
    s0, s1, s2 = (np.einsum("gf,fk->gk", kernel * lag**power, weight) for power in (0, 1, 2))
    t0, t1 = (np.einsum("gf,fk,fkc->gkc", kernel * lag**power, weight, values) for power in (0, 1))
    ridge = 0.05 * width**2 * s0
    with np.errstate(invalid="ignore", divide="ignore"):
        line = (s2 + ridge)[..., None] * t0 - s1[..., None] * t1
        smooth = line / ((s2 + ridge) * s0 - s1**2)[..., None]
    return _bridge(np.where((s0 > 1e-3 * width)[..., None], smooth, np.nan))


def _bridge(smooth: Float[np.ndarray, "101 17 2"]) -> Float[np.ndarray, "101 17 2"]:
    filled = smooth.copy()
    for joint in range(smooth.shape[1]):
        known = np.isfinite(smooth[:, joint, 0])
        if known.all():
            continue
        if known.mean() < _MIN_KNOWN_RATIO:
            filled[:, joint] = np.nan
            continue
        for axis in (0, 1):
            filled[:, joint, axis] = np.interp(_GRID, _GRID[known], smooth[known, joint, axis])
    return filled


def _middle(points: Float[np.ndarray, "g 17 2"], left: Coco) -> Float[np.ndarray, "g 2"]:
    """Middle of a left keypoint and its right twin, or the one that is known."""
    both = points[:, [left, left + 1]]
    known = np.isfinite(both)
    with np.errstate(invalid="ignore"):
        middle: Float[np.ndarray, "g 2"] = np.where(known, both, 0.0).sum(1) / known.sum(1)
    return middle


def _body_length(points: Float[np.ndarray, "g 17 2"]) -> float:
    """Trunk, thigh and shank at their longest: foreshortening only shortens."""
    trunk = np.linalg.norm(
        _middle(points, Coco.LEFT_SHOULDER) - _middle(points, Coco.LEFT_HIP), axis=1
    )
    length = float(np.quantile(trunk, 0.9))
    for upper, lower in ((Coco.LEFT_HIP, Coco.LEFT_KNEE), (Coco.LEFT_KNEE, Coco.LEFT_ANKLE)):
        segments = [
            np.quantile(np.linalg.norm(points[:, upper + s] - points[:, lower + s], axis=1), 0.9)
            for s in (0, 1)
        ]
        known = [segment for segment in segments if np.isfinite(segment)]
        length += float(np.mean(known)) if known else np.nan
    return length


def _normalise(
    points: Float[np.ndarray, "g 17 2"],
) -> tuple[Float[np.ndarray, "g 17 2"], float, bool]:
    """Upright (y up), unit body length, left leg leading, front to the right; facing, swapped."""
    length = _body_length(points)
    axis = (
        np.nanmean(_middle(points, Coco.LEFT_SHOULDER) - _middle(points, Coco.LEFT_ANKLE), axis=0)
        if np.isfinite(length)
        else np.array([np.nan, np.nan])
    )
    up = axis / np.linalg.norm(axis)
    # Image y points down: a quarter turn from up to the right of the image is (-up_y, up_x).
    right = np.array([-up[1], up[0]])
    body = (points @ np.stack([right, up], axis=1)) / length
    swapped = _lead(body) < 0.0
    if swapped:
        body = body[:, MIRRORED_KEYPOINTS] * np.array([-1.0, 1.0])
    width = np.mean(
        [body[:, left, 0] - body[:, left + 1, 0] for left in (Coco.LEFT_SHOULDER, Coco.LEFT_HIP)],
        axis=0,
    )
    ahead = body[:, Coco.NOSE, 0] - _middle(body, Coco.LEFT_SHOULDER)[:, 0]
    across, along = float(np.median(width)), float(np.median(ahead))
    facing = np.arctan2(abs(along), abs(across)) * 2.0 / np.pi
    body[:, _HEAD] = _head(body)
    is_side = facing > _SIDEWAYS
    if (is_side and along < 0.0) or (not is_side and across < 0.0):
        body = body * np.array([-1.0, 1.0])
    return body, float(facing), swapped


def _head(body: Float[np.ndarray, "g 17 2"]) -> Float[np.ndarray, "g 2"]:
    """Middle of the keypoints of the head: steadier than the nose, which turns with it.

    A keypoint is known all the time or never, after bridging, so that the middle does not jump.
    """
    points = body[:, : Coco.LEFT_SHOULDER]
    known = points[:, np.isfinite(points).all(axis=(0, 2))]
    if known.shape[1] == 0:
        return np.full((len(body), 2), np.nan)
    middle: Float[np.ndarray, "g 2"] = known.mean(axis=1)
    return middle


# Nose before shoulders against width of shoulders and hips, as a share of a right angle: halfway.
_SIDEWAYS: Final = 0.4


def _lead(body: Float[np.ndarray, "g 17 2"]) -> float:
    """How much more the left leg moves than the right: paths of knee and ankle, bend of the knee.

    A hurdle step and a lunge show in the paths, a side lunge, whose feet stand, in the bend.
    """
    paths = np.sqrt(body[:, _LEGS].var(axis=0).sum(axis=1))
    bends = np.stack(
        [_enclosed_deg(body, *(joint + side for joint in _LIMBS[3])) for side in (0, 1)]
    )
    path, bend = paths[0::2] - paths[1::2], np.subtract(*bends.std(axis=1))
    return float(np.nansum(path) + _LENGTH_PER_DEG * np.nan_to_num(bend))


_LEGS: Final = (Coco.LEFT_KNEE, Coco.RIGHT_KNEE, Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE)
# A knee bent by one degree moves the hip or the foot by half a leg, about a quarter of the body
# length, times one degree in radians.
_LENGTH_PER_DEG: Final = np.pi / 180.0 / 4.0


def _main_movement(body: Float[np.ndarray, "g 17 2"]) -> Float[np.ndarray, "g"]:
    """Way from the starting pose along the direction in which the pose changes most.

    The first principal component over all joints averages their noise away, which the plain
    distance between poses adds up.
    """
    poses = body[:, _PLACED].reshape(len(body), -1)
    poses = poses[:, np.isfinite(poses).all(axis=0)]
    if poses.shape[1] == 0:
        return np.full(len(body), np.nan)
    _, _, directions = np.linalg.svd(poses - poses.mean(axis=0), full_matrices=False)
    way: Float[np.ndarray, "g"] = (poses - poses[:_START].mean(axis=0)) @ directions[0]
    return way if way[np.argmax(np.abs(way))] >= 0.0 else -way


# Samples of the grid that count as the starting pose.
_START: Final = 3


def _phase_knots(way: Float[np.ndarray, "g"]) -> tuple[float, float, float]:
    """Onset, turning point and end of the movement as shares of the recorded time."""
    if not np.isfinite(way).all() or way.max() <= 0.0:
        return 0.0, 0.5, 1.0
    top = int(np.argmax(way))
    above_turn = np.maximum(way - _TURN_RATIO * way[top], 0.0)
    peak = float(above_turn @ _GRID / above_turn.sum())
    onset = _ONSET_RATIO * way[top]
    before = np.flatnonzero(way[:top] < onset)
    after = top + np.flatnonzero(way[top:] < onset)
    start = _crossing(way, int(before[-1]), onset) if before.size else 0.0
    end = _crossing(way, int(after[0]) - 1, onset) if after.size else 1.0
    return start, min(max(peak, start + 0.05), end - 0.05), end


def _crossing(way: Float[np.ndarray, "g"], index: int, level: float) -> float:
    """Where the way crosses the level between a sample of the grid and the next."""
    share = (level - way[index]) / (way[index + 1] - way[index])
    return float(_GRID[index] + share * (_GRID[1] - _GRID[0]))


def _signals(body: Float[np.ndarray, "g 17 2"]) -> Float[np.ndarray, "g 39"]:
    angles = [
        _enclosed_deg(body, a + side, b + side, c + side) for a, b, c in _LIMBS for side in (0, 1)
    ]
    pelvis = _middle(body, Coco.LEFT_HIP)
    trunk = _middle(body, Coco.LEFT_SHOULDER) - pelvis
    lean = np.degrees(np.arctan2(trunk[:, 0], trunk[:, 1]))
    tilts = [
        np.degrees(
            np.arcsin(np.clip((body[:, left, 1] - body[:, left + 1, 1]) / TILT_ARM, -1.0, 1.0))
        )
        for left in (Coco.LEFT_SHOULDER, Coco.LEFT_HIP)
    ]
    placed = (body[:, _PLACED] - pelvis[:, None]).reshape(len(body), -1)
    columns = [*angles, lean, *tilts]
    return np.concatenate([np.stack(columns, axis=1), placed, pelvis - pelvis[:1]], axis=1)


# Breadth of the shoulders, in body lengths: 0.259 of stature over 0.779 (trunk,
# thigh and shank), Winter 2009, figure 4.1. A fixed arm, since a side view hides the real one.
TILT_ARM: Final = 0.259 / 0.779


def _enclosed_deg(
    body: Float[np.ndarray, "g 17 2"], a: int, b: int, c: int
) -> Float[np.ndarray, "g"]:
    first, second = body[:, a] - body[:, b], body[:, c] - body[:, b]
    cross = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    angle: Float[np.ndarray, "g"] = np.degrees(np.arctan2(np.abs(cross), (first * second).sum(1)))
    return angle


def mirror(features: RepetitionFeatures) -> RepetitionFeatures:
    """Features of the same repetition done with the other side of the body."""
    flip = -1.0 if features.summary[SUMMARY_NAMES.index("facing")] <= _SIDEWAYS else 1.0
    sign = np.array(
        [flip if name in _FORWARD else -1.0 if "tilt" in name else 1.0 for name in SIGNAL_NAMES]
    )
    trajectory = features.trajectory[:, _OTHER_SIDE] * sign
    return replace(features, trajectory=trajectory, swapped=not features.swapped)


_FORWARD: Final = {name for name in SIGNAL_NAMES if name.endswith("_forward")} | {"trunk_lean_deg"}
_OTHER_SIDE: Final = np.array(
    [
        SIGNAL_NAMES.index(
            name.replace("left", "right") if "left" in name else name.replace("right", "left")
        )
        for name in SIGNAL_NAMES
    ]
)
