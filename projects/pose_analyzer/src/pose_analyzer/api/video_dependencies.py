"""What the routes about uploaded videos ask for."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from pose_analyzer.api.dependencies import (
    ArtifactsDep,
    DatabaseDep,
    ExercisesDep,
    SettingsDep,
    StorageDep,
    detector_or_default,
)
from pose_analyzer.api.form_choices import ShelfDep
from pose_analyzer.api.video_schemas import AnalysisWishes
from pose_analyzer.athlete_forms import FormWish
from pose_analyzer.backends import resolve_model
from pose_analyzer.exercises import AUTO, select_exercises
from pose_analyzer.sources import open_source, plan_video
from pose_analyzer.storage.models import DeepMode, Video
from pose_analyzer.storage.videos import JobRequest, StartJob
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_addresses import sign_part, signature_holds
from pose_analyzer.upload_errors import UploadAddressError
from pose_analyzer.video_jobs.local_copies import LocalCopies
from pose_analyzer.video_jobs.local_workers import LocalWorkers
from pose_analyzer.video_jobs.starting import JobStarter
from pose_analyzer.video_uploads import VideoUploads

_COPIES: Final = "copies"
_ONE_CHUNK_S: Final = 1e6

RequestMaker = Callable[[AnalysisWishes, str | None], JobRequest]
"""Checks wishes, given the exercise that was announced; reads files, so not for the event loop."""


def _read_duration(path: Path) -> float:
    """Seconds there are pictures for, which is not always what the file says of itself."""
    open_source(path)  # at least one picture can be decoded
    return plan_video(path, _ONE_CHUNK_S, None).duration_s


def _start_job(
    connection: HTTPConnection, settings: SettingsDep, store: ArtifactsDep, storage: StorageDep
) -> StartJob:
    workers: LocalWorkers = connection.state.workers
    copies = LocalCopies(store, storage.data_dir / _COPIES)
    starter = JobStarter(
        store,
        copies,
        storage,
        detector=settings.detector,
        language=settings.language,
        model_of=lambda name: resolve_model(name, settings),
    )

    def start(session: Session, video: Video, deep_mode: DeepMode, options: dict[str, Any]) -> UUID:
        job_id = starter(session, video, deep_mode, options)
        workers.wake()
        return job_id

    return start


StartJobDep = Annotated[StartJob, Depends(_start_job)]


def _uploads(
    database: DatabaseDep, store: ArtifactsDep, storage: StorageDep, start_job: StartJobDep
) -> VideoUploads:
    return VideoUploads(database, store, storage, _read_duration, start_job)


def _request_maker(settings: SettingsDep, exercises: ExercisesDep, shelf: ShelfDep) -> RequestMaker:
    def make(wishes: AnalysisWishes, announced_exercise: str | None) -> JobRequest:
        """Raise `UnknownNameError` for what there is not."""
        chosen = select_exercises(exercises, wishes.exercise or announced_exercise or AUTO)
        wish = FormWish(wishes.reference, wishes.language or settings.language)
        shelf.library.judge_config(chosen, shelf.choose(chosen, wish))
        detector_or_default(wishes.detector, settings)
        return wishes.request(announced_exercise)

    return make


def part_address(storage: StorageSettings, video_id: UUID, number: int, expires_at: int) -> str:
    """Path that takes one part, signed where the settings have a key for that."""
    path = f"/videos/{video_id}/parts/{number}"
    if storage.app_secret_key is None:
        return path
    secret = storage.app_secret_key.get_secret_value().encode()
    signature = sign_part(secret, video_id, number, expires_at)
    return f"{path}?expires={expires_at}&signature={signature}"


def check_address(
    video_id: UUID, number: int, storage: StorageDep, expires: int = 0, signature: str = ""
) -> None:
    """Refuse an address that `part_address` did not make, or that has expired."""
    if storage.app_secret_key is None:
        return
    secret = storage.app_secret_key.get_secret_value().encode()
    holds = signature_holds(secret, video_id, number, expires, signature)
    if not holds or expires < time.time():
        raise UploadAddressError


UploadsDep = Annotated[VideoUploads, Depends(_uploads)]
RequestMakerDep = Annotated[RequestMaker, Depends(_request_maker)]
