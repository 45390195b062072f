"""Routes about the analysis of recorded videos: how far it is, what came of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final, Literal
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse, RedirectResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from pose_analyzer.api.dependencies import ArtifactsDep, DatabaseDep
from pose_analyzer.api.job_schemas import JobInfo, JobList, JobWishes
from pose_analyzer.api.video_dependencies import RequestMakerDep, StartJobDep
from pose_analyzer.artifact_keys import overlay_key, report_key, result_key
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import ResultNotReadyError, UnknownJobError
from pose_analyzer.storage.artifacts import ArtifactStore
from pose_analyzer.storage.jobs import JobView, cancel_job, list_jobs, read_job
from pose_analyzer.storage.models import VideoAnalysisJobStatus
from pose_analyzer.storage.videos import stored_video
from shared_utils.problems import documented_problems

_NAMED: Final = documented_problems(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_RESULT: Final = _NAMED | documented_problems(HTTPStatus.CONFLICT)
_LOOK_EVERY_S: Final = 0.5
_ENDED: Final = frozenset(
    {
        VideoAnalysisJobStatus.DONE,
        VideoAnalysisJobStatus.FAILED,
        VideoAnalysisJobStatus.CANCELLED,
    }
)
_ADDRESS_LIFE_S: Final = 3600.0
_MAX_PAGE: Final = 1000


@dataclass(frozen=True)
class _Result:
    """A file that a finished job leaves."""

    name: str
    key: Callable[[UUID, UUID], str]
    media_type: str


_HTML: Final = _Result("report", report_key, "text/html")
_JSON: Final = _Result("report", result_key, "application/json")
_OVERLAY: Final = _Result("overlay", overlay_key, "video/mp4")

router = APIRouter(tags=["jobs"])


@router.post("/jobs", status_code=HTTPStatus.CREATED, responses=_RESULT)
async def analyse_again(
    body: JobWishes, database: DatabaseDep, request_maker: RequestMakerDep, start_job: StartJobDep
) -> JobInfo:
    """Analyse a stored video once more, in another way."""

    def start() -> JobView:
        request = request_maker(body, None)
        with database.session() as session:
            video = stored_video(session, body.video_id)
            job_id = start_job(session, video, request.deep_mode, dict(request.options or {}))
        return _read(database, job_id)

    return JobInfo.of_view(await to_thread.run_sync(start))


@router.get("/jobs", responses=_NAMED)
async def find_jobs(
    database: DatabaseDep,
    stage: VideoAnalysisJobStatus | None = None,
    video_id: UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
) -> JobList:
    """List jobs, the latest first."""

    def find() -> JobList:
        with database.session() as session:
            return JobList.of(*list_jobs(session, stage, video_id, limit))

    return await to_thread.run_sync(find)


@router.get("/jobs/{job_id}", responses=_NAMED)
async def get_job(job_id: UUID, database: DatabaseDep) -> JobInfo:
    """Tell how far a job is, chunk by chunk."""
    return JobInfo.of_view(await to_thread.run_sync(_read, database, job_id))


@router.get("/jobs/{job_id}/events", responses=_NAMED, response_class=EventSourceResponse)
async def follow_job(job_id: UUID, database: DatabaseDep) -> EventSourceResponse:
    """Tell about a job whenever something changes, as server-sent events, until it has ended.

    Each event is named ``progress``, the last one ``end``; its data is what `GET /jobs/{job_id}`
    answers.
    """
    await to_thread.run_sync(_read, database, job_id)
    return EventSourceResponse(_events(database, job_id))


@router.post("/jobs/{job_id}/cancel", responses=_NAMED)
async def stop_job(job_id: UUID, database: DatabaseDep) -> JobInfo:
    """Cancel a job; one that has ended stays as it is."""

    def cancel() -> JobView:
        with database.session() as session:
            if cancel_job(session, job_id) is None:
                raise UnknownJobError(job_id)
        return _read(database, job_id)

    return JobInfo.of_view(await to_thread.run_sync(cancel))


@router.get("/jobs/{job_id}/report", responses=_RESULT, response_class=FileResponse)
async def get_report(
    job_id: UUID,
    database: DatabaseDep,
    store: ArtifactsDep,
    what: Annotated[Literal["html", "json"], Query(alias="format")] = "html",
) -> Response:
    """Fetch the report as a page, or all results as JSON."""
    result = _HTML if what == "html" else _JSON
    return await to_thread.run_sync(_answer, database, store, job_id, result)


@router.get("/jobs/{job_id}/overlay.mp4", responses=_RESULT, response_class=FileResponse)
async def get_overlay(job_id: UUID, database: DatabaseDep, store: ArtifactsDep) -> Response:
    """Fetch the video with the skeletons drawn into it, if that was asked for."""
    return await to_thread.run_sync(_answer, database, store, job_id, _OVERLAY)


def _read(database: Database, job_id: UUID) -> JobView:
    with database.session() as session:
        view = read_job(session, job_id)
    if view is None:
        raise UnknownJobError(job_id)
    return view


def _answer(database: Database, store: ArtifactStore, job_id: UUID, result: _Result) -> Response:
    """The file itself, or where S3 has it; both answer requests for parts of it."""
    job = _read(database, job_id).job
    if job.status is not VideoAnalysisJobStatus.DONE:
        remedy = f"The job is {job.status.value}; GET /jobs/{job_id} tells how far it is."
        raise ResultNotReadyError(result.name, remedy)
    key = result.key(job.session_id, job_id)
    if result is _OVERLAY and not store.exists(key):
        raise ResultNotReadyError(result.name, "Ask for it with overlay: true in POST /jobs.")
    if store.gives_addresses:
        return RedirectResponse(store.presign([key], "GET", _ADDRESS_LIFE_S)[0])
    # Not copied: it is in the local folder.
    return FileResponse(store.local_path(key, Path()), media_type=result.media_type)


async def _events(database: Database, job_id: UUID) -> AsyncIterator[ServerSentEvent]:
    told = ""
    while True:
        try:
            view = await to_thread.run_sync(_read, database, job_id)
        except UnknownJobError:
            return  # deleted while it was watched
        info = JobInfo.of_view(view)
        ended = info.stage in _ENDED
        # The time left changes without anything having happened.
        news = info.model_copy(update={"eta_s": None}).model_dump_json()
        if news != told:
            told = news
            yield ServerSentEvent(info.model_dump_json(), event="end" if ended else "progress")
        if ended:
            return
        await asyncio.sleep(_LOOK_EVERY_S)
