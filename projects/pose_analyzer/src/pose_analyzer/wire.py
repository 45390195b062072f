"""Messages of the live service, as JSON or MessagePack; described in docs/API.md.

Client and server exchange flat maps with a member ``type``. In JSON a number that is not known is
null; in MessagePack it is NaN. Arrays follow the order of `skeletons.KEYPOINT_NAMES` and
`skeletons.ANGLE_NAMES`, which the answer to ``POST /stream/start`` repeats.
"""

from typing import Annotated, Any, Final

import msgspec

from pose_analyzer.form_types import Cue, Fault, FormUpdate, PointLoss
from pose_analyzer.live_form import LiveForm
from pose_analyzer.stream_types import DropCause, Encoding, StreamState
from pose_analyzer.types import JointAngles, PersonFrame, Repetition

JSON_SUBPROTOCOL: Final = "pose.v1.json"
MSGPACK_SUBPROTOCOL: Final = "pose.v1.msgpack"

# UNIX time is below 2e9. Without bounds a single wrong time would stop the stream's clock for ever.
ClientSeconds = Annotated[float, msgspec.Meta(ge=-1e10, le=1e10)]
Numbers = list[float | None]
Points = list[tuple[float | None, float | None]]


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base: unknown members are ignored, so that newer peers may say more."""


class FrameHeader(_Message, frozen=True, kw_only=True, tag="frame", tag_field="type"):
    """Says when the next picture was taken."""

    captured_s: ClientSeconds
    """On the client's clock; only differences between frames matter."""


class Pause(_Message, frozen=True, kw_only=True, tag="pause", tag_field="type"):
    """Frames are dropped until `Resume`."""


class Resume(_Message, frozen=True, kw_only=True, tag="resume", tag_field="type"):
    """Analyse again."""


class ChangeExercise(_Message, frozen=True, kw_only=True, tag="exercise", tag_field="type"):
    """Count another exercise from now on, from zero."""

    exercise: str
    """``auto`` or the name of an exercise."""


class Ping(_Message, frozen=True, kw_only=True, tag="ping", tag_field="type"):
    """Asks for a `Pong`, to measure the way."""

    data: str = ""


ClientMessage = FrameHeader | Pause | Resume | ChangeExercise | Ping


class LastRepetition(_Message, frozen=True, kw_only=True):
    """The latest completed repetition. Times are seconds on the stream's clock."""

    number: int
    start_s: float
    turn_s: float
    end_s: float
    eccentric_s: float
    hold_s: float
    concentric_s: float
    depth: float

    @classmethod
    def of(cls, repetition: Repetition) -> "LastRepetition":
        """Copy what clients are told."""
        return cls(**{name: getattr(repetition, name) for name in cls.__struct_fields__})


class Angles(_Message, frozen=True, kw_only=True):
    """The 12 joint angles."""

    values_deg: Numbers
    sd_deg: Numbers
    trusted: list[bool]

    @classmethod
    def of(cls, angles: JointAngles) -> "Angles":
        """Put angles into lists."""
        return cls(
            values_deg=angles.values_deg.tolist(),
            sd_deg=angles.sd_deg.tolist(),
            trusted=angles.trusted.tolist(),
        )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


class Loss(_Message, frozen=True, kw_only=True):
    """Why some points are missing; docs/FORM.md tells the keys and units."""

    component: str
    points: float
    phase: str
    joint: str
    amount: float
    """In `unit`; what the repetition has more than the reference."""
    unit: str
    at_s: float
    text_key: str

    @classmethod
    def of(cls, loss: PointLoss) -> "Loss":
        """Copy what clients are told."""
        # Computed with NumPy, whose floats cannot be written.
        return cls(
            component=loss.component.value,
            points=float(loss.points),
            phase=loss.phase.value,
            joint=loss.joint,
            amount=float(loss.amount),
            unit=loss.unit,
            at_s=float(loss.at_s),
            text_key=loss.text_key,
        )


class FormFault(_Message, frozen=True, kw_only=True):
    """A named mistake."""

    name: str
    severity: float
    """0 just noticeable .. 1 clear."""
    joint: str
    side: str | None
    phase: str
    amount: float
    unit: str
    at_s: float

    @classmethod
    def of(cls, fault: Fault) -> "FormFault":
        """Copy what clients are told."""
        return cls(**{name: getattr(fault, name) for name in cls.__struct_fields__})


class CoachCue(_Message, frozen=True, kw_only=True):
    """One thing to say to the person."""

    key: str
    text: str
    kind: str
    """``correction`` or ``praise``."""
    fault: str | None
    time_s: float
    """When, on the stream's clock; the same cue has the same time in every answer."""

    @classmethod
    def of(cls, cue: Cue) -> "CoachCue":
        """Copy what clients are told."""
        return cls(**{name: getattr(cue, name) for name in cls.__struct_fields__})


MAX_LOSSES: Final = 3


class Form(_Message, frozen=True, kw_only=True):
    """How the latest repetition that is over was done."""

    repetition: int
    score: float | None
    """0..100; null where there is nothing to compare with from here."""
    components: dict[str, float | None]
    reference: str | None
    mode: str | None
    """``personal`` or ``general``: what the score is relative to."""
    losses: list[Loss]
    """The largest three."""
    faults: list[FormFault]
    """Most urgent first."""
    cannot_judge: dict[str, str]
    """Angles, components and faults that are not to be seen from here, with the reason."""
    anomaly: str | None
    """``normal``, ``anomalous`` or ``unsure``; null where there is no model."""
    cue: CoachCue | None
    """To be said once."""

    @classmethod
    def of(cls, form: FormUpdate) -> "Form":
        """Put what was judged into lists."""
        score = form.score
        used = None if score is None else score.reference
        unseen = (*(() if score is None else score.cannot_judge), *form.cannot_judge)
        return cls(
            repetition=form.repetition,
            score=None if score is None else _float(score.total),
            components={}
            if score is None
            else {c.value: _float(points) for c, points in score.components.items()},
            reference=None if used is None else used.name,
            mode=None if used is None else used.mode,
            losses=[Loss.of(loss) for loss in (() if score is None else score.losses)[:MAX_LOSSES]],
            faults=[FormFault.of(fault) for fault in form.faults],
            cannot_judge={item.what: item.reason.value for item in unseen},
            anomaly=None if form.anomaly is None else form.anomaly.verdict.value,
            cue=None if form.cue is None else CoachCue.of(form.cue),
        )


class FormNow(_Message, frozen=True, kw_only=True):
    """How the frame compares with the reference, within the repetition under way."""

    phase: float
    """0 at the start of the repetition, 1 at its end."""
    score: float
    """0..100: what the repetition so far is worth, by its deviation; an estimate."""
    joint: str
    """What is off most in this frame, named as in `Loss`."""
    amount: float
    """In `unit`; what it has more than the reference."""
    unit: str
    sd: float
    """The same in standard deviations of correct repetitions, without sign; worth showing from
    about 2; 6 at most."""

    @classmethod
    def of(cls, now: LiveForm) -> "FormNow":
        """Copy what clients are told."""
        return cls(**{name: getattr(now, name) for name in cls.__struct_fields__})


class Person(_Message, frozen=True, kw_only=True):
    """One person in one frame."""

    track_id: int
    detected: bool
    score: float
    box_px: tuple[float, float, float, float]
    keypoints_px: Points
    keypoints_sd_px: Numbers
    confidences: Numbers
    flags: list[int]
    """Bits: 1 bridged, 2 sides put back, 4 measurement rejected."""
    angles: Angles
    angles_3d: Angles | None
    view: str
    yaw_deg: float | None
    exercise: str | None
    phase: str
    progress: float | None
    n_repetitions: int
    last_repetition: LastRepetition | None
    form: Form | None = None
    """Null while no repetition has been judged."""
    form_now: FormNow | None = None
    """Null between repetitions, and where nothing can be judged from here."""

    @classmethod
    def of(
        cls,
        person: PersonFrame,
        last: Repetition | None,
        form: Form | None = None,
        now: LiveForm | None = None,
    ) -> "Person":
        """Put one step's answer into lists."""
        x0_px, y0_px, x1_px, y1_px = person.box_px.tolist()
        return cls(
            track_id=person.track_id,
            detected=person.detected,
            score=person.score,
            box_px=(x0_px, y0_px, x1_px, y1_px),
            keypoints_px=[(x_px, y_px) for x_px, y_px in person.keypoints_px.tolist()],
            keypoints_sd_px=person.keypoints_sd_px.tolist(),
            confidences=person.confidences.tolist(),
            flags=person.flags.tolist(),
            angles=Angles.of(person.angles),
            angles_3d=None if person.angles_3d is None else Angles.of(person.angles_3d),
            view=person.view.label.value,
            yaw_deg=person.view.yaw_deg,
            exercise=person.exercise,
            phase=person.phase.value,
            progress=person.progress,
            n_repetitions=person.n_repetitions,
            last_repetition=None if last is None else LastRepetition.of(last),
            form=form,
            form_now=None if now is None else FormNow.of(now),
        )


class Timing(_Message, frozen=True, kw_only=True):
    """Where the time between receiving a frame and answering it went; together that is all of it.

    Frames of one batch share its times.
    """

    queue_s: float
    """Waiting, wherever: for a batch, between the stages, for the answer's turn."""
    decode_s: float
    infer_s: float
    postprocess_s: float
    """Suppression, angles, repetitions and writing the answer."""


class Result(_Message, frozen=True, kw_only=True, tag="result", tag_field="type"):
    """The answer to one frame."""

    frame: int
    """0-based number of the picture among those the stream was sent."""
    captured_s: float
    """Time of the frame on the stream's clock, which starts at 0 with its first frame."""
    received_s: float
    """Seconds since the stream was started, by the service's clock."""
    answered_s: float
    width_px: int
    height_px: int
    people: list[Person]
    timing: Timing
    dropped: dict[str, int]
    """Frames dropped since the last answer, by `DropCause`; causes without any are left out."""


class WrittenResult(Result, frozen=True, kw_only=True, tag="result", tag_field="type"):
    """A `Result` whose people are written already, as the analysis hands them over."""

    # The same on the wire.
    people: msgspec.Raw  # type: ignore[assignment]


class Ready(_Message, frozen=True, kw_only=True, tag="ready", tag_field="type"):
    """First message on every connection."""

    stream_id: str
    next_frame: int
    """The number the next picture will get."""
    resumed: bool
    """True when this continues an earlier connection."""
    exercise: str
    detector: str
    device: str
    state: StreamState


class State(_Message, frozen=True, kw_only=True, tag="state", tag_field="type"):
    """The stream was paused, shed, resumed or ended; `reason` says by whom and why."""

    state: StreamState
    reason: str


class Error(_Message, frozen=True, kw_only=True, tag="error", tag_field="type"):
    """Something sent could not be used; the stream goes on."""

    code: str
    detail: str
    frame: int | None = None


class Pong(_Message, frozen=True, kw_only=True, tag="pong", tag_field="type"):
    """Answer to `Ping`."""

    data: str
    time_s: float
    """Seconds since the stream was started, by the service's clock."""


ServerMessage = Ready | Result | State | Error | Pong

_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
_client_json: Final = msgspec.json.Decoder(ClientMessage)


def encode(message: Any, encoding: Encoding) -> bytes:  # noqa: ANN401 - whatever msgspec takes
    """Write a message, or a part of one."""
    return _json.encode(message) if encoding is Encoding.JSON else _msgpack.encode(message)


def decode_client_message(text: str | bytes) -> ClientMessage:
    """Read a control message of a client.

    Raises
    ------
    msgspec.DecodeError
        Not JSON, or not a known message; `msgspec.ValidationError` is one.
    """
    message: ClientMessage = _client_json.decode(text)
    return message


def count_drops(drops: dict[DropCause, int]) -> dict[str, int]:
    """Only what there is, by the causes' names."""
    return {cause.value: n for cause, n in drops.items() if n}
