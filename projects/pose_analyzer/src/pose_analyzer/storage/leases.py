"""What claims of chunks and of jobs have in common.

PostgreSQL is the queue: a claim locks one row that no other worker has locked (``FOR UPDATE SKIP
LOCKED``) and writes a lease into it. Whoever's lease has run out is taken for dead. Every report is
fenced by the lease's owner, so that a worker which was only slow changes nothing once its work has
been given to another. All times are the server's; workers' clocks may differ.

Where a chunk and its job are both locked, the chunk comes first.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, func, text
from sqlalchemy.orm import Session

from pose_analyzer.storage.models import VideoAnalysisJob, VideoAnalysisJobStatus

CHANNEL: Final = "video_analysis"
"""Of NOTIFY: something may be claimed, or a job has changed; the payload is the job's id."""

MAX_ERROR_CHARS: Final = 2000
RUNNING: Final = (VideoAnalysisJobStatus.QUEUED, VideoAnalysisJobStatus.PROCESSING)
UNFINISHED: Final = (*RUNNING, VideoAnalysisJobStatus.DEEP_RUNNING)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long work is believed to be in progress, and how often it is tried."""

    lease_s: float = 30.0
    """A worker that has not reported for so long is taken for dead."""
    max_errors: int = 3
    """Attempts that may raise an error."""
    max_lost: int = 10
    """Attempts that may end with their worker: killed workers are not the chunk's fault, but a
    chunk that kills its workers must come to an end too."""
    backoff_s: float = 2.0
    """Before the second attempt; doubles from one to the next."""
    max_backoff_s: float = 60.0

    def delay_s(self, n_errors: int) -> float:
        """How long work waits after its `n_errors`-th error."""
        return min(self.backoff_s * 2.0 ** max(n_errors - 1, 0), self.max_backoff_s)


def in_s(seconds: float) -> ColumnElement[datetime]:
    """A moment in the future, by the server's clock."""
    # The wall clock, not now(): that stands still within a transaction.
    return func.clock_timestamp() + timedelta(seconds=seconds)


def end_job(job: VideoAnalysisJob, status: VideoAnalysisJobStatus, error: str | None) -> None:
    """Write that a job has ended, and how."""
    job.status = status
    job.error = None if error is None else error[:MAX_ERROR_CHARS]
    job.lease_owner = job.lease_until = None
    job.finished_at = func.now()


def notify(session: Session, job_id: uuid.UUID) -> None:
    """Wake whoever listens, once the transaction is committed."""
    session.execute(
        text("SELECT pg_notify(:channel, :job_id)"), {"channel": CHANNEL, "job_id": str(job_id)}
    )
