"""What the REST side of live streams takes and answers."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pose_analyzer.api.schemas import Answer
from pose_analyzer.exercises import AUTO
from pose_analyzer.live_stream import LiveStream
from pose_analyzer.stream_types import StreamState

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MAX_FPS = 1000.0


class StreamStart(BaseModel):
    """Body of ``POST /stream/start``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exercise: str = AUTO
    """The exercise to count, or ``auto``."""
    detector: str | None = None
    """As for ``POST /detect``."""
    fps: float = Field(30.0, gt=0.0, le=MAX_FPS)
    """How many frames a second are going to come; decides whether there is room, and, with
    `sample_fps`, how early a frame may be for its turn."""
    sample_fps: float | None = Field(None, gt=0.0, le=MAX_FPS)
    """Analyse at most so many frames a second."""
    roi: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """x0, y0, x1, y1 as fractions of the picture: only there people are looked for."""
    priority: int = Field(0, ge=-100, le=100)
    """Streams of low priority are the first to wait when GPU memory runs out."""
    reference: str | None = Field(None, max_length=64)
    """What form is compared with; by default the general reference of the exercise, until there is
    one of the person's own repetitions."""
    language: str | None = Field(None, max_length=8)
    """In which the coach speaks, such as ``en``; by default the one in the settings."""
    athlete_id: UUID | None = None
    """Whose session it is: they are judged by their own way from the first repetition on."""
    source: str | None = Field(None, max_length=2048)
    """A file or rtsp:// address the service reads itself; the settings must allow it."""

    @model_validator(mode="after")
    def _roi_has_an_area(self) -> "StreamStart":
        if self.roi is not None and not (self.roi[0] < self.roi[2] and self.roi[1] < self.roi[3]):
            raise ValueError("roi must be x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return self


class StreamStarted(Answer):
    """Answer of ``POST /stream/start``."""

    stream_id: str
    session_id: UUID | None
    """Under which it is kept; null where the service keeps nothing."""
    ws_url: str
    """Where frames go and answers come from."""
    detector: str
    device: str
    exercise: str
    keypoint_names: tuple[str, ...]
    """Order of the keypoints in every answer."""
    angle_names: tuple[str, ...]
    """Order of the angles in every answer."""


class StreamInfo(Answer):
    """One stream as it is now."""

    stream_id: str
    session_id: UUID | None
    """Under which it is kept; null where the service keeps nothing."""
    state: StreamState
    reason: str
    """Why it is in that state, as last told; empty while it has not changed."""
    connected: bool
    exercise: str
    detector: str
    source: str | None
    problem: str | None
    """What is wrong with the source; null while nothing is."""
    priority: int
    n_frames: int
    """Pictures that arrived."""
    n_answered: int
    dropped: dict[str, int]
    """Pictures without an answer, by cause."""

    @classmethod
    def of(cls, stream: LiveStream) -> "StreamInfo":
        """Describe a stream."""
        return cls(
            stream_id=stream.stream_id,
            session_id=stream.session_id,
            state=stream.state,
            reason=stream.reason,
            connected=stream.sink is not None,
            exercise=stream.exercise,
            detector=stream.options.detector,
            source=stream.options.source,
            problem=stream.problem,
            priority=stream.options.priority,
            n_frames=stream.next_index,
            n_answered=stream.n_answered,
            dropped={cause.value: n for cause, n in stream.dropped.items()},
        )


class StreamList(Answer):
    """Answer of ``GET /streams``."""

    streams: list[StreamInfo]
    """Oldest first."""
