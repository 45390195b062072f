"""Chunks that workers claim, renew, complete, fail or give back; see `leases`."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from pose_analyzer.storage.leases import (
    MAX_ERROR_CHARS,
    RUNNING,
    UNFINISHED,
    RetryPolicy,
    end_job,
    in_s,
    notify,
)
from pose_analyzer.storage.models import (
    DeepMode,
    Video,
    VideoAnalysisChunk,
    VideoAnalysisChunkStatus,
    VideoAnalysisJob,
    VideoAnalysisJobStatus,
)


@dataclass(frozen=True, slots=True)
class ClaimedChunk:
    """A chunk that this worker, and no other, is to analyse."""

    job_id: uuid.UUID
    video_id: uuid.UUID
    session_id: uuid.UUID
    video_key: str
    chunk_index: int
    start_s: float
    end_s: float
    attempt: int
    """1-based."""
    owner: uuid.UUID
    options: dict[str, Any]


def claim_chunk(
    session: Session, owner: uuid.UUID, modes: Iterable[DeepMode], policy: RetryPolicy
) -> ClaimedChunk | None:
    """Take the next chunk of the oldest job; None if nothing is to be done now.

    Chunks that have lost too many workers are given up on the way.

    Parameters
    ----------
    owner
        Names the claim, not the worker: a new one for each.
    modes
        Jobs of which modes this worker may take.
    """
    chunk, job = VideoAnalysisChunk, VideoAnalysisJob
    while True:
        found = session.execute(
            select(chunk, job)
            .join(job, chunk.job_id == job.job_id)
            .where(job.status.in_(RUNNING), job.deep_mode.in_(tuple(modes)), _claimable(chunk))
            .order_by(job.created_at, chunk.job_id, chunk.chunk_index)
            .limit(1)
            .with_for_update(of=chunk, skip_locked=True)
        ).first()
        if found is None:
            return None
        claimed, its_job = found
        if claimed.status is VideoAnalysisChunkStatus.PROCESSING:
            claimed.n_lost += 1
        if claimed.n_lost < policy.max_lost:
            break
        _give_up(session, claimed, f"{claimed.n_lost} workers ended while they analysed it")
        session.flush()
    claimed.status = VideoAnalysisChunkStatus.PROCESSING
    claimed.attempts += 1
    claimed.lease_owner = owner
    claimed.lease_until = in_s(policy.lease_s)
    # Whoever begins the job says so; the others do not wait in line for its row.
    beginning = (
        select(job.job_id)
        .where(job.job_id == claimed.job_id, job.status == VideoAnalysisJobStatus.QUEUED)
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(job)
        .where(job.job_id.in_(beginning))
        .values(status=VideoAnalysisJobStatus.PROCESSING, started_at=func.now())
        .execution_options(synchronize_session=False)
    )
    session.flush()
    video = session.get_one(Video, its_job.video_id)
    return ClaimedChunk(
        job_id=claimed.job_id,
        video_id=video.video_id,
        session_id=its_job.session_id,
        video_key=video.artifact_key,
        chunk_index=claimed.chunk_index,
        start_s=claimed.start_s,
        end_s=claimed.end_s,
        attempt=claimed.attempts,
        owner=owner,
        options=its_job.options,
    )


def renew_chunk(session: Session, claimed: ClaimedChunk, policy: RetryPolicy) -> bool:
    """Say that the work goes on; False if it is no longer this claim's, or no longer wanted."""
    job = VideoAnalysisJob
    wanted = select(job.job_id).where(job.job_id == claimed.job_id, job.status.in_(RUNNING))
    return _update_chunk(
        session, claimed, VideoAnalysisChunk.job_id.in_(wanted), lease_until=in_s(policy.lease_s)
    )


def complete_chunk(
    session: Session, claimed: ClaimedChunk, artifact_key: str, runtime_ms: int
) -> bool:
    """Count a chunk whose result is stored; False if it is no longer this claim's.

    With the last chunk the job goes on to its aggregation.
    """
    done = _update_chunk(
        session,
        claimed,
        status=VideoAnalysisChunkStatus.COMPLETED,
        artifact_key=artifact_key,
        runtime_ms=runtime_ms,
        lease_owner=None,
        lease_until=None,
        error=None,
    )
    if not done:
        return False
    job = VideoAnalysisJob
    job_row = session.get_one(job, claimed.job_id, with_for_update=True, populate_existing=True)
    job_row.completed_chunks += 1
    if job_row.completed_chunks == job_row.total_chunks and job_row.status in RUNNING:
        job_row.status = VideoAnalysisJobStatus.DEEP_RUNNING
    session.flush()
    notify(session, claimed.job_id)
    return True


def fail_chunk(
    session: Session, claimed: ClaimedChunk, error: str, policy: RetryPolicy, *, final: bool = False
) -> bool:
    """Report an error: the chunk waits for another attempt, or the job fails.

    Parameters
    ----------
    final
        Another attempt would end the same way.
    """
    row = _owned(session, claimed)
    if row is None:
        return False
    n_errors = row.attempts - row.n_lost
    if final or n_errors >= policy.max_errors:
        _give_up(session, row, error)
    else:
        row.status = VideoAnalysisChunkStatus.QUEUED
        row.error = error[:MAX_ERROR_CHARS]
        row.not_before = in_s(policy.delay_s(n_errors))
        row.lease_owner = row.lease_until = None
    session.flush()
    notify(session, claimed.job_id)
    return True


def release_chunk(session: Session, claimed: ClaimedChunk) -> bool:
    """Give a chunk back unfinished, as the worker stops; the attempt does not count."""
    released = _update_chunk(
        session,
        claimed,
        status=VideoAnalysisChunkStatus.QUEUED,
        attempts=VideoAnalysisChunk.attempts - 1,
        lease_owner=None,
        lease_until=None,
    )
    if released:
        notify(session, claimed.job_id)
    return released


def _claimable(chunk: type[VideoAnalysisChunk]) -> ColumnElement[bool]:
    return or_(
        and_(
            chunk.status == VideoAnalysisChunkStatus.QUEUED,
            or_(chunk.not_before.is_(None), chunk.not_before <= func.now()),
        ),
        and_(chunk.status == VideoAnalysisChunkStatus.PROCESSING, chunk.lease_until < func.now()),
    )


def _update_chunk(
    session: Session, claimed: ClaimedChunk, *also: ColumnElement[bool], **values: object
) -> bool:
    chunk = VideoAnalysisChunk
    changed = session.execute(
        update(chunk)
        .where(
            chunk.job_id == claimed.job_id,
            chunk.chunk_index == claimed.chunk_index,
            chunk.lease_owner == claimed.owner,
            chunk.status == VideoAnalysisChunkStatus.PROCESSING,
            *also,
        )
        .values(**values)
        .returning(chunk.chunk_index)
        .execution_options(synchronize_session=False)
    )
    return changed.first() is not None


def _owned(session: Session, claimed: ClaimedChunk) -> VideoAnalysisChunk | None:
    chunk = VideoAnalysisChunk
    return session.scalars(
        select(chunk)
        .where(
            chunk.job_id == claimed.job_id,
            chunk.chunk_index == claimed.chunk_index,
            chunk.lease_owner == claimed.owner,
            chunk.status == VideoAnalysisChunkStatus.PROCESSING,
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()


def _give_up(session: Session, chunk: VideoAnalysisChunk, error: str) -> None:
    """Fail a chunk, and its job with it."""
    chunk.status = VideoAnalysisChunkStatus.FAILED
    chunk.error = error[:MAX_ERROR_CHARS]
    chunk.lease_owner = chunk.lease_until = None
    job = session.get_one(
        VideoAnalysisJob, chunk.job_id, with_for_update=True, populate_existing=True
    )
    if job.status in UNFINISHED:
        where = f"chunk {chunk.chunk_index} ({chunk.start_s:.1f} to {chunk.end_s:.1f} s)"
        end_job(job, VideoAnalysisJobStatus.FAILED, f"{where}: {error}")
    notify(session, chunk.job_id)
