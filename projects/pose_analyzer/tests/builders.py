"""Small generated people for tests: a stick figure seen from its left side that squats."""

from collections.abc import Callable, Sequence

import numpy as np

from pose_analyzer.exercises import Exercise
from pose_analyzer.skeletons import ANGLE_INDEX, N_ANGLES, N_KEYPOINTS, N_LANDMARKS, Coco
from pose_analyzer.types import (
    BlazePoseLandmarks,
    CameraView,
    Frame,
    JointAngles,
    PersonAnalysis,
    PersonFrame,
    Phase,
    Pose,
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


def standing_keypoints(centre_px=(320.0, 300.0), height_px=HEIGHT_PX):
    """17 x 2 keypoints of a person who stands and faces the camera, arms hanging."""
    half = np.array([[0.0, -0.5], [0.02, -0.52], [0.04, -0.5], [0.12, -0.35], [0.15, -0.16]])
    low = np.array([[0.16, 0.02], [0.08, 0.0], [0.09, 0.24], [0.1, 0.46]])
    left = np.concatenate([half, low])  # nose, eye, ear, shoulder, elbow, wrist, hip, knee, ankle
    keypoints = np.empty((N_KEYPOINTS, 2))
    keypoints[Coco.NOSE] = left[0]
    # The person's left is on the right of the picture.
    keypoints[1::2] = left[1:]
    keypoints[2::2] = left[1:] * [-1.0, 1.0]
    return np.array(centre_px) + height_px * keypoints


def squat_exercise(**changes):
    """An exercise which fits `squat_keypoints`, whatever the built-in one is tuned to."""
    values = {
        "name": "squat",
        "title": "Squat",
        "description": "Hips sink and rise.",
        "first_phase": "eccentric",
        "signal": {"feature": "hip_height", "start": 1.6, "full": 1.05},
    }
    return Exercise.model_validate(values | changes)


def pose_of(keypoints_px, *, score=0.9, confidences=0.9, landmarks=None):
    """What a detector would say of these keypoints."""
    box = np.concatenate([keypoints_px.min(axis=0) - 10.0, keypoints_px.max(axis=0) + 10.0])
    return Pose(keypoints_px, np.full(N_KEYPOINTS, confidences), box, score, landmarks)


def squat_pose(progress=0.0, ankle_px=(200.0, 340.0), height_px=HEIGHT_PX, *, score=0.9):
    """The squatting person as a detector sees it."""
    return pose_of(squat_keypoints(progress, ankle_px, height_px), score=score)


def squat_progress(time_s, begin_s=0.5, n_repetitions=100):
    """Standing until `begin_s`, then `n_repetitions` of `REPETITION_S`, then standing."""
    elapsed_s = min(max(time_s - begin_s, 0.0), n_repetitions * REPETITION_S)
    return float(0.5 - 0.5 * np.cos(2 * np.pi * elapsed_s / REPETITION_S))


def landmarks_of(keypoints_px):
    """Landmarks that lie flat in the image plane, in metres a thousandth of the pixels."""
    image = np.zeros((N_LANDMARKS, 3))
    image[:, :2] = np.resize(keypoints_px, (N_LANDMARKS, 2))
    return BlazePoseLandmarks(
        image, image / 1000.0, np.full(N_LANDMARKS, 0.9), np.full(N_LANDMARKS, 0.9)
    )


class FakeDetector:
    """Sees in each picture what `people(time_s)` says; remembers what it was given."""

    name = "fake"
    device = "cpu"

    def __init__(self, people: Callable[[float], list[Pose]]):
        self._people = people
        self.times_s: list[float] = []
        self.shapes: list[tuple[int, ...]] = []
        self.n_restarts = 0
        self.closed = False

    def detect(self, images_bgr, times_s=None):
        self.times_s += times_s
        self.shapes += [image.shape for image in images_bgr]
        return [self._people(time_s) for time_s in times_s]

    def restart(self):
        self.n_restarts += 1

    def close(self):
        self.closed = True


class FakeSource:
    """Black pictures at given times, then perhaps an error."""

    def __init__(self, times_s, *, error=None, problems=(), width_px=640, height_px=400):
        self._times_s, self._error, self.problems = list(times_s), error, problems
        self.sample_fps = None
        n_frames = len(self._times_s)
        self.info = SourceInfo("fake.mp4", width_px, height_px, 30.0, n_frames / 30.0, n_frames)

    def frames(self, sample_fps=None):
        self.sample_fps = sample_fps
        image = np.zeros((self.info.height_px, self.info.width_px, 3), np.uint8)
        for index, time_s in enumerate(self._times_s):
            yield Frame(index, float(time_s), image)
        if self._error is not None:
            raise self._error


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
        angles_3d_sd_deg=np.full_like(values, 5.0) if with_3d else None,
        angles_3d_trusted=np.ones(values.shape, bool) if with_3d else None,
        yaw_deg=np.full(n_frames, 85.0),
        view=View.SIDE,
        phase=tuple(_phase(t) for t in time_s),
        progress=progress,
        n_repetitions=np.minimum(time_s // REPETITION_S, n_repetitions).astype(np.int64),
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


def pictures_without_people() -> list[np.ndarray]:
    """Noise and flat pictures of several sizes."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (120, 200, 3), dtype=np.uint8),
        np.full((360, 640, 3), 127, dtype=np.uint8),
        np.zeros((33, 21, 3), dtype=np.uint8),
    ]
