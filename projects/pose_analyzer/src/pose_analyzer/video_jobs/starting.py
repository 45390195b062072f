"""Queues the analysis of a stored video: how it is cut is settled once, here."""

import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from pose_analyzer.artifact_keys import plan_key
from pose_analyzer.chunk_files import encode_plan
from pose_analyzer.errors import GpuWorkersDisabledError
from pose_analyzer.sources import plan_video
from pose_analyzer.storage.artifacts import ArtifactStore
from pose_analyzer.storage.jobs import add_job
from pose_analyzer.storage.models import DeepMode, Video
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_jobs.local_copies import LocalCopies
from pose_analyzer.video_jobs.options import JobOptions


class JobStarter:
    """Cuts videos and queues their chunks; implements `storage.videos.StartJob`.

    Parameters
    ----------
    store
        Where the videos are, and where the plans go.
    copies
        Where the videos can be read.
    settings
        What is taken where nothing else is asked for.
    detector, language
        The same.
    model_of
        Which model a detector's name means, so that all workers use the same; may raise
        `UnknownNameError`.
    """

    def __init__(
        self,
        store: ArtifactStore,
        copies: LocalCopies,
        settings: StorageSettings,
        *,
        detector: str,
        language: str,
        model_of: Callable[[str], str],
    ) -> None:
        self._store = store
        self._copies = copies
        self._settings = settings
        self._model_of = model_of
        self._defaults: dict[str, Any] = {
            "detector": detector,
            "language": language,
            "sample_fps": settings.sample_fps,
            "max_width_px": settings.max_width_px,
            "chunk_s": settings.chunk_s,
        }

    def __call__(
        self, session: Session, video: Video, deep_mode: DeepMode, options: dict[str, Any]
    ) -> uuid.UUID:
        """Queue a video; the caller commits.

        Raises
        ------
        GpuWorkersDisabledError
            A GPU is asked for, and the settings allow none.
        UnreadableSourceError
            The video cannot be read.
        UnknownNameError
            There is no such detector.
        pydantic.ValidationError
            The options are none.
        """
        if deep_mode is DeepMode.GPU and not self._settings.gpu_processing_enabled:
            raise GpuWorkersDisabledError
        wanted = self._defaults | options
        chosen = JobOptions.model_validate(
            wanted | {"detector": self._model_of(wanted["detector"])}
        )
        path = self._copies.path(video.artifact_key)
        plan = plan_video(path, chosen.chunk_s, chosen.sample_fps)
        bounds_s = [(chunk.start_s, chunk.end_s) for chunk in plan.chunks]
        job = add_job(session, video, deep_mode, chosen.model_dump(), bounds_s)
        self._store.put(plan_key(video.session_id, job.job_id), encode_plan(plan))
        return job.job_id
