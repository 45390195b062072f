"""Records of a session as live streams leave them, for tests."""

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from pose_analyzer.frame_rows import ROW
from pose_analyzer.session_records import (
    FaultRecord,
    FrameBlock,
    Range,
    RepetitionDone,
    RepetitionRecord,
    SessionClosed,
    SessionOpened,
    SessionRecord,
)

STARTED = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
STARTED_US = int(STARTED.timestamp()) * 1_000_000 + STARTED.microsecond


def frame_rows(frames, track_id=1, *, fps=30.0) -> np.ndarray:
    """Somebody whose left knee bends by a degree a frame."""
    frames = np.asarray(frames)
    rows = np.zeros(len(frames), ROW)
    rows["track_id"] = track_id
    rows["frame_index"] = frames
    rows["time_s"] = frames / fps
    rows["keypoints"] = 100.0 + frames[:, None, None] % 7
    rows["confidence"] = 0.9
    rows["angles"] = np.nan
    rows["angles"][:, 6] = 180.0 - frames % 100
    rows["progress"] = (frames % 60) / 60.0
    rows["n_repetitions"] = frames // 60
    rows["score"] = np.where(frames < 60, np.nan, 80.0)
    return rows


def opened(session_id: uuid.UUID, athlete_id: uuid.UUID | None = None) -> SessionOpened:
    return SessionOpened(session_id, "stream", athlete_id, None, None, "yolo11n-pose", STARTED)


def block(session_id: uuid.UUID, *frames: int, track_id=1) -> FrameBlock:
    return FrameBlock(session_id, STARTED_US, frame_rows(frames, track_id).tobytes())


def repetition(number=1, **changes) -> RepetitionRecord:
    values = {
        "track_id": 1,
        "count": 0,
        "exercise": "squat",
        "number": number,
        "start_s": 2.0 * number - 2.0,
        "turn_s": 2.0 * number - 1.0,
        "end_s": 2.0 * number,
        "eccentric_s": 0.8,
        "hold_s": 0.3,
        "concentric_s": 0.9,
        "depth": 1.0,
        "ranges": [
            Range("left_knee", 80.0, 170.0, trusted=True),
            Range("right_knee", 85.0, 170.0, trusted=True),
            Range("left_hip", 60.0, 180.0, trusted=False),
        ],
        "yaw_deg": 84.0,
        "accepted": True,
        "score": 80.0 + number,
        "components": {"deviation": 90.0, "symmetry": None},
    }
    return RepetitionRecord(**(values | changes))


def fault(name="shallow") -> FaultRecord:
    return FaultRecord(name, 0.7, "knee", "left", "bottom", 12.5, "deg", 1.5)


def done(session_id: uuid.UUID, number=1, **changes) -> RepetitionDone:
    return RepetitionDone(session_id, STARTED_US, repetition(number, **changes))


def closed(session_id: uuid.UUID, **changes) -> SessionClosed:
    values = {"n_frames": 90, "n_repetitions": 2, "exercise": "squat", "score": 81.5}
    return SessionClosed(session_id, STARTED, **(values | changes))


def whole_session(session_id: uuid.UUID, n_frames=90) -> list[SessionRecord]:
    """Opened, every frame a block of its own, two repetitions, closed."""
    return [
        opened(session_id),
        *(block(session_id, frame) for frame in range(n_frames)),
        done(session_id, 1, faults=[fault()]),
        done(session_id, 2),
        closed(session_id, n_frames=n_frames),
    ]


def wait_until(true: Callable[[], bool], timeout_s=20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
