"""Small generated people for tests: a stick figure seen from its left side that squats."""

from collections.abc import Sequence

import numpy as np

from pose_analyzer.skeletons import ANGLE_INDEX, N_ANGLES, N_KEYPOINTS, Coco
from pose_analyzer.types import (
    CameraView,
    JointAngles,
    PersonAnalysis,
    PersonFrame,
    Phase,
    RangeOfMotion,
    Repetition,
    SourceInfo,
    VideoAnalysis,
    View,
)

REPETITION_S = 2.0
HEIGHT_PX = 300.0


def squat_keypoints(progress=0.0, ankle_px=(200.0, 340.0), height_px=HEIGHT_PX):
    """17 x 2 keypoints of a standing (progress 0) to squatting (1) person facing right."""
    segment = height_px / 4
    knee_flexion = np.radians(100.0 * progress)
    ankle = np.array(ankle_px)
    knee = ankle + segment * _up(np.radians(25.0 * progress))
    hip = knee + segment * _up(np.radians(25.0 * progress) - knee_flexion)
    shoulder = hip + 1.2 * segment * _up(np.radians(40.0 * progress))
    elbow = shoulder + 0.6 * segment * np.array([0.3 + 0.6 * progress, 0.9 - 0.7 * progress])
    wrist = elbow + 0.6 * segment * np.array([0.8, 0.2 - 0.2 * progress])
    nose = shoulder + 0.5 * segment * _up(0.4)
    centres = [nose, nose, nose, shoulder, elbow, wrist, hip, knee, ankle]
    keypoints = np.empty((N_KEYPOINTS, 2))
    keypoints[Coco.NOSE] = nose
    shift = np.array([3.0, 0.0])
    for pair, centre in enumerate(centres[1:]):
        keypoints[1 + 2 * pair] = centre + shift
        keypoints[2 + 2 * pair] = centre - shift
    return keypoints


def joint_angles(progress=0.0):
    """Angles of `squat_keypoints`, ankles unknown, elbows not to be trusted."""
    values = np.full(N_ANGLES, 160.0)
    values[[ANGLE_INDEX["left_knee"], ANGLE_INDEX["right_knee"]]] = 180.0 - 100.0 * progress
    values[[ANGLE_INDEX["left_hip"], ANGLE_INDEX["right_hip"]]] = 180.0 - 115.0 * progress
    ankles = [ANGLE_INDEX["left_ankle"], ANGLE_INDEX["right_ankle"]]
    values[ankles] = np.nan
    sd = np.full(N_ANGLES, 3.0)
    sd[ankles] = np.nan
    trusted = np.isfinite(values)
    trusted[[ANGLE_INDEX["left_elbow"], ANGLE_INDEX["right_elbow"]]] = False
    return JointAngles(values, sd, trusted)


def person_frame(
    progress=0.0,
    *,
    track_id=1,
    frame_index=0,
    time_s=0.0,
    ankle_px=(200.0, 340.0),
    height_px=HEIGHT_PX,
    confidences=None,
    flags=None,
    exercise="squat",
    phase=Phase.ECCENTRIC,
    n_repetitions=0,
):
    """One frame of the squatting person."""
    keypoints = squat_keypoints(progress, ankle_px, height_px)
    box = np.concatenate([keypoints.min(axis=0) - 10.0, keypoints.max(axis=0) + 10.0])
    return PersonFrame(
        track_id=track_id,
        frame_index=frame_index,
        time_s=time_s,
        detected=True,
        score=0.9,
        box_px=box,
        keypoints_px=keypoints,
        keypoints_sd_px=np.full(N_KEYPOINTS, 2.0),
        confidences=np.full(N_KEYPOINTS, 0.9) if confidences is None else confidences,
        flags=np.zeros(N_KEYPOINTS, np.uint8) if flags is None else flags,
        landmarks=None,
        angles=joint_angles(progress),
        angles_3d=None,
        view=CameraView(View.SIDE, 85.0, 8.0),
        exercise=exercise,
        phase=phase,
        progress=progress,
        n_repetitions=n_repetitions,
    )


def person_analysis(n_frames=121, *, track_id=1, fps=30.0, exercise="squat", with_3d=False):
    """The squatting person over `n_frames`; a repetition takes `REPETITION_S`."""
    time_s = np.arange(n_frames) / fps
    progress = 0.5 - 0.5 * np.cos(2 * np.pi * time_s / REPETITION_S)
    angles = [joint_angles(p) for p in progress]
    keypoints = [squat_keypoints(p) for p in progress]
    values = np.array([a.values_deg for a in angles]).reshape(n_frames, N_ANGLES)
    boxes = [[*k.min(axis=0), *k.max(axis=0)] for k in keypoints]
    n_repetitions = int((n_frames - 1) / fps / REPETITION_S) if exercise else 0
    return PersonAnalysis(
        track_id=track_id,
        exercise=exercise,
        repetitions=tuple(repetition(number) for number in range(1, n_repetitions + 1)),
        frame_index=np.arange(n_frames, dtype=np.int64),
        time_s=time_s,
        detected=np.ones(n_frames, bool),
        box_px=np.array(boxes).reshape(n_frames, 4),
        keypoints_px=np.array(keypoints).reshape(n_frames, N_KEYPOINTS, 2),
        keypoints_sd_px=np.full((n_frames, N_KEYPOINTS), 2.0),
        confidences=np.full((n_frames, N_KEYPOINTS), 0.9),
        flags=np.zeros((n_frames, N_KEYPOINTS), np.uint8),
        angles_deg=values,
        angles_sd_deg=np.array([a.sd_deg for a in angles]).reshape(n_frames, N_ANGLES),
        angles_trusted=np.array([a.trusted for a in angles], bool).reshape(n_frames, N_ANGLES),
        angles_3d_deg=values + 1.0 if with_3d else None,
        yaw_deg=np.full(n_frames, 85.0),
        view=View.SIDE,
        phase=tuple(_phase(t) for t in time_s),
        progress=progress,
    )


def repetition(number=1):
    """Repetition `number` of the squatting person."""
    start_s = (number - 1) * REPETITION_S
    return Repetition(
        exercise="squat",
        number=number,
        start_s=start_s,
        turn_s=start_s + REPETITION_S / 2,
        end_s=start_s + REPETITION_S,
        eccentric_s=0.8,
        hold_s=0.3,
        concentric_s=0.9,
        depth=1.0,
        ranges=(
            RangeOfMotion("left_knee", 80.0, 180.0, trusted=True),
            RangeOfMotion("left_hip", 65.0, 180.0, trusted=True),
            RangeOfMotion("left_elbow", 150.0, 160.0, trusted=False),
        ),
    )


def video_analysis(people: Sequence[PersonAnalysis] = (), *, n_frames=121, **changes):
    """A recording of `people`."""
    values = {
        "source": SourceInfo("squats.mp4", 640, 360, 30.0, n_frames / 30.0, n_frames),
        "detector": "yolo11n-pose",
        "device": "cpu",
        "exercise_requested": "auto",
        "sample_fps": None,
        "roi": None,
        "n_frames": n_frames,
        "people": tuple(people),
        "problems": (),
        "elapsed_s": 2.0,
        "stage_s": {"decode": 0.3, "detect": 1.2, "analyse": 0.3, "write": 0.2},
    }
    return VideoAnalysis(**(values | changes))


def _up(lean_rad):
    """Unit vector that points up, leaning to the right by `lean_rad`."""
    return np.array([np.sin(lean_rad), -np.cos(lean_rad)])


def _phase(time_s):
    position = time_s % REPETITION_S / REPETITION_S
    if position < 0.1 or position > 0.9:
        return Phase.TOP
    if 0.45 < position < 0.55:
        return Phase.BOTTOM
    return Phase.ECCENTRIC if position < 0.5 else Phase.CONCENTRIC
