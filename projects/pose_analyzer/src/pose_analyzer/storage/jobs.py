"""Jobs as their owners see them: made, looked at, cancelled, counted."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from pose_analyzer.storage.leases import RUNNING, UNFINISHED, end_job, notify
from pose_analyzer.storage.models import (
    DeepMode,
    Video,
    VideoAnalysisChunk,
    VideoAnalysisChunkStatus,
    VideoAnalysisJob,
    VideoAnalysisJobStatus,
)


def add_job(
    session: Session,
    video: Video,
    deep_mode: DeepMode,
    options: dict[str, Any],
    bounds_s: Sequence[tuple[float, float]],
) -> VideoAnalysisJob:
    """Queue a video as chunks from start to end each.

    Raises
    ------
    ValueError
        There is no chunk, or the video's duration is not known.
    """
    if not bounds_s or video.duration_s is None:
        raise ValueError("a job needs chunks, and a video of known duration")
    job = VideoAnalysisJob(
        job_id=uuid.uuid4(),
        video_id=video.video_id,
        session_id=video.session_id,
        deep_mode=deep_mode,
        status=VideoAnalysisJobStatus.QUEUED,
        options=options,
        total_chunks=len(bounds_s),
        video_duration_seconds=video.duration_s,
    )
    session.add(job)
    session.flush()
    session.add_all(
        VideoAnalysisChunk(job_id=job.job_id, chunk_index=index, start_s=start_s, end_s=end_s)
        for index, (start_s, end_s) in enumerate(bounds_s)
    )
    session.flush()
    notify(session, job.job_id)
    return job


def cancel_job(session: Session, job_id: uuid.UUID) -> VideoAnalysisJob | None:
    """Stop a job; one that has ended stays as it is. None if there is no such job."""
    row = session.get(VideoAnalysisJob, job_id, with_for_update=True)
    if row is not None and row.status in UNFINISHED:
        end_job(row, VideoAnalysisJobStatus.CANCELLED, None)
        session.flush()
        notify(session, job_id)
    return row


def chunks_of(session: Session, job_id: uuid.UUID) -> Sequence[VideoAnalysisChunk]:
    """Every chunk of a job, in order."""
    chunk = VideoAnalysisChunk
    return session.scalars(
        select(chunk).where(chunk.job_id == job_id).order_by(chunk.chunk_index)
    ).all()


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it stands at one moment; its rows are not to be changed."""

    job: VideoAnalysisJob
    chunks: Sequence[VideoAnalysisChunk]
    now: datetime
    """By the clock that writes the rows' times."""


def read_job(session: Session, job_id: uuid.UUID) -> JobView | None:
    """Look at a job and its chunks; None if there is no such job."""
    job = session.get(VideoAnalysisJob, job_id)
    if job is None:
        return None
    return JobView(job, chunks_of(session, job_id), session.scalars(select(func.now())).one())


def list_jobs(
    session: Session,
    status: VideoAnalysisJobStatus | None = None,
    video_id: uuid.UUID | None = None,
    limit: int = 100,
) -> tuple[Sequence[VideoAnalysisJob], datetime]:
    """List jobs, the latest first, and what time it is by the server's clock."""
    job = VideoAnalysisJob
    wanted = select(job).order_by(job.created_at.desc()).limit(limit)
    if status is not None:
        wanted = wanted.where(job.status == status)
    if video_id is not None:
        wanted = wanted.where(job.video_id == video_id)
    return session.scalars(wanted).all(), session.scalars(select(func.now())).one()


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What waits, and what is in progress."""

    queued_chunks: int
    processing_chunks: int
    failed_chunks: int
    waiting_aggregations: int
    oldest_queued_s: float
    """How long the oldest queued chunk's job has been there; 0 if none waits."""


def queue_depth(session: Session) -> QueueDepth:
    """Count what waits; failed chunks are those of jobs of the last day."""
    chunk, job = VideoAnalysisChunk, VideoAnalysisJob
    status = VideoAnalysisChunkStatus
    queued = and_(chunk.status == status.QUEUED, job.status.in_(RUNNING))
    processing = and_(chunk.status == status.PROCESSING, job.status.in_(RUNNING))
    row = session.execute(
        select(
            func.count().filter(queued),
            func.count().filter(processing),
            func.count().filter(chunk.status == status.FAILED),
            func.coalesce(
                func.extract("epoch", func.now() - func.min(job.created_at).filter(queued)), 0.0
            ),
        )
        .select_from(chunk)
        .join(job, job.job_id == chunk.job_id)
        .where(
            or_(
                job.status.in_(RUNNING),
                job.created_at > func.now() - timedelta(days=1),
            )
        )
    ).one()
    waiting = session.scalar(
        select(func.count(job.job_id)).where(job.status == VideoAnalysisJobStatus.DEEP_RUNNING)
    )
    return QueueDepth(row[0], row[1], row[2], waiting or 0, float(row[3]))
