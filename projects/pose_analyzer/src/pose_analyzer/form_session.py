"""One person's analysis: the single step that live streams, recordings and chunks all call.

Pose in; smoothed keypoints, angles with error bars, camera view, repetitions out. All memory is
in `SessionState`, so the same frames give the same numbers whichever way they arrive.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from pose_analyzer.biomechanics import angles_from_world, measure_angles
from pose_analyzer.camera_view import ViewState, initial_view_state
from pose_analyzer.keypoint_filters import (
    FilteredKeypoints,
    FilterState,
    KalmanFilter,
    KeypointFilter,
)
from pose_analyzer.movement_features import ScaleState, measure_movement
from pose_analyzer.repetition_evidence import Observation
from pose_analyzer.skeletons import N_KEYPOINTS
from pose_analyzer.temporal_analyzer import CounterState, Movement, lose_sight, phase_of
from pose_analyzer.temporal_analyzer import step as count_step
from pose_analyzer.types import CameraView, JointAngles, PersonFrame, Phase, Pose, Repetition


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What is analysed and how."""

    movements: tuple[Movement, ...]
    """One: count it. Several: count each, and recognise which one it is."""
    keypoint_filter: KeypointFilter = field(default_factory=KalmanFilter)


@dataclass(frozen=True, slots=True, eq=False)
class SessionState:
    """What the analysis remembers of one person between frames."""

    filter: FilterState
    scale: ScaleState
    view: ViewState
    counters: tuple[CounterState, ...]
    pose_s: float = float("nan")
    """When the person was last detected."""
    n_detections: int = 0
    """Since the person appeared or the picture was cut."""
    box_px: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    score: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class PoseObservation:
    """One frame of one person; `pose` is None where the person was not found."""

    track_id: int
    frame_index: int
    time_s: float
    pose: Pose | None


_NO_KEYPOINTS: Final = np.full((N_KEYPOINTS, 2), np.nan)
_NO_CONFIDENCES: Final = np.zeros(N_KEYPOINTS)
# A body cannot move by this part of its size within a frame (median over the joints): the picture
# was cut, or somebody else has taken over the track.
_TELEPORT_RATIO: Final = 0.3
_TELEPORT_WITHIN_S: Final = 0.25


# With a larger standard deviation an angle says nothing.
MAX_SD_DEG: Final = 45.0
# A person seen less often may be a stray detection: not trusted, and not bridged when lost.
SETTLED_DETECTIONS: Final = 3


def initial_state(config: SessionConfig) -> SessionState:
    """State before a person's first frame."""
    return SessionState(
        filter=config.keypoint_filter.initial_state(),
        scale=ScaleState(),
        view=initial_view_state(),
        counters=tuple(CounterState() for _ in config.movements),
    )


def recognised(config: SessionConfig, state: SessionState) -> int | None:
    """Index of the movement that explains the person best so far; None while nothing does.

    With a single movement it is that one. Otherwise the one with most repetitions; among equals
    the one whose latest repetition is the most recent.
    """
    if len(config.movements) == 1:
        return 0
    candidates = [
        (len(counter.repetitions), counter.repetitions[-1].end_s, index)
        for index, (movement, counter) in enumerate(
            zip(config.movements, state.counters, strict=True)
        )
        if len(counter.repetitions) >= movement.recognise_after
    ]
    return max(candidates)[2] if candidates else None


def repetitions(config: SessionConfig, state: SessionState) -> tuple[Repetition, ...]:
    """What has been counted of the recognised exercise."""
    index = recognised(config, state)
    return () if index is None else state.counters[index].repetitions


def _teleported(state: SessionState, pose: Pose, time_s: float) -> bool:
    if not time_s - state.pose_s <= _TELEPORT_WITHIN_S:
        return False
    usable = (pose.confidences > 0.3) & np.isfinite(state.filter.position_px[:, 0])
    if np.count_nonzero(usable) < N_KEYPOINTS // 3:
        return False
    moved = (pose.keypoints_px - state.filter.position_px)[usable]
    jumps_px = np.sort(np.hypot(moved[:, 0], moved[:, 1]))
    # The median; `np.median` takes ten times as long for so few numbers.
    jump_px = (jumps_px[(len(jumps_px) - 1) // 2] + jumps_px[len(jumps_px) // 2]) / 2.0
    return bool(jump_px > _TELEPORT_RATIO * state.filter.body_size_px)


def _start_over(config: SessionConfig, state: SessionState) -> SessionState:
    """Forget the body, keep what was counted."""
    fresh = initial_state(config)
    return replace(fresh, counters=tuple(lose_sight(counter) for counter in state.counters))


def step(
    config: SessionConfig, state: SessionState, observation: PoseObservation
) -> tuple[SessionState, PersonFrame]:
    """Analyse one frame of one person.

    Parameters
    ----------
    config
        The same at every step.
    state
        `initial_state(config)` first, then what the previous step returned.
    observation
        Frames in order of time.

    Raises
    ------
    ValueError
        If time runs backwards.
    """
    pose, time_s = observation.pose, observation.time_s
    if pose is not None and _teleported(state, pose, time_s):
        state = _start_over(config, state)
    filter_state, smooth = config.keypoint_filter.step(
        state.filter,
        time_s,
        _NO_KEYPOINTS if pose is None else pose.keypoints_px.astype(np.float64),
        _NO_CONFIDENCES if pose is None else pose.confidences.astype(np.float64),
    )
    scale, features = measure_movement(state.scale, time_s, smooth.keypoints_px, smooth.confidences)
    view_state, angles, view = measure_angles(
        state.view, smooth.keypoints_px, smooth.sd_px, smooth.confidences, time_s
    )
    angles = _judged(angles, n_detections=state.n_detections + (pose is not None))
    seen = Observation(time_s, features, angles.values_deg, angles.trusted)
    counters = tuple(
        count_step(movement, counter, seen)
        for movement, counter in zip(config.movements, state.counters, strict=True)
    )
    state = SessionState(
        filter=filter_state,
        scale=scale,
        view=view_state,
        counters=counters,
        pose_s=state.pose_s if pose is None else time_s,
        n_detections=state.n_detections + (pose is not None),
        box_px=state.box_px if pose is None else _as_box(pose),
        score=state.score if pose is None else pose.score,
    )
    return state, _person_frame(config, state, observation, _Measured(smooth, angles, view))


def _judged(angles: JointAngles, *, n_detections: int) -> JointAngles:
    """Leave out what is no measurement any more; trust nobody at first sight."""
    lost = angles.sd_deg > MAX_SD_DEG
    return JointAngles(
        np.where(lost, np.nan, angles.values_deg),
        np.where(lost, np.nan, angles.sd_deg),
        angles.trusted & ~lost & (n_detections >= SETTLED_DETECTIONS),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    smooth: FilteredKeypoints
    angles: JointAngles
    view: CameraView


def _person_frame(
    config: SessionConfig, state: SessionState, observation: PoseObservation, measured: _Measured
) -> PersonFrame:
    """The answer of one step."""
    index = recognised(config, state)
    counter = None if index is None else state.counters[index]
    movement = None if index is None else config.movements[index]
    landmarks = None if observation.pose is None else observation.pose.landmarks
    return PersonFrame(
        track_id=observation.track_id,
        frame_index=observation.frame_index,
        time_s=observation.time_s,
        detected=observation.pose is not None,
        score=state.score,
        box_px=np.array(state.box_px),
        keypoints_px=measured.smooth.keypoints_px,
        keypoints_sd_px=measured.smooth.sd_px,
        confidences=measured.smooth.confidences,
        flags=measured.smooth.flags,
        landmarks=landmarks,
        angles=measured.angles,
        angles_3d=None if landmarks is None else angles_from_world(landmarks),
        view=measured.view,
        exercise=None if movement is None else movement.exercise,
        phase=Phase.UNKNOWN if movement is None or counter is None else phase_of(movement, counter),
        progress=float("nan") if counter is None else counter.progress,
        n_repetitions=0 if counter is None else len(counter.repetitions),
    )


def _as_box(pose: Pose) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in pose.box_px)
    return x0, y0, x1, y1
