"""The frozen vocabulary of live streams: frames on their way, what became of them, states.

Two clocks occur. `received_s` and the like are readings of the service's monotonic clock;
`time_s` is a frame's capture time on the clock of its own stream.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import numpy as np
from jaxtyping import UInt8

from pose_analyzer.form_types import NO_CHOICE, FormChoice
from pose_analyzer.regions import RegionOfInterest
from pose_analyzer.types import Pose


class DropCause(StrEnum):
    """Why a frame got no answer."""

    STALE = "stale"
    """A newer frame of its stream took its place, or it is not newer than one already analysed."""
    OVERLOAD = "overload"
    """The detector had no room for it, or it or the analysis broke."""
    UNDECODABLE = "undecodable"
    PAUSED = "paused"
    """It arrived while its stream was paused, by the client or for lack of memory."""
    UNSAMPLED = "unsampled"
    """The stream was asked to analyse fewer frames a second."""


class StreamState(StrEnum):
    """What a stream is doing."""

    ACTIVE = "active"
    PAUSED = "paused"
    """By its client."""
    SHED = "shed"
    """By the service, until there is GPU memory again."""
    ENDED = "ended"


class Encoding(StrEnum):
    """How answers are written."""

    JSON = "json"
    MSGPACK = "msgpack"


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a client asked for when it started a stream."""

    exercise: str
    """``auto`` or the name of an exercise."""
    detector: str
    """A model such as ``yolo11n-pose``."""
    fps: float = 30.0
    """Frames a second that are going to come; more may."""
    sample_fps: float | None = None
    """Frames analysed per second at most; None: all."""
    roi: RegionOfInterest | None = None
    priority: int = 0
    """Streams of low priority are shed first when GPU memory runs out."""
    form: FormChoice = NO_CHOICE
    """What form is judged by."""
    source: str | None = None
    """What the service reads itself, as it may be shown; None: the client sends frames."""
    athlete_id: UUID | None = None
    """Whose session it is."""

    @property
    def expected_fps(self) -> float:
        """Frames a second to be analysed, for admission."""
        return self.fps if self.sample_fps is None else min(self.fps, self.sample_fps)


@dataclass(frozen=True, slots=True, eq=False)
class DevicePicture:
    """A decoded picture that never left the GPU."""

    rgb: Any
    """torch.uint8 tensor (3, height, width) on the GPU, sRGB."""
    height_px: int
    width_px: int


FrameContent = bytes | UInt8[np.ndarray, "height width 3"] | DevicePicture
"""A JPEG, PNG or WebP file; a decoded BGR picture; or one on the GPU."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamFrame:
    """One picture of one stream on its way to the detector."""

    stream_id: str
    index: int
    """0-based number of the frame in its stream, dropped ones counted."""
    time_s: float
    """Capture time on the stream's clock, strictly increasing among analysed frames."""
    received_s: float
    """When the service had it, by its monotonic clock."""
    content: FrameContent
    roi: RegionOfInterest | None = None
    """Only there people are looked for; their coordinates are those of the whole picture."""


@dataclass(frozen=True, slots=True, eq=False)
class FramePoses:
    """The detector's answer for one frame."""

    poses: list[Pose]
    """Best first, in pixels of the whole, upright picture."""
    width_px: int
    height_px: int
    decode_s: float
    """Wall time in which its batch was decoded."""
    infer_s: float
    """Wall time in which its batch was resized and went through the network."""
    postprocess_s: float
    """Wall time in which its batch became people."""


@dataclass(frozen=True, slots=True)
class FrameFailure:
    """A frame the detector could not answer; the stream goes on."""

    cause: DropCause
    """``UNDECODABLE`` or ``OVERLOAD``."""
    detail: str


FrameOutcome = FramePoses | FrameFailure


@dataclass(frozen=True, slots=True)
class AnalysedFrame:
    """What the analysis says of one frame."""

    people: bytes
    """List of `wire.Person`, written in the encoding that was asked for."""
    n_people: int
    n_new_repetitions: int
    analyse_s: float
    """Time the analysis took, waiting not counted."""
    rows: bytes = b""
    """Everybody as `frame_rows.ROW`, if it was asked for."""
    repetitions: bytes = b""
    """What is over now, as `session_records.write_repetitions` writes it, if it was asked for."""
