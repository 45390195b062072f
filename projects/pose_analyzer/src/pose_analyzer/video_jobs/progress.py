"""How far a job is, and when it will be done."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pose_analyzer.storage.models import VideoAnalysisJob, VideoAnalysisJobStatus

_FIRST_PERCENT: Final = 1
_LAST_PERCENT: Final = 99


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What its owner is shown."""

    percent: int
    """0 queued, 1..99 while chunks are analysed, 99 while they are put together, 100 done."""
    eta_s: float | None
    """Until the chunks are done, at the pace so far; None where nothing can be said."""


def job_progress(job: VideoAnalysisJob, now: datetime) -> JobProgress:
    """Tell how far a job is.

    Parameters
    ----------
    job
        As it stands in the database.
    now
        By the clock that wrote its times.
    """
    status = job.status
    if status is VideoAnalysisJobStatus.DONE:
        return JobProgress(100, 0.0)
    if status is VideoAnalysisJobStatus.QUEUED or job.started_at is None:
        return JobProgress(0, None)
    span = _LAST_PERCENT - _FIRST_PERCENT
    percent = _FIRST_PERCENT + span * job.completed_chunks // max(job.total_chunks, 1)
    if status is not VideoAnalysisJobStatus.PROCESSING or job.completed_chunks == 0:
        return JobProgress(percent, None)
    elapsed_s = max((now - job.started_at).total_seconds(), 0.0)
    remaining = job.total_chunks - job.completed_chunks
    return JobProgress(percent, elapsed_s / job.completed_chunks * remaining)
