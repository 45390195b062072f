"""Rows of uploaded videos: announced, stored or refused, and deleted.

Every function works within the transaction of the session it is given.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session

from pose_analyzer.artifact_keys import original_key
from pose_analyzer.errors import UnknownAthleteError
from pose_analyzer.storage.models import (
    Athlete,
    DeepMode,
    ExerciseSession,
    SessionKind,
    Video,
    VideoAnalysisJob,
    VideoState,
)
from pose_analyzer.upload_errors import (
    OverQuotaError,
    UnknownVideoError,
    UploadFinishedError,
    VideoNotStoredError,
)

# Any number will do, as long as nothing else in this database uses it: "videos" in ASCII.
_QUOTA_LOCK: Final = 0x766964656F73
_COUNTED: Final = (VideoState.UPLOADING, VideoState.STORED)


StartJob = Callable[[Session, Video, DeepMode, dict[str, Any]], uuid.UUID]
"""Queues the analysis of a video that has just been stored, in the same transaction; gives the
job's id. The options are those of `JobRequest`."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """How an uploaded video is to be analysed."""

    deep_mode: DeepMode = DeepMode.AUTO
    options: Mapping[str, Any] | None = None
    """As `VideoAnalysisJob.options`."""


@dataclass(frozen=True, slots=True)
class NewVideo:
    """What is known of a video before it is uploaded; checked by the caller."""

    filename: str
    suffix: str
    size_bytes: int
    part_bytes: int
    sha256: str | None
    """In lower-case hexadecimal."""
    athlete_id: uuid.UUID | None
    exercise: str | None
    started_at: datetime | None
    """When it was recorded; None: now."""
    direct: bool
    """Parts are sent to the artifact store itself, if it has addresses for that."""


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video as it was when the database was asked."""

    video_id: uuid.UUID
    session_id: uuid.UUID
    filename: str
    artifact_key: str
    state: VideoState
    size_bytes: int
    part_bytes: int
    sha256: str | None
    duration_s: float | None
    created_at: datetime
    direct: bool
    refusal: str | None
    """Why it was not kept, if it was not."""
    athlete_id: uuid.UUID | None
    exercise: str | None
    job_id: uuid.UUID | None
    """Of its latest analysis."""


@dataclass(frozen=True, slots=True)
class VideoFilter:
    """Which videos are asked for."""

    athlete_id: uuid.UUID | None = None
    state: VideoState | None = None
    sha256: str | None = None
    before: datetime | None = None
    """Only those announced earlier."""
    limit: int = 100


def add_video(session: Session, new: NewVideo, quota_bytes: int) -> VideoRecord:
    """Announce a video, with a session of its own.

    Raises
    ------
    OverQuotaError
        It does not fit beside what is stored and announced.
    UnknownAthleteError
        There is no such athlete.
    """
    # Two that fit one by one but not together must not both be let in.
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _QUOTA_LOCK})
    used_bytes = stored_bytes(session)
    if used_bytes + new.size_bytes > quota_bytes:
        raise OverQuotaError(new.size_bytes, used_bytes, quota_bytes)
    if new.athlete_id is not None and session.get(Athlete, new.athlete_id) is None:
        raise UnknownAthleteError(new.athlete_id)
    recorded = ExerciseSession(
        session_id=uuid.uuid4(),
        athlete_id=new.athlete_id,
        kind=SessionKind.RECORDED,
        source_name=new.filename,
        exercise=new.exercise,
    )
    if new.started_at is not None:
        recorded.started_at = new.started_at
    session.add(recorded)
    session.flush()
    video = Video(
        video_id=uuid.uuid4(),
        session_id=recorded.session_id,
        filename=new.filename,
        artifact_key=original_key(recorded.session_id, new.suffix),
        size_bytes=new.size_bytes,
        part_bytes=new.part_bytes,
        sha256=new.sha256,
        upload={"direct": new.direct},
    )
    session.add(video)
    session.flush()
    return read_video(session, video.video_id)


def stored_bytes(session: Session) -> int:
    """Bytes of all videos that are stored or announced."""
    total = session.scalar(
        select(func.coalesce(func.sum(Video.size_bytes), 0)).where(Video.state.in_(_COUNTED))
    )
    return int(total or 0)


def read_video(session: Session, video_id: uuid.UUID) -> VideoRecord:
    """One video.

    Raises
    ------
    UnknownVideoError
        There is none of that id.
    """
    row = session.execute(_records().where(Video.video_id == video_id)).first()
    if row is None:
        raise UnknownVideoError(video_id)
    return _record(*row)


def list_videos(session: Session, wanted: VideoFilter) -> list[VideoRecord]:
    """Videos, the latest first."""
    query = _records().order_by(Video.created_at.desc(), Video.video_id).limit(wanted.limit)
    if wanted.athlete_id is not None:
        query = query.where(ExerciseSession.athlete_id == wanted.athlete_id)
    if wanted.state is not None:
        query = query.where(Video.state == wanted.state)
    if wanted.sha256 is not None:
        query = query.where(Video.sha256 == wanted.sha256)
    if wanted.before is not None:
        query = query.where(Video.created_at < wanted.before)
    return [_record(*row) for row in session.execute(query)]


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """What is known of a video once it was read."""

    sha256: str
    duration_s: float


def finish_video(
    session: Session,
    video_id: uuid.UUID,
    facts: StoredFacts,
    request: JobRequest,
    start_job: StartJob | None,
) -> VideoRecord:
    """Write that a video is stored, and queue its analysis; done again, nothing happens.

    Parameters
    ----------
    session, video_id
        Where, and which.
    facts
        Of the stored file.
    request
        How it is to be analysed.
    start_job
        Queues that; None where nothing is analysed.

    Raises
    ------
    UnknownVideoError
        It was deleted meanwhile.
    UploadFinishedError
        It was refused meanwhile.
    """
    video = _locked(session, video_id)
    if video.state is VideoState.REFUSED:
        raise UploadFinishedError(video_id, video.state)
    if video.state is VideoState.UPLOADING:
        video.state = VideoState.STORED
        video.sha256, video.duration_s = facts.sha256, facts.duration_s
        session.flush()
        if start_job is not None:
            start_job(session, video, request.deep_mode, dict(request.options or {}))
    return read_video(session, video_id)


def stored_video(session: Session, video_id: uuid.UUID) -> Video:
    """Row of a video that is there to be analysed.

    Raises
    ------
    UnknownVideoError
        There is no such video.
    VideoNotStoredError
        Its upload is not complete, or it was refused.
    """
    video = session.get(Video, video_id)
    if video is None:
        raise UnknownVideoError(video_id)
    if video.state is not VideoState.STORED:
        raise VideoNotStoredError(video_id, video.state)
    return video


def refuse_video(session: Session, video_id: uuid.UUID, reason: str) -> None:
    """Write why an upload was no good; what is stored already stays so.

    Raises
    ------
    UnknownVideoError
        It was deleted meanwhile.
    """
    video = _locked(session, video_id)
    if video.state is VideoState.UPLOADING:
        video.state = VideoState.REFUSED
        video.upload = video.upload | {"refused": reason}


def abandoned_videos(session: Session, before: datetime) -> list[uuid.UUID]:
    """Uploads announced earlier than that and never stored."""
    return list(
        session.scalars(
            select(Video.video_id).where(
                Video.state != VideoState.STORED, Video.created_at < before
            )
        )
    )


def _locked(session: Session, video_id: uuid.UUID) -> Video:
    video = session.get(Video, video_id, with_for_update=True, populate_existing=True)
    if video is None:
        raise UnknownVideoError(video_id)
    return video


def _records() -> Select[Video, uuid.UUID | None, str | None, uuid.UUID]:
    latest_job = (
        select(VideoAnalysisJob.job_id)
        .where(VideoAnalysisJob.video_id == Video.video_id)
        .order_by(VideoAnalysisJob.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(Video, ExerciseSession.athlete_id, ExerciseSession.exercise, latest_job).join(
        ExerciseSession, ExerciseSession.session_id == Video.session_id
    )


def _record(
    video: Video, athlete_id: uuid.UUID | None, exercise: str | None, job_id: uuid.UUID | None
) -> VideoRecord:
    return VideoRecord(
        video_id=video.video_id,
        session_id=video.session_id,
        filename=video.filename,
        artifact_key=video.artifact_key,
        state=video.state,
        size_bytes=video.size_bytes,
        part_bytes=video.part_bytes,
        sha256=video.sha256,
        duration_s=video.duration_s,
        created_at=video.created_at,
        direct=bool(video.upload.get("direct")),
        refusal=video.upload.get("refused"),
        athlete_id=athlete_id,
        exercise=exercise,
        job_id=job_id,
    )
