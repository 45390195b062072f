"""Tables: who exercised when, what was seen of them, and the videos still to be analysed.

Times of day are UTC with time zone; times within a recording are seconds from its first frame.
"""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# So that every constraint can be dropped by a name that is known beforehand.
_NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Root of all tables."""

    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as it stands
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        str: Text,
        float: Float(53),
    }


def _stored_as_text(kind: type[StrEnum]) -> Enum:
    # Text with a check rather than a type of the server: adding a value then needs no lock.
    return Enum(
        kind,
        native_enum=False,
        length=32,
        name=kind.__name__.lower(),
        create_constraint=True,
        values_callable=lambda members: [member.value for member in members],
    )


class SessionKind(StrEnum):
    """Where a session's frames came from."""

    LIVE = "live"
    RECORDED = "recorded"


class VideoState(StrEnum):
    """How far an upload is."""

    UPLOADING = "uploading"
    STORED = "stored"
    REFUSED = "refused"


class DeepMode(StrEnum):
    """Which workers may take a job's chunks."""

    GPU = "gpu"
    CPU = "cpu"
    AUTO = "auto"


class VideoAnalysisJobStatus(StrEnum):
    """Stage of a job."""

    QUEUED = "queued"
    PROCESSING = "processing"
    DEEP_RUNNING = "deep_running"
    """All chunks are done; their results are put together."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class VideoAnalysisChunkStatus(StrEnum):
    """Stage of a chunk."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class Athlete(Base):
    """Somebody whose sessions belong together."""

    __tablename__ = "athletes"

    athlete_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ExerciseSession(Base):
    """One live stream or one analysed recording."""

    __tablename__ = "sessions"

    session_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    athlete_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("athletes.athlete_id", ondelete="CASCADE"), index=True
    )
    kind: Mapped[SessionKind] = mapped_column(_stored_as_text(SessionKind))
    stream_id: Mapped[str | None] = mapped_column(index=True)
    """Of a live stream."""
    source_name: Mapped[str | None]
    exercise: Mapped[str | None]
    """Asked for or recognised."""
    detector: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    """When its first frame was taken: time of day of the source's second 0."""
    ended_at: Mapped[datetime | None]
    n_frames: Mapped[int] = mapped_column(BigInteger, default=0)
    n_repetitions: Mapped[int] = mapped_column(default=0)
    score: Mapped[float | None]
    """0..100 over the whole set."""


class PoseFrame(Base):
    """One person in one frame, as one wide row; the table that grows.

    It has no primary key on the server: rows are only ever appended, and a hypertable would need
    the time in it. The mapper is told which columns make a row its own.
    """

    __tablename__ = "pose_frames"
    __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy reads it as it stands
        "primary_key": ["session_id", "track_id", "frame_index"]
    }

    time: Mapped[datetime]
    session_id: Mapped[uuid.UUID] = mapped_column(Uuid)
    track_id: Mapped[int] = mapped_column(Integer)
    frame_index: Mapped[int] = mapped_column(BigInteger)
    time_s: Mapped[float]
    """Seconds from the session's first frame, exact."""
    keypoints: Mapped[list[float]] = mapped_column(ARRAY(REAL))
    """51 values: x and y in pixels, smoothed, and confidence of each COCO keypoint; NaN unknown."""
    confidence: Mapped[float | None] = mapped_column(REAL)
    """Of the person, 0..1."""
    angles: Mapped[list[float]] = mapped_column(ARRAY(REAL))
    """12 values in degrees, as in `skeletons.ANGLE_NAMES`; NaN where unknown or not trusted."""
    progress: Mapped[float | None] = mapped_column(REAL)
    n_repetitions: Mapped[int] = mapped_column(SmallInteger)
    score: Mapped[float | None] = mapped_column(REAL)
    """Of the latest judged repetition, 0..100."""

    __table_args__ = (Index("ix_pose_frames_session_id_time", "session_id", "time"),)


class RepetitionRow(Base):
    """One counted repetition and how well it was done."""

    __tablename__ = "repetitions"

    repetition_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("sessions.session_id", ondelete="CASCADE")
    )
    track_id: Mapped[int]
    exercise: Mapped[str]
    number: Mapped[int]
    time: Mapped[datetime]
    """When it was complete."""
    start_s: Mapped[float]
    turn_s: Mapped[float]
    end_s: Mapped[float]
    eccentric_s: Mapped[float]
    hold_s: Mapped[float]
    concentric_s: Mapped[float]
    depth: Mapped[float]
    ranges: Mapped[list[Any]]
    """Extremes of each angle: angle, min_deg, max_deg, trusted."""
    yaw_deg: Mapped[float | None]
    """From where it was seen; null unknown or not judged."""
    accepted: Mapped[bool] = mapped_column(default=False)
    """Good enough to learn the person's own way from."""
    reference: Mapped[str | None]
    """What it was compared with."""
    reference_mode: Mapped[str | None]
    """``personal`` or ``general``."""
    score: Mapped[float | None]
    components: Mapped[dict[str, Any]]
    losses: Mapped[list[Any]]
    anomaly: Mapped[str | None]
    anomaly_score: Mapped[float | None]
    cue: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("session_id", "track_id", "exercise", "number"),
        Index("ix_repetitions_time", "time"),
    )


class FaultRow(Base):
    """A named mistake in one repetition."""

    __tablename__ = "faults"

    fault_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    repetition_id: Mapped[int] = mapped_column(
        ForeignKey("repetitions.repetition_id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(index=True)
    severity: Mapped[float]
    joint: Mapped[str]
    side: Mapped[str | None]
    phase: Mapped[str]
    amount: Mapped[float]
    unit: Mapped[str]
    at_s: Mapped[float]


class StoredReference(Base):
    """A taught reference of good form, as `pose-analyzer teach` writes it."""

    __tablename__ = "form_references"

    name: Mapped[str] = mapped_column(primary_key=True)
    exercise: Mapped[str] = mapped_column(index=True)
    athlete_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("athletes.athlete_id", ondelete="CASCADE"), index=True
    )
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Video(Base):
    """An uploaded recording."""

    __tablename__ = "videos"

    video_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("sessions.session_id", ondelete="CASCADE"), index=True
    )
    filename: Mapped[str]
    """As its owner calls it; never part of a path or key."""
    artifact_key: Mapped[str]
    state: Mapped[VideoState] = mapped_column(
        _stored_as_text(VideoState), default=VideoState.UPLOADING
    )
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """As announced; what is stored has this size."""
    sha256: Mapped[str | None]
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    """Size of each uploaded part but the last."""
    upload: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the artifact store must know to go on with an upload that was interrupted."""
    duration_s: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("size_bytes > 0", name="size_bytes_positive"),)


class VideoAnalysisJob(Base):
    """One analysis of a video, cut into chunks."""

    __tablename__ = "video_analysis_jobs"

    job_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    video_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("videos.video_id", ondelete="CASCADE"), index=True
    )
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("sessions.session_id", ondelete="CASCADE"), index=True
    )
    deep_mode: Mapped[DeepMode] = mapped_column(_stored_as_text(DeepMode))
    status: Mapped[VideoAnalysisJobStatus] = mapped_column(
        _stored_as_text(VideoAnalysisJobStatus), default=VideoAnalysisJobStatus.QUEUED, index=True
    )
    options: Mapped[dict[str, Any]]
    """How it is analysed: exercise, detector, sample_fps, max_width_px, overlay, language …"""
    total_chunks: Mapped[int]
    completed_chunks: Mapped[int] = mapped_column(default=0)
    video_duration_seconds: Mapped[float]
    attempts: Mapped[int] = mapped_column(default=0)
    """Of putting the results together."""
    n_lost: Mapped[int] = mapped_column(default=0)
    """Attempts that ended with their worker."""
    lease_owner: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "completed_chunks BETWEEN 0 AND total_chunks", name="completed_chunks_within_total"
        ),
    )


class VideoAnalysisChunk(Base):
    """A stretch of a video that one worker analyses."""

    __tablename__ = "video_analysis_chunks"

    job_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("video_analysis_jobs.job_id", ondelete="CASCADE"), primary_key=True
    )
    chunk_index: Mapped[int] = mapped_column(primary_key=True)
    start_s: Mapped[float]
    end_s: Mapped[float]
    status: Mapped[VideoAnalysisChunkStatus] = mapped_column(
        _stored_as_text(VideoAnalysisChunkStatus), default=VideoAnalysisChunkStatus.QUEUED
    )
    attempts: Mapped[int] = mapped_column(default=0)
    n_lost: Mapped[int] = mapped_column(default=0)
    """Attempts that ended with their worker: no report came before the lease ran out."""
    lease_owner: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    """Who may complete it; a worker whose lease was taken over no longer stands here."""
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    """When it may be tried again."""
    artifact_key: Mapped[str | None]
    runtime_ms: Mapped[int | None]
    error: Mapped[str | None]

    __table_args__ = (Index("ix_video_analysis_chunks_status_not_before", "status", "not_before"),)
