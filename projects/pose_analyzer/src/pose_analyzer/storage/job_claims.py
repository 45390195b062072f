"""Jobs whose chunks are complete: workers claim them to put the results together; see `leases`."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from pose_analyzer.storage.leases import MAX_ERROR_CHARS, RetryPolicy, end_job, in_s, notify
from pose_analyzer.storage.models import (
    Video,
    VideoAnalysisChunk,
    VideoAnalysisJob,
    VideoAnalysisJobStatus,
)


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job whose chunks are complete and which this worker is to put together."""

    job_id: uuid.UUID
    video_id: uuid.UUID
    session_id: uuid.UUID
    video_key: str
    filename: str
    attempt: int
    owner: uuid.UUID
    options: dict[str, Any]
    chunk_keys: tuple[str, ...]
    """Of the chunks' results, in order."""


def claim_job(session: Session, owner: uuid.UUID, policy: RetryPolicy) -> ClaimedJob | None:
    """Take a job whose chunks are all complete, to put them together; None if there is none."""
    job = VideoAnalysisJob
    while True:
        row = session.scalars(
            select(job)
            .where(
                job.status == VideoAnalysisJobStatus.DEEP_RUNNING,
                or_(job.lease_until.is_(None), job.lease_until < func.now()),
                or_(job.not_before.is_(None), job.not_before <= func.now()),
            )
            .order_by(job.created_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is None:
            return None
        if row.lease_owner is not None:
            row.n_lost += 1
        if row.n_lost < policy.max_lost:
            break
        end_job(
            row, VideoAnalysisJobStatus.FAILED, f"{row.n_lost} workers ended in its aggregation"
        )
        session.flush()
        notify(session, row.job_id)
    row.attempts += 1
    row.lease_owner = owner
    row.lease_until = in_s(policy.lease_s)
    session.flush()
    video = session.get_one(Video, row.video_id)
    chunk = VideoAnalysisChunk
    keys = session.scalars(
        select(chunk.artifact_key).where(chunk.job_id == row.job_id).order_by(chunk.chunk_index)
    ).all()
    return ClaimedJob(
        job_id=row.job_id,
        video_id=row.video_id,
        session_id=row.session_id,
        video_key=video.artifact_key,
        filename=video.filename,
        attempt=row.attempts,
        owner=owner,
        options=row.options,
        chunk_keys=tuple(key for key in keys if key is not None),
    )


def renew_job(session: Session, claimed: ClaimedJob, policy: RetryPolicy) -> bool:
    """Say that the aggregation goes on; False if it is no longer this claim's."""
    row = owned_job(session, claimed)
    if row is None:
        return False
    row.lease_until = in_s(policy.lease_s)
    session.flush()
    return True


def owned_job(session: Session, claimed: ClaimedJob) -> VideoAnalysisJob | None:
    """Lock a claimed job's row until the transaction ends; None if it is no longer this claim's.

    Whoever writes a job's results does so in the transaction in which it is finished, so that
    they are written once.
    """
    job = VideoAnalysisJob
    return session.scalars(
        select(job)
        .where(
            job.job_id == claimed.job_id,
            job.lease_owner == claimed.owner,
            job.status == VideoAnalysisJobStatus.DEEP_RUNNING,
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()


def finish_job(session: Session, row: VideoAnalysisJob) -> None:
    """Mark a job as done; `row` is what `owned_job` gave in the same transaction."""
    end_job(row, VideoAnalysisJobStatus.DONE, None)
    session.flush()
    notify(session, row.job_id)


def fail_job(
    session: Session, claimed: ClaimedJob, error: str, policy: RetryPolicy, *, final: bool = False
) -> bool:
    """Report that the aggregation met an error: it waits for another attempt, or fails."""
    row = owned_job(session, claimed)
    if row is None:
        return False
    n_errors = row.attempts - row.n_lost
    if final or n_errors >= policy.max_errors:
        end_job(row, VideoAnalysisJobStatus.FAILED, error)
    else:
        row.error = error[:MAX_ERROR_CHARS]
        row.not_before = in_s(policy.delay_s(n_errors))
        row.lease_owner = row.lease_until = None
    session.flush()
    notify(session, claimed.job_id)
    return True


def release_job(session: Session, claimed: ClaimedJob) -> bool:
    """Give an aggregation back unfinished, as the worker stops; the attempt does not count."""
    row = owned_job(session, claimed)
    if row is None:
        return False
    row.attempts -= 1
    row.lease_owner = row.lease_until = None
    session.flush()
    notify(session, claimed.job_id)
    return True
