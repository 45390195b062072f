"""What a client may choose."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pose_analyzer_client.backoff import ReconnectPolicy

Color = Literal["bgr", "rgb"]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What is asked of the service when a stream is started."""

    sample_fps: float | None = None
    """Frames a second to be analysed; None all. The others of a `stream` are not even sent."""
    roi: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 as fractions of the image: only there people are looked for."""
    source: str | None = None
    """A file or RTSP address the service reads by itself; see `PoseAnalyzerClient.watch`."""
    fps: float = 30.0
    """Frames a second that will be sent; the service makes room for them."""
    priority: int = 0
    """Streams of higher priority are kept longer when the service runs out of memory."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """All that is asked of the service for one stream."""

    exercise: str
    detector: str | None
    options: StreamOptions

    def as_json(self) -> dict[str, Any]:
        """Body of ``POST /stream/start``."""
        wanted = {"exercise": self.exercise, "detector": self.detector} | asdict(self.options)
        if self.options.source is None and self.options.sample_fps is not None:
            # The client leaves frames out by itself, so the service gets only those it answers.
            wanted |= {"sample_fps": None, "fps": min(self.options.fps, self.options.sample_fps)}
        return wanted


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How the client behaves."""

    encoding: Literal["msgpack", "json"] = "msgpack"
    """How answers are written."""
    color: Color = "bgr"
    """Order of the channels of arrays; OpenCV's is BGR."""
    jpeg_quality: int = 85
    """1..100, for images that are encoded here."""
    window: int = 2
    """Most frames of a live `stream` on their way at once."""
    answer_timeout_s: float = 10.0
    """A frame unanswered for so long is given up."""
    connect_timeout_s: float = 10.0
    """For each connection, and for each request but those of `start_timeout_s`."""
    start_timeout_s: float = 60.0
    """For the start of a stream and for `detect_image`: the service may first have to load its
    detector, or to fetch the model."""
    completion_timeout_s: float = 600.0
    """For the service to put an uploaded video together and look at it."""
    capacity_wait_s: float = 0.0
    """How long to wait and ask again when the service has no room for the stream."""
    reconnect: ReconnectPolicy = field(default_factory=ReconnectPolicy)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError("window must be 1 or more")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError("jpeg_quality must be from 1 to 100")
