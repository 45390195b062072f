"""Recorded people of UI-PRMD as tracks of repetitions: what the product makes of them, end to end.

Projected and disturbed as in `form_recordings`, then analysed frame by frame by the session's step:
smoothing, camera view, angles and their trust are the product's own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from angle_accuracy import project
from form_recordings import (
    CONFIDENCE,
    FRAME_S,
    FRAME_STEP,
    MEASURED,
    VIEWS,
    WARM_UP_FRAMES,
    errors_px,
    start_session,
    with_run_up,
)

from pose_analyzer.form_session import PoseObservation, SessionConfig, initial_state, step
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.repetition_tracks import track_of
from pose_analyzer.types import PersonFrame, Pose, Repetition

Array = np.ndarray

_SESSION = SessionConfig(movements=())
_BOX = np.array([0.0, 0.0, 1.0, 1.0])


@dataclass(frozen=True)
class Recorded:
    """One repetition of one person, seen from one view."""

    movement: str
    subject: str
    number: int
    faulty: bool
    view: str
    """Where the camera was meant to stand, of `form_recordings.VIEWS`."""
    track: RepetitionTrack


def observe_tracks(
    recorded: Mapping[str, Array], seed: int, *, turn_deg: float = 0.0
) -> Iterator[Recorded]:
    """All repetitions from all views; `turn_deg` is the sd of how far people stand turned."""
    rng = np.random.default_rng(seed)
    subjects = sorted({key.split("/")[1] for key in recorded})
    sessions = {(s, v): start_session(MEASURED, rng) for s in subjects for v in VIEWS}
    turns_deg = {place: turn_deg * rng.normal() for place in sessions}
    for key, points in recorded.items():
        movement, subject, repetition, form = key.split("/")
        points_mm = points[::FRAME_STEP].astype(np.float64)
        for view, yaw_deg in VIEWS.items():
            side = 1.0 if subjects.index(subject) % 2 else -1.0
            place = subject, view
            clean = with_run_up(project(points_mm, side * yaw_deg + turns_deg[place]))
            seen = clean + errors_px(clean, sessions[place], MEASURED, rng)
            number = int(repetition.removeprefix("r"))
            track = follow(seen, movement, number)
            yield Recorded(movement, subject, number, form == "incorrect", view, track)


def follow(seen_px: Array, movement: str, number: int) -> RepetitionTrack:
    state = initial_state(_SESSION)
    frames: list[PersonFrame] = []
    for index, keypoints_px in enumerate(seen_px):
        known = np.isfinite(keypoints_px[:, 0])
        pose = Pose(np.nan_to_num(keypoints_px), np.where(known, CONFIDENCE, 0.0), _BOX, CONFIDENCE)
        state, person = step(_SESSION, state, PoseObservation(1, index, index * FRAME_S, pose))
        frames.append(person)
    kept = frames[WARM_UP_FRAMES:]
    start_s, end_s = kept[0].time_s, kept[-1].time_s
    middle_s = (start_s + end_s) / 2.0
    whole = Repetition(
        movement, number, start_s, middle_s, end_s, middle_s - start_s, 0.0, end_s - middle_s, 1.0
    )
    track = track_of(kept, whole)
    assert track is not None
    return track
