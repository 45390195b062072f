"""Messages between the service and its analysis processes: compact, exact, quick to write.

Each is MessagePack behind its length. Numbers of poses travel as float64, so that a process finds
what a thread would. Answers come in the order of the questions.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from pose_analyzer.form_types import FormChoice
from pose_analyzer.skeletons import N_KEYPOINTS, N_LANDMARKS
from pose_analyzer.stream_types import Encoding
from pose_analyzer.types import BlazePoseLandmarks, Pose

_LENGTH: Final = struct.Struct("<I")
# Score, box, keypoints, their confidences; x, y, z in the image and in the world, two confidences.
_POSE_VALUES: Final = 1 + 4 + 3 * N_KEYPOINTS
_LANDMARK_VALUES: Final = 8 * N_LANDMARKS


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Configure(_Message, frozen=True):
    """First of all: the exercises there are."""

    exercises: list[dict[str, Any]]
    """Fields of each `Exercise`."""
    form_folders: dict[str, str | None] | None = None
    """Fields of `FormFolders`; None: form is not judged."""


class Open(_Message, frozen=True):
    """Begin a session."""

    stream_id: str
    exercise: str
    form: FormChoice
    with_rows: bool = False


class Change(_Message, frozen=True):
    """Count another exercise."""

    stream_id: str
    exercise: str


class End(_Message, frozen=True):
    """Forget a session; answered by `Ended` if it was opened with rows."""

    stream_id: str


class Analyse(_Message, frozen=True):
    """Follow everybody one frame further; answered by `Analysed`."""

    stream_id: str
    frame_index: int
    time_s: float
    encoding: Encoding
    poses: bytes
    landmarks: bytes
    with_landmarks: list[int]
    """Which of the poses have landmarks."""


class Rehearse(_Message, frozen=True):
    """A frame of this stream is with the detector; see `LiveSession.rehearse`."""

    stream_id: str


class Analysed(_Message, frozen=True):
    """What `AnalysedFrame` holds; or an error, and nothing else."""

    people: bytes = b""
    n_people: int = 0
    n_new_repetitions: int = 0
    analyse_s: float = 0.0
    error: str | None = None
    rows: bytes = b""
    repetitions: bytes = b""


class Ended(_Message, frozen=True):
    """Repetitions of a session that were not told before."""

    repetitions: bytes = b""


class Ready(_Message, frozen=True):
    """The process has loaded what it needs."""


Request = Configure | Open | Change | End | Analyse | Rehearse
Reply = Analysed | Ended | Ready

_encoder = msgspec.msgpack.Encoder()
_requests: Final = msgspec.msgpack.Decoder(Request)
_replies: Final = msgspec.msgpack.Decoder(Reply)


def write(message: Request | Reply) -> bytes:
    """Put a message behind its length."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def requests(self, data: bytes | bytearray) -> Iterator[Request]:
        """Questions that are complete now."""
        for body in self._cut(data):
            yield _requests.decode(body)

    def replies(self, data: bytes | bytearray) -> Iterator[Reply]:
        """Answers that are complete now."""
        for body in self._cut(data):
            yield _replies.decode(body)

    def _cut(self, data: bytes | bytearray) -> list[bytes]:
        self._rest += data
        bodies, begin = [], 0
        while begin + _LENGTH.size <= len(self._rest):
            end = begin + _LENGTH.size + _LENGTH.unpack_from(self._rest, begin)[0]
            if end > len(self._rest):
                break
            bodies.append(bytes(self._rest[begin + _LENGTH.size : end]))
            begin = end
        del self._rest[:begin]
        return bodies


def question(
    stream_id: str, frame_index: int, time_s: float, poses: Sequence[Pose], encoding: Encoding
) -> Analyse:
    """Pack the poses of a frame."""
    return Analyse(
        stream_id=stream_id,
        frame_index=frame_index,
        time_s=time_s,
        encoding=encoding,
        poses=b"".join(_pose_bytes(pose) for pose in poses),
        landmarks=b"".join(
            _landmark_bytes(pose.landmarks) for pose in poses if pose.landmarks is not None
        ),
        with_landmarks=[i for i, pose in enumerate(poses) if pose.landmarks is not None],
    )


def poses_of(message: Analyse) -> list[Pose]:
    """Unpack the poses of a frame."""
    values = np.frombuffer(message.landmarks).reshape(-1, _LANDMARK_VALUES)
    landmarks = dict(zip(message.with_landmarks, map(_landmarks, values), strict=True))
    return [
        Pose(
            score=float(row[0]),
            box_px=row[1:5],
            keypoints_px=row[5 : 5 + 2 * N_KEYPOINTS].reshape(N_KEYPOINTS, 2),
            confidences=row[5 + 2 * N_KEYPOINTS :],
            landmarks=landmarks.get(index),
        )
        for index, row in enumerate(np.frombuffer(message.poses).reshape(-1, _POSE_VALUES))
    ]


def _pose_bytes(pose: Pose) -> bytes:
    parts = ((pose.score,), pose.box_px, pose.keypoints_px.ravel(), pose.confidences)
    return np.concatenate(parts, dtype=np.float64).tobytes()


def _landmark_bytes(landmarks: BlazePoseLandmarks) -> bytes:
    parts = (
        landmarks.image_px.ravel(),
        landmarks.world_m.ravel(),
        landmarks.visibility,
        landmarks.presence,
    )
    return np.concatenate(parts, dtype=np.float64).tobytes()


def _landmarks(row: np.ndarray) -> BlazePoseLandmarks:
    image, world, visibility, presence = np.split(
        row, np.cumsum([3 * N_LANDMARKS, 3 * N_LANDMARKS, N_LANDMARKS])
    )
    return BlazePoseLandmarks(
        image.reshape(N_LANDMARKS, 3), world.reshape(N_LANDMARKS, 3), visibility, presence
    )
