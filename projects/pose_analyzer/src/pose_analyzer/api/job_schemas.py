"""What the routes about jobs take and answer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pose_analyzer.api.schemas import Answer
from pose_analyzer.api.video_schemas import AnalysisWishes
from pose_analyzer.storage.jobs import JobView
from pose_analyzer.storage.models import (
    DeepMode,
    VideoAnalysisChunk,
    VideoAnalysisChunkStatus,
    VideoAnalysisJob,
    VideoAnalysisJobStatus,
)
from pose_analyzer.video_jobs.progress import job_progress


class JobWishes(AnalysisWishes):
    """Another analysis of a stored video."""

    video_id: UUID


class ChunkInfo(Answer):
    """A stretch of the video that one worker analyses."""

    index: int
    start_s: float
    end_s: float
    status: VideoAnalysisChunkStatus
    attempts: int
    """Begun so far, the present one included."""
    runtime_ms: int | None
    """Once it is completed."""
    error: str | None
    """Of the latest attempt that failed."""

    @classmethod
    def of(cls, chunk: VideoAnalysisChunk) -> "ChunkInfo":
        """Put a row into words."""
        told = {name: getattr(chunk, name) for name in cls.model_fields if name != "index"}
        return cls(index=chunk.chunk_index, **told)


class JobSummary(Answer):
    """An analysis of a video, and how far it is."""

    job_id: UUID
    video_id: UUID
    session_id: UUID
    stage: VideoAnalysisJobStatus
    """queued, processing, deep_running (put together), done, failed or cancelled."""
    percent: int
    """0 queued, 1 to 99 while chunks are analysed, 99 while put together, 100 done."""
    eta_s: float | None
    """Seconds until the chunks are done, at the pace so far; null where nothing can be said."""
    deep_mode: DeepMode
    options: dict[str, Any]
    total_chunks: int
    completed_chunks: int
    video_duration_seconds: float
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: VideoAnalysisJob, now: datetime) -> "JobSummary":
        """Put a row into words."""
        return cls(**_told(job, now))


class JobInfo(JobSummary):
    """An analysis of a video with its chunks."""

    chunks: list[ChunkInfo]

    @classmethod
    def of_view(cls, view: JobView) -> "JobInfo":
        """Put rows into words."""
        chunks = [ChunkInfo.of(chunk) for chunk in view.chunks]
        return cls(**_told(view.job, view.now), chunks=chunks)


class JobList(Answer):
    """Jobs, the latest first."""

    jobs: list[JobSummary]

    @classmethod
    def of(cls, jobs: Sequence[VideoAnalysisJob], now: datetime) -> "JobList":
        """Put rows into words."""
        return cls(jobs=[JobSummary.of(job, now) for job in jobs])


def _told(job: VideoAnalysisJob, now: datetime) -> dict[str, Any]:
    progress = job_progress(job, now)
    computed = {"stage": job.status, "percent": progress.percent, "eta_s": progress.eta_s}
    names = JobSummary.model_fields.keys() - computed.keys()
    return computed | {name: getattr(job, name) for name in names}
