"""What the routes about sessions take and answer. Times of day are UTC, others seconds of it."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pose_analyzer.api.schemas import Answer
from pose_analyzer.exports.resampling import MAX_RATE_HZ
from pose_analyzer.storage.models import ExerciseSession, FaultRow, RepetitionRow, SessionKind
from pose_analyzer.storage.pose_rows import RowFilter
from pose_analyzer.storage.sessions import SessionDetail, SessionFilter
from pose_analyzer.storage.timeseries import SIGNALS

MAX_PAGE: Final = 1000
_MAX_INT: Final = 2**31 - 1


class SessionInfo(Answer):
    """One live stream or one analysed recording."""

    model_config = ConfigDict(from_attributes=True, frozen=True, extra="forbid")

    session_id: UUID
    athlete_id: UUID | None
    kind: SessionKind
    stream_id: str | None
    """Of a live stream."""
    source_name: str | None
    exercise: str | None
    """Asked for or recognised."""
    detector: str | None
    started_at: datetime
    """When its first frame was taken: time of day of its second 0."""
    ended_at: datetime | None
    """Null while it goes on, or if the service was killed meanwhile."""
    n_frames: int
    n_repetitions: int
    score: float | None
    """0..100: mean of the repetitions that could be scored."""


class SessionList(Answer):
    """Answer of ``GET /sessions``."""

    sessions: list[SessionInfo]
    """Those that began last come first."""
    n_total: int
    """Of all pages."""


class FaultInfo(Answer):
    """A named mistake; see docs/FORM.md."""

    model_config = ConfigDict(from_attributes=True, frozen=True, extra="forbid")

    name: str
    severity: float
    joint: str
    side: str | None
    phase: str
    amount: float
    unit: str
    at_s: float


class RangeInfo(Answer):
    """Extremes of one angle within a repetition."""

    angle: str
    min_deg: float
    max_deg: float
    trusted: bool


class RepetitionInfo(Answer):
    """One repetition that is over."""

    model_config = ConfigDict(from_attributes=True, frozen=True, extra="forbid")

    track_id: int
    """Who."""
    exercise: str
    number: int
    time: datetime
    """When it was complete."""
    start_s: float
    turn_s: float
    end_s: float
    eccentric_s: float
    hold_s: float
    concentric_s: float
    depth: float
    ranges: list[RangeInfo]
    yaw_deg: float | None
    accepted: bool
    """Good enough to learn the person's own way from."""
    reference: str | None
    reference_mode: str | None
    score: float | None
    components: dict[str, float | None]
    losses: list[dict[str, Any]]
    """As in live answers."""
    anomaly: str | None
    anomaly_score: float | None
    cue: str | None
    """Key of what the coach said."""
    faults: list[FaultInfo]

    @classmethod
    def of(cls, row: RepetitionRow, faults: Sequence[FaultRow]) -> "RepetitionInfo":
        """Put a row and its faults into words."""
        named = {name: getattr(row, name) for name in cls.model_fields if name != "faults"}
        return cls(**named, faults=[FaultInfo.model_validate(fault) for fault in faults])


class TrackInfo(Answer):
    """Somebody who was seen."""

    model_config = ConfigDict(from_attributes=True, frozen=True, extra="forbid")

    track_id: int
    n_rows: int
    """Frames in which they were followed."""
    first_s: float
    last_s: float


class SessionReport(SessionInfo):
    """Answer of ``GET /sessions/{session_id}``."""

    repetitions: list[RepetitionInfo]
    """In order of time."""
    tracks: list[TrackInfo]
    """Who was seen most often first."""

    @classmethod
    def of(cls, detail: SessionDetail) -> "SessionReport":
        """Put a session into words."""
        facts = SessionInfo.model_validate(detail.session).model_dump()
        return cls(
            **facts,
            repetitions=[
                RepetitionInfo.of(row, detail.faults.get(row.repetition_id, ()))
                for row in detail.repetitions
            ],
            tracks=[TrackInfo.model_validate(track) for track in detail.tracks],
        )


class Bucket(StrEnum):
    """How long a bucket is."""

    SECOND = "1s"
    TEN_SECONDS = "10s"
    MINUTE = "1m"

    @property
    def length_s(self) -> int:
        """In seconds."""
        return {"1s": 1, "10s": 10, "1m": 60}[self.value]


class SignalCourse(Answer):
    """One signal by bucket; null where it was never known."""

    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]


class TrackCourse(Answer):
    """One person by bucket, from the first to the last in which they were seen."""

    track_id: int
    start_s: list[float]
    """When each bucket begins."""
    n_frames: list[int]
    """0 in a gap."""
    signals: dict[str, SignalCourse]


class TimeSeries(Answer):
    """Answer of ``GET /sessions/{session_id}/timeseries``."""

    session_id: UUID
    started_at: datetime
    bucket_s: int
    tracks: list[TrackCourse]


class ExportFormat(StrEnum):
    """What a session can be had as."""

    CSV = "csv"
    PARQUET = "parquet"
    TRC = "trc"
    C3D = "c3d"


ExerciseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class _Query(BaseModel):
    model_config = ConfigDict(frozen=True)


class SessionQuery(_Query):
    """Which sessions are listed."""

    athlete_id: UUID | None = None
    kind: SessionKind | None = None
    exercise: ExerciseName | None = None
    since: AwareDatetime | None = Field(None, description="Began then or later.")
    before: AwareDatetime | None = Field(None, description="Began earlier.")
    limit: int = Field(100, ge=1, le=MAX_PAGE)
    offset: int = Field(0, ge=0, le=_MAX_INT)

    @property
    def filter(self) -> SessionFilter:
        """The same for the database."""
        return SessionFilter(self.athlete_id, self.kind, self.exercise, self.since, self.before)


class _RowQuery(_Query):
    track: int | None = Field(None, ge=0, le=_MAX_INT, description="Only this person.")
    from_s: float | None = Field(None, ge=0.0, le=1e9, description="Seconds of the session.")
    to_s: float | None = Field(None, ge=0.0, le=1e9, description="Seconds of the session.")

    def rows_of(self, session_id: UUID) -> RowFilter:
        """The same for the database."""
        return RowFilter(session_id, self.track, self.from_s, self.to_s)


class TimeSeriesQuery(_RowQuery):
    """What is wanted of a session's courses."""

    bucket: Bucket = Bucket.SECOND
    signal: list[str] = Field(
        list(SIGNALS), max_length=len(SIGNALS), description=f"Any of {', '.join(SIGNALS)}."
    )


class ExportQuery(_RowQuery):
    """How a session is wanted."""

    format: ExportFormat = ExportFormat.CSV
    rate_hz: float | None = Field(
        None, ge=1.0, le=MAX_RATE_HZ, description="Of trc and c3d; by default as frames came."
    )
    mm_per_px: float = Field(
        1.0, gt=0.0, le=1e4, description="Scale of trc and c3d; with 1 a mm is a pixel."
    )


def session_info(row: ExerciseSession) -> SessionInfo:
    """Put a row into words."""
    return SessionInfo.model_validate(row)
