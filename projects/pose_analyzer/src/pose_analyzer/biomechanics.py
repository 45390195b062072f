"""Joint angles with error bars, from 2D keypoints or 3D points.

Angles are degrees in the anatomical convention of the field: the angle enclosed at the joint, so
180 is a straight limb and a deep squat brings the knee to about 60. Trunk and neck are inclined
against the vertical, 0 upright. Order: `skeletons.ANGLE_NAMES`.
"""

from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.camera_view import (
    EARS_TO_SHOULDERS_PER_STATURE,
    FOREARM_PER_STATURE,
    SHANK_PER_STATURE,
    THIGH_PER_STATURE,
    TORSO_PER_STATURE,
    UPPER_ARM_PER_STATURE,
    ViewState,
    update_view,
)
from pose_analyzer.joint_geometry import (
    N_JOINTS,
    enclosed_deg,
    lengths,
    limbs,
    propagated_sd_deg,
    with_derived_points,
    with_derived_variances,
)
from pose_analyzer.skeletons import (
    ANGLE_INDEX,
    BLAZEPOSE_LEFT_FOOT_INDEX,
    BLAZEPOSE_OF_COCO,
    BLAZEPOSE_RIGHT_FOOT_INDEX,
    N_KEYPOINTS,
    Coco,
)
from pose_analyzer.types import BlazePoseLandmarks, CameraView, JointAngles

_UP_IN_IMAGE: Final = np.array([0.0, -1.0])
_UP_IN_WORLD_LANDMARKS: Final = np.array([0.0, -1.0, 0.0])

# Foot length from ankle to toe joint, Winter 2009 fig. 4.1, is only used where feet are known.
_FOOT_PER_STATURE: Final = 0.12
_FIRST_PER_STATURE: Final = np.repeat(
    [
        UPPER_ARM_PER_STATURE,
        TORSO_PER_STATURE,
        THIGH_PER_STATURE,
        SHANK_PER_STATURE,
        TORSO_PER_STATURE,
        EARS_TO_SHOULDERS_PER_STATURE,
    ],
    [4, 2, 2, 2, 1, 1],
)
_SECOND_PER_STATURE: Final = np.repeat(
    [
        TORSO_PER_STATURE,
        FOREARM_PER_STATURE,
        THIGH_PER_STATURE,
        SHANK_PER_STATURE,
        _FOOT_PER_STATURE,
    ],
    2,
)

# The keypoints each angle needs, padded by repetition.
_NEEDED: Final = np.array(
    [
        [7, 5, 11, 11],
        [8, 6, 12, 12],
        [5, 7, 9, 9],
        [6, 8, 10, 10],
        [5, 11, 13, 13],
        [6, 12, 14, 14],
        [11, 13, 15, 15],
        [12, 14, 16, 16],
        [13, 15, 15, 15],
        [14, 16, 16, 16],
        [5, 6, 11, 12],
        [5, 6, 3, 4],
    ]
)
_NECK: Final = ANGLE_INDEX["neck_inclination"]
_SAGITTAL: Final = slice(ANGLE_INDEX["left_hip"], None)
_BLAZEPOSE_FEET: Final = np.array([BLAZEPOSE_LEFT_FOOT_INDEX, BLAZEPOSE_RIGHT_FOOT_INDEX])

MIN_CONFIDENCE: Final = 0.4
"""Angles with a less confident keypoint are not trusted."""
# Less certain angles are not trusted. A forearm is short, so an elbow is never known closely, but
# it moves through the largest range.
MAX_TRUSTED_SD_DEG: Final = np.repeat([18.0, 25.0, 18.0], [2, 2, 8])
MIN_SAGITTAL_YAW_DEG: Final = 65.0
MIN_EXTENSION: Final = np.repeat([0.7, 0.3], [4, 8])

# What projection adds to the standard deviation of each kind of angle (shoulder, elbow, hip, knee,
# ankle; trunk, neck), see `assess_angles`. Fitted by benchmarks/angle_accuracy.py; no ankle was
# recorded, it takes the knee's.
_PER_ANGLE: Final = (2, 2, 2, 2, 2, 1, 1)
PLANE_SD_DEG: Final = np.repeat([5.0, 10.1, 3.7, 5.2, 5.2, 0.7, 0.4], _PER_ANGLE)
FRONTAL_SD_DEG: Final = np.repeat([0.2, 0.2, 27.7, 31.3, 31.3, 7.4, 11.4], _PER_ANGLE)
HIDDEN_SD_DEG: Final = np.repeat([41.6, 32.8, 26.7, 9.8, 9.8, 4.7, 3.4], _PER_ANGLE)

# Elbows flex by 140 to 150 degrees (143 in Boone & Azen 1979, "Normal range of motion of joints in
# male subjects"; 150 by the AAOS). One that looks bent more sharply is not seen from across the
# plane in which it bends; mostly the camera stands at the side.
SHARPEST_ELBOW_DEG: Final = 40.0
BEYOND_SD_PER_DEG: Final = 1.7
_ELBOWS: Final = slice(ANGLE_INDEX["left_elbow"], ANGLE_INDEX["right_elbow"] + 1)

# How far sideways a limb leads, away from the body's middle, as fractions of stature: from hip to
# shoulder, and from hip to knee and knee to ankle as base plus slope times flexion/180. A side
# view cannot show it, but every knee and hip angle in space contains it: legs are never parallel
# to the sagittal plane, and knees go apart in a squat. Fitted by benchmarks/angle_accuracy.py.
LATERAL_OFFSETS: Final = (0.015, 0.036, 0.087, 0.010, -0.034)
_HIPS_AND_KNEES: Final = slice(ANGLE_INDEX["left_hip"], ANGLE_INDEX["right_knee"] + 1)

# Each coordinate of MediaPipe's world landmarks against triangulated joints.
# Measured by benchmarks/multiview_angles.py.
_WORLD_LANDMARK_SD_M: Final = 0.035
MAX_TRUSTED_WORLD_SD_DEG: Final = 25.0
# Cameras are seldom level, and world landmarks tilt with them.
_CAMERA_TILT_SD_DEG: Final = 10.0


def joint_angles_3d(
    points: Float[np.ndarray, "*batch 17 3"],
    feet: Float[np.ndarray, "*batch 2 3"] | None = None,
    *,
    up: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "*batch 12"]:
    """Which angles a body in space encloses at its joints.

    Parameters
    ----------
    points
        COCO-17 points in any unit and right- or left-handed coordinates, NaN where unknown.
    feet
        Left and right foot index (big toe), without which the ankle angles are NaN.
    up
        Direction opposed to gravity; only its direction counts.

    Returns
    -------
    Float[np.ndarray, "*batch 12"]
        Degrees, 0..180; NaN where a point is unknown or a limb has no length.
    """
    first, second = limbs(with_derived_points(points, feet), up)
    return enclosed_deg(first, second)


def joint_angles_2d(
    keypoints_px: Float[np.ndarray, "*batch 17 2"],
    feet_px: Float[np.ndarray, "*batch 2 2"] | None = None,
) -> Float[np.ndarray, "*batch 12"]:
    """Which angles are seen in the image plane (x right, y down, camera upright).

    As `joint_angles_3d`, but of the projection: it equals the anatomical angle only where the limbs
    lie in the image plane, which `assess_angles` judges.
    """
    first, second = limbs(with_derived_points(keypoints_px, feet_px), _UP_IN_IMAGE)
    return enclosed_deg(first, second)


def angle_sd_2d(
    keypoints_px: Float[np.ndarray, "*batch 17 2"], sd_px: Float[np.ndarray, "*batch 17"]
) -> Float[np.ndarray, "*batch 12"]:
    """How uncertain the image-plane angles are because the keypoints are.

    First-order propagation of independent isotropic errors. Moving an end point across its limb
    turns that limb by 1/length; moving the vertex turns both, which leaves the angle unchanged on
    the circle through all three points (inscribed angles) and has gradient
    ``|first - second| / (|first| |second|)``.

    Parameters
    ----------
    keypoints_px
        COCO-17 keypoints in image pixels, NaN where unknown.
    sd_px
        Standard deviation of each coordinate of each keypoint.

    Returns
    -------
    Float[np.ndarray, "*batch 12"]
        Degrees; NaN where the angle is. Large values (over about 20) are only a lower bound.
    """
    first, second = limbs(with_derived_points(keypoints_px, None), _UP_IN_IMAGE)
    return propagated_sd_deg(first, second, with_derived_variances(sd_px**2, None))


def anatomical_angles_2d(
    keypoints_px: Float[np.ndarray, "*batch 17 2"],
    stature_px: Float[np.ndarray, "*batch"] | float,
    yaw_deg: Float[np.ndarray, "*batch"] | float,
    lateral_offsets: tuple[float, float, float, float, float] = LATERAL_OFFSETS,
) -> Float[np.ndarray, "*batch 12"]:
    """Which angles the body most likely encloses in space, given their projection.

    As `joint_angles_2d`, but hips and knees get the average depth that a side view hides: without
    it a side view reads them several degrees too straight.

    Parameters
    ----------
    keypoints_px
        COCO-17 keypoints in image pixels, NaN where unknown.
    stature_px, yaw_deg
        Body scale and view, `ViewState.stature_px` and `CameraView.yaw_deg`; where one is NaN the
        angles stay those of the image plane.
    lateral_offsets
        Only the calibration passes anything but the default.
    """
    first, second = limbs(with_derived_points(keypoints_px, None), _UP_IN_IMAGE)
    angles_deg = enclosed_deg(first, second)
    depth_px = np.nan_to_num(np.asarray(stature_px * np.sin(np.radians(yaw_deg))))[..., None]
    flexion = 1.0 - angles_deg[..., _HIPS_AND_KNEES] / 180.0
    shoulder, knee, knee_slope, ankle, ankle_slope = lateral_offsets
    thigh = depth_px * (knee + knee_slope * flexion[..., :2])
    shank = depth_px * (ankle + ankle_slope * flexion[..., 2:])
    first_in_space = np.empty((*flexion.shape, 3))
    second_in_space = np.empty((*flexion.shape, 3))
    first_in_space[..., :2] = first[..., _HIPS_AND_KNEES, :]
    second_in_space[..., :2] = second[..., _HIPS_AND_KNEES, :]
    first_in_space[..., :2, 2] = depth_px * shoulder
    first_in_space[..., 2:, 2] = -thigh
    second_in_space[..., :2, 2] = thigh
    second_in_space[..., 2:, 2] = shank
    angles_deg[..., _HIPS_AND_KNEES] = enclosed_deg(first_in_space, second_in_space)
    return angles_deg


def limb_extension(
    keypoints_px: Float[np.ndarray, "*batch 17 2"], stature_px: Float[np.ndarray, "*batch"] | float
) -> Float[np.ndarray, "*batch 12"]:
    """How much of an angle's limbs is seen: projected over true length of the worse one.

    Parameters
    ----------
    keypoints_px
        COCO-17 keypoints in image pixels, NaN where unknown.
    stature_px
        Body scale, `ViewState.stature_px`.

    Returns
    -------
    Float[np.ndarray, "*batch 12"]
        About 1 where both limbs lie in the image plane, 0 where one points at the camera; people
        differ from the average proportions it assumes by about a tenth. NaN where unknown.
    """
    first, second = limbs(with_derived_points(keypoints_px, None), _UP_IN_IMAGE)
    scale_px = np.asarray(stature_px)[..., None]
    # All keypoints of a body without size are in one place.
    with np.errstate(divide="ignore", invalid="ignore"):
        extension: Float[np.ndarray, "*batch 12"] = lengths(first) / (_FIRST_PER_STATURE * scale_px)
        second_extension = lengths(second[..., :N_JOINTS, :]) / (_SECOND_PER_STATURE * scale_px)
    joints = extension[..., :N_JOINTS]
    np.minimum(joints, second_extension, out=joints)
    return extension


def assess_angles(
    values_deg: Float[np.ndarray, "12"],
    propagated_sd_deg: Float[np.ndarray, "12"],
    confidences: Float[np.ndarray, "17"],
    extension: Float[np.ndarray, "12"],
    view: CameraView,
) -> JointAngles:
    """Which image-plane angles show the anatomical ones, and how closely.

    The standard deviation adds to the keypoints' part what projection does to an angle out of the
    image plane, as measured on recorded people: a term in the cosine of the yaw, and one in the
    hidden part of the limbs. A limb that leaves the plane by a small angle p is shortened by p^2/2
    and moves the angle v by about p |cos v| (spherical law of cosines), so that one's variance goes
    with the hidden fraction times cos^2 v. An elbow sharper than elbows can be is off by more than
    it lacks to the sharpest.

    An angle is trusted when its keypoints are confident, its standard deviation is small, and

    - hip, knee, ankle, trunk and neck, which bend in the sagittal plane: the camera stands at the
      side;
    - shoulder and elbow, which bend in any plane: both limbs are seen nearly at full length.

    Parameters
    ----------
    values_deg, propagated_sd_deg
        Of `anatomical_angles_2d` and `angle_sd_2d`.
    confidences
        0..1 of each keypoint.
    extension
        Of `limb_extension`.
    view
        Of `camera_view.update_view`.
    """
    yaw_cosine = 0.0 if np.isnan(view.yaw_deg) else np.cos(np.radians(view.yaw_deg))
    hidden = 1.0 - np.minimum(extension, 1.0)
    variance = (
        propagated_sd_deg**2
        + PLANE_SD_DEG**2
        + (FRONTAL_SD_DEG * yaw_cosine) ** 2
        + hidden * (HIDDEN_SD_DEG * np.cos(np.radians(values_deg))) ** 2
    )
    beyond_deg = np.maximum(SHARPEST_ELBOW_DEG - values_deg[_ELBOWS], 0.0)
    variance[_ELBOWS] += (BEYOND_SD_PER_DEG * beyond_deg) ** 2
    sd_deg = np.sqrt(variance)
    in_view = extension >= MIN_EXTENSION
    in_view[_SAGITTAL] &= view.yaw_deg >= MIN_SAGITTAL_YAW_DEG
    with np.errstate(invalid="ignore"):
        trusted = (
            in_view & (sd_deg <= MAX_TRUSTED_SD_DEG) & (_confidence(confidences) >= MIN_CONFIDENCE)
        )
    unknown = np.isnan(values_deg)
    return JointAngles(values_deg, np.where(unknown, np.nan, sd_deg), trusted & ~unknown)


def _confidence(confidences: Float[np.ndarray, "17"]) -> Float[np.ndarray, "12"]:
    """Of the least confident keypoint that each angle needs; one ear is enough."""
    needed = confidences[_NEEDED]
    needed[_NECK, 2:] = max(confidences[Coco.LEFT_EAR], confidences[Coco.RIGHT_EAR])
    least: Float[np.ndarray, "12"] = needed.min(axis=1)
    return least


def measure_angles(
    state: ViewState,
    keypoints_px: Float[np.ndarray, "17 2"],
    sd_px: Float[np.ndarray, "17"],
    confidences: Float[np.ndarray, "17"],
    time_s: float,
) -> tuple[ViewState, JointAngles, CameraView]:
    """One person's angles and view in one frame, given their earlier frames.

    Parameters
    ----------
    state
        `camera_view.initial_view_state()` first, then what the previous call returned.
    keypoints_px, sd_px, confidences
        Smoothed COCO-17 keypoints in image pixels, NaN where unknown, their standard deviation and
        their confidences.
    time_s
        Time of the frame.
    """
    state, view = update_view(state, keypoints_px, sd_px, confidences, time_s)
    angles = assess_angles(
        anatomical_angles_2d(keypoints_px, state.stature_px, view.yaw_deg),
        angle_sd_2d(keypoints_px, sd_px),
        confidences,
        limb_extension(keypoints_px, state.stature_px),
        view,
    )
    return state, angles, view


def angles_from_world(landmarks: BlazePoseLandmarks) -> JointAngles:
    """Angles in space from MediaPipe's world landmarks, whatever the camera view.

    The vertical is that of the image: a camera that looks down tilts trunk and neck. Trusted where
    all points are probably visible and the limbs long enough for the angle to mean something.
    """
    points = landmarks.world_m[BLAZEPOSE_OF_COCO].astype(np.float64)
    feet = landmarks.world_m[_BLAZEPOSE_FEET].astype(np.float64)
    first, second = limbs(with_derived_points(points, feet), _UP_IN_WORLD_LANDMARKS)
    variance = np.full(N_KEYPOINTS, _WORLD_LANDMARK_SD_M**2)
    sd_deg = propagated_sd_deg(
        first, second, with_derived_variances(variance, variance[: len(feet)])
    )
    sd_deg[N_JOINTS:] = np.hypot(sd_deg[N_JOINTS:], _CAMERA_TILT_SD_DEG)
    values_deg = enclosed_deg(first, second)
    visibility = _confidence(landmarks.visibility[BLAZEPOSE_OF_COCO])
    ankles = slice(ANGLE_INDEX["left_ankle"], ANGLE_INDEX["right_ankle"] + 1)
    np.minimum(visibility[ankles], landmarks.visibility[_BLAZEPOSE_FEET], out=visibility[ankles])
    with np.errstate(invalid="ignore"):
        trusted = (visibility >= MIN_CONFIDENCE) & (sd_deg <= MAX_TRUSTED_WORLD_SD_DEG)
    return JointAngles(values_deg, np.where(np.isnan(values_deg), np.nan, sd_deg), trusted)
