"""What is kept of a session, as messages: from the analysis to the writer, and on disk in between.

MessagePack like the answers of live streams. Nothing here depends on where it is kept.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from pose_analyzer.form_types import Fault, FormUpdate
from pose_analyzer.types import RangeOfMotion, Repetition
from pose_analyzer.wire import Loss


class _Record(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class SessionOpened(_Record, frozen=True):
    """A live stream has started."""

    session_id: UUID
    stream_id: str
    athlete_id: UUID | None
    source_name: str | None
    exercise: str | None
    """None: to be recognised."""
    detector: str
    started_at: datetime


class SessionBegan(_Record, frozen=True):
    """Its first frame was taken."""

    session_id: UUID
    started_at: datetime


class FrameBlock(_Record, frozen=True):
    """Everybody in one frame, or in several."""

    session_id: UUID
    started_us: int
    """Time of day of the session's second 0, in microseconds since 1970."""
    rows: bytes
    """Of `frame_rows.ROW`."""


class Range(msgspec.Struct, frozen=True):
    """Extremes of one angle within a repetition."""

    angle: str
    min_deg: float
    max_deg: float
    trusted: bool

    @classmethod
    def of(cls, found: RangeOfMotion) -> "Range":
        """Copy, without NumPy's floats."""
        return cls(found.angle, float(found.min_deg), float(found.max_deg), bool(found.trusted))


class FaultRecord(msgspec.Struct, frozen=True):
    """A named mistake in a repetition."""

    name: str
    severity: float
    joint: str
    side: str | None
    phase: str
    amount: float
    unit: str
    at_s: float

    @classmethod
    def of(cls, fault: Fault) -> "FaultRecord":
        """Copy, without NumPy's floats."""
        return cls(
            name=fault.name,
            severity=float(fault.severity),
            joint=fault.joint,
            side=fault.side,
            phase=fault.phase.value,
            amount=float(fault.amount),
            unit=fault.unit,
            at_s=float(fault.at_s),
        )


class RepetitionRecord(_Record, frozen=True):
    """One repetition that is over, and how it was judged."""

    track_id: int
    count: int
    """How often counting has begun anew before; a new count starts at number 1."""
    exercise: str
    number: int
    start_s: float
    turn_s: float
    end_s: float
    eccentric_s: float
    hold_s: float
    concentric_s: float
    depth: float
    ranges: list[Range]
    yaw_deg: float | None = None
    accepted: bool = False
    """Good enough to learn the person's own way from."""
    reference: str | None = None
    reference_mode: str | None = None
    score: float | None = None
    components: dict[str, float | None] = {}
    losses: list[dict[str, Any]] = []
    anomaly: str | None = None
    anomaly_score: float | None = None
    cue: str | None = None
    faults: list[FaultRecord] = []

    @classmethod
    def of(
        cls, track_id: int, repetition: Repetition, form: FormUpdate | None, count: int = 0
    ) -> "RepetitionRecord":
        """Put a repetition and what was said of it together; nothing was said if `form` is None."""
        score = None if form is None else form.score
        used = None if score is None else score.reference
        anomaly = None if form is None else form.anomaly
        return cls(
            track_id=track_id,
            count=count,
            exercise=repetition.exercise,
            number=repetition.number,
            start_s=float(repetition.start_s),
            turn_s=float(repetition.turn_s),
            end_s=float(repetition.end_s),
            eccentric_s=float(repetition.eccentric_s),
            hold_s=float(repetition.hold_s),
            concentric_s=float(repetition.concentric_s),
            depth=float(repetition.depth),
            ranges=[Range.of(one) for one in repetition.ranges],
            yaw_deg=None if form is None else _known(form.yaw_deg),
            accepted=form is not None and form.accepted,
            reference=None if used is None else used.name,
            reference_mode=None if used is None else used.mode,
            score=None if score is None else _known(score.total),
            components={}
            if score is None
            else {part.value: _known(points) for part, points in score.components.items()},
            losses=[]
            if score is None
            else [msgspec.to_builtins(Loss.of(loss)) for loss in score.losses],
            anomaly=None if anomaly is None else anomaly.verdict.value,
            anomaly_score=None if anomaly is None else _known(anomaly.score),
            cue=None if form is None or form.cue is None else form.cue.key,
            faults=[] if form is None else [FaultRecord.of(fault) for fault in form.faults],
        )


class RepetitionDone(_Record, frozen=True):
    """A repetition of a session is over."""

    session_id: UUID
    started_us: int
    repetition: RepetitionRecord


class Withdrawn(msgspec.Struct, frozen=True, array_like=True):
    """Repetitions counted of what turned out to be another exercise."""

    track_id: int
    exercise: str
    numbers: list[int]


class SessionClosed(_Record, frozen=True):
    """A live stream has ended."""

    session_id: UUID
    ended_at: datetime
    n_frames: int
    n_repetitions: int
    exercise: str | None
    score: float | None
    withdrawn: list[Withdrawn] = []


SessionRecord = SessionOpened | SessionBegan | FrameBlock | RepetitionDone | SessionClosed

_encoder: Final = msgspec.msgpack.Encoder()
_records: Final = msgspec.msgpack.Decoder(list[SessionRecord])
_repetitions: Final = msgspec.msgpack.Decoder(list[RepetitionRecord])


def write_records(records: Sequence[SessionRecord]) -> bytes:
    """Put records into bytes."""
    return _encoder.encode(records)


def read_records(data: bytes) -> list[SessionRecord]:
    """Read what `write_records` wrote.

    Raises
    ------
    msgspec.DecodeError
        If it is something else.
    """
    return _records.decode(data)


def write_repetitions(repetitions: Sequence[RepetitionRecord]) -> bytes:
    """Put repetitions into bytes; nothing if there are none."""
    return _encoder.encode(repetitions) if repetitions else b""


def read_repetitions(data: bytes) -> list[RepetitionRecord]:
    """Read what `write_repetitions` wrote."""
    return _repetitions.decode(data) if data else []


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
