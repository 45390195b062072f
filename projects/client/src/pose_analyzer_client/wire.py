"""Messages between client and service, as JSON or MessagePack.

What is not known of a message is ignored, so that services may say more than this client knows. A
number that is not known is null in JSON and NaN in MessagePack.
"""

from typing import Any, Final

import msgspec

SUBPROTOCOLS: Final = {"json": "pose.v1.json", "msgpack": "pose.v1.msgpack"}

Number = float | None
Numbers = list[float | None]


class Angles(msgspec.Struct, frozen=True):
    """Joint angles in the order the service named when the stream was started."""

    values_deg: Numbers
    sd_deg: Numbers
    trusted: list[bool]


class Repetition(msgspec.Struct, frozen=True):
    """The latest completed repetition."""

    number: int
    start_s: Number
    turn_s: Number
    end_s: Number
    eccentric_s: Number
    hold_s: Number
    concentric_s: Number
    depth: Number


class Cue(msgspec.Struct, frozen=True):
    """One thing to say to the person."""

    key: str
    text: str
    kind: str
    fault: str | None
    time_s: float


class Loss(msgspec.Struct, frozen=True):
    """Why some points are missing."""

    component: str
    points: Number
    phase: str
    joint: str
    amount: Number
    unit: str
    at_s: Number
    text_key: str


class Fault(msgspec.Struct, frozen=True):
    """A named mistake."""

    name: str
    severity: Number
    joint: str
    side: str | None
    phase: str
    amount: Number
    unit: str
    at_s: Number


class Form(msgspec.Struct, frozen=True):
    """How the latest repetition that is over was done."""

    repetition: int
    score: Number
    components: dict[str, Number]
    reference: str | None
    mode: str | None
    losses: list[Loss]
    faults: list[Fault]
    cannot_judge: dict[str, str]
    anomaly: str | None
    cue: Cue | None


class FormNow(msgspec.Struct, frozen=True):
    """How the frame compares with the reference, within the repetition under way."""

    phase: float
    score: Number
    joint: str
    amount: Number
    unit: str
    sd: Number


class Person(msgspec.Struct, frozen=True):
    """One person in one frame."""

    track_id: int
    detected: bool
    score: Number
    box_px: tuple[Number, Number, Number, Number]
    keypoints_px: list[tuple[Number, Number]]
    keypoints_sd_px: Numbers
    confidences: Numbers
    flags: list[int]
    angles: Angles
    angles_3d: Angles | None
    view: str
    yaw_deg: Number
    exercise: str | None
    phase: str
    progress: Number
    n_repetitions: int
    last_repetition: Repetition | None
    form: Form | None = None
    """None also from services that do not judge form."""
    form_now: FormNow | None = None
    """None also from services that do not tell."""


class Timing(msgspec.Struct, frozen=True):
    """Seconds by stage."""

    queue_s: float
    decode_s: float
    infer_s: float
    postprocess_s: float


class Result(msgspec.Struct, frozen=True, tag="result", tag_field="type"):
    """The answer to one frame."""

    frame: int
    captured_s: float
    received_s: float
    answered_s: float
    width_px: int
    height_px: int
    people: list[Person]
    timing: Timing
    dropped: dict[str, int]


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="type"):
    """First message on every connection."""

    stream_id: str
    next_frame: int
    resumed: bool
    exercise: str
    detector: str
    device: str
    state: str


class State(msgspec.Struct, frozen=True, tag="state", tag_field="type"):
    """The stream was paused, shed, resumed or ended."""

    state: str
    reason: str


class Error(msgspec.Struct, frozen=True, tag="error", tag_field="type"):
    """Something sent could not be used."""

    code: str
    detail: str
    frame: int | None = None


class Pong(msgspec.Struct, frozen=True, tag="pong", tag_field="type"):
    """Answer to a ping."""

    data: str
    time_s: float


ServerMessage = Result | Ready | State | Error | Pong


class StreamStarted(msgspec.Struct, frozen=True):
    """Answer of ``POST /stream/start``."""

    stream_id: str
    ws_url: str
    detector: str
    device: str
    exercise: str
    keypoint_names: tuple[str, ...]
    angle_names: tuple[str, ...]
    session_id: str | None = None
    """Under which the stream is kept; None where the service keeps nothing."""


class StreamInfo(msgspec.Struct, frozen=True):
    """One stream as the service sees it."""

    stream_id: str
    state: str
    """``active``, ``paused``, ``shed`` or ``ended``."""
    connected: bool
    exercise: str
    detector: str
    source: str | None
    priority: int
    n_frames: int
    """Pictures that arrived."""
    n_answered: int
    dropped: dict[str, int]
    """Pictures without an answer, by cause."""
    problem: str | None = None
    """What is wrong with the source; None while nothing is."""
    reason: str = ""
    """Why it is in its state; empty while that has not changed."""


class StreamList(msgspec.Struct, frozen=True):
    """Answer of ``GET /streams``."""

    streams: tuple[StreamInfo, ...]


class ResultPage(msgspec.Struct, frozen=True):
    """Answer of ``GET /stream/{id}/results``."""

    results: list[Result]
    next: int


class VideoPart(msgspec.Struct, frozen=True):
    """One part of an upload."""

    number: int
    size_bytes: int
    stored: bool
    url: str | None
    """Where it goes; None if it is there."""


class VideoUpload(msgspec.Struct, frozen=True):
    """What is there of an upload, and where the rest goes."""

    part_bytes: int
    parts: tuple[VideoPart, ...]

    @property
    def missing(self) -> tuple[VideoPart, ...]:
        """Parts that are still to be sent."""
        return tuple(part for part in self.parts if not part.stored)


class Video(msgspec.Struct, frozen=True):
    """An uploaded video as the service sees it."""

    video_id: str
    session_id: str
    filename: str
    state: str
    """``uploading``, ``stored`` or ``refused``."""
    size_bytes: int
    sha256: str | None
    duration_s: Number
    athlete_id: str | None
    job_id: str | None
    """Of its analysis; None if nothing analyses it."""
    upload: VideoUpload | None = None
    """While it is being uploaded."""


class VideoList(msgspec.Struct, frozen=True):
    """Answer of ``GET /videos``."""

    videos: tuple[Video, ...]


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""


class NamedKeypoint(msgspec.Struct, frozen=True):
    """A keypoint in the answer of ``POST /detect``."""

    name: str
    x_px: Number
    y_px: Number
    confidence: Number


class NamedAngle(msgspec.Struct, frozen=True):
    """An angle in the answer of ``POST /detect``."""

    name: str
    value_deg: Number
    sd_deg: Number
    trusted: bool


class DetectedPerson(msgspec.Struct, frozen=True):
    """One person in the answer of ``POST /detect``."""

    score: Number
    box_px: tuple[Number, Number, Number, Number]
    keypoints: list[NamedKeypoint]
    angles: list[NamedAngle]
    angles_3d: list[NamedAngle] | None


class Detection(msgspec.Struct, frozen=True):
    """Answer of ``POST /detect``."""

    detector: str
    device: str
    width_px: int
    height_px: int
    people: list[DetectedPerson]


class _Kind(msgspec.Struct, frozen=True):
    """What every message tells."""

    type: str


_KNOWN: Final = frozenset({"result", "ready", "state", "error", "pong"})
_json: Final = msgspec.json.Decoder(ServerMessage)
_msgpack: Final = msgspec.msgpack.Decoder(ServerMessage)
_json_kind: Final = msgspec.json.Decoder(_Kind)
_msgpack_kind: Final = msgspec.msgpack.Decoder(_Kind)


def decode(data: str | bytes) -> ServerMessage | None:
    """Read a message of the service: text is JSON, bytes are MessagePack.

    Returns
    -------
    ServerMessage or None
        None for a message of a type this client does not know.

    Raises
    ------
    msgspec.DecodeError
        Not a message of this protocol.
    """
    try:
        message: ServerMessage = (
            _json.decode(data) if isinstance(data, str) else _msgpack.decode(data)
        )
    except msgspec.ValidationError:
        kind = _json_kind.decode(data) if isinstance(data, str) else _msgpack_kind.decode(data)
        if kind.type in _KNOWN:
            raise
        return None
    return message


def encode(message: dict[str, Any]) -> str:
    """Write a control message; these are JSON text always."""
    return msgspec.json.encode(message).decode()
