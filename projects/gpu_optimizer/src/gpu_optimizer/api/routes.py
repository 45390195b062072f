"""The routes: unpack, begin a job, put into words."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from importlib import metadata
from typing import Final

from anyio import to_thread
from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.websockets import WebSocketDisconnect

from gpu_optimizer.api.dependencies import JobsDep, MetricsDep, SettingsDep
from gpu_optimizer.api.schemas import (
    ActivityAnswer,
    GpuAnswer,
    Gpus,
    Health,
    JobAnswer,
    Models,
    OptimizeRequest,
    RunRequest,
    Telemetry,
)
from gpu_optimizer.api.submissions import Submission, read_submission, request_body
from gpu_optimizer.errors import JobFailedError
from gpu_optimizer.jobs.limits import gpu_limits
from gpu_optimizer.jobs.store import Job, JobStore
from gpu_optimizer.machines.gpus import known_gpus
from gpu_optimizer.models.registered_names import REGISTERED_NAMES
from gpu_optimizer.profiling_worker import FailureReason, JobLimits
from shared_utils.gpu import read_activity
from shared_utils.problems import documented_problems

REPORTED_PACKAGES: Final = ("gpu-optimizer", "torch", "torchvision", "transformers")
TELEMETRY_EVERY_S: Final = 1.0

_SUBMISSION_PROBLEMS: Final = documented_problems(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)

router = APIRouter()


@router.get("/health")
def health(jobs: JobsDep) -> Health:
    """Tell versions, GPUs, and how busy the service is."""
    gpus = [GpuAnswer.of(one.gpu) for one in read_activity()]
    return Health(
        status="ok",
        versions={name: _version(name) for name in REPORTED_PACKAGES},
        device="cuda" if gpus else "cpu",
        gpus=gpus,
        n_unfinished_jobs=jobs.n_unfinished,
    )


@router.get("/gpus")
def gpus() -> Gpus:
    """What the GPUs of this machine are doing; none is normal."""
    return Gpus(gpus=[ActivityAnswer.of(one) for one in read_activity()])


@router.get("/models")
def models() -> Models:
    """What may be asked for by name."""
    return Models(models=list(REGISTERED_NAMES), gpus=[gpu.name for gpu in known_gpus()])


@router.post("/predict", openapi_extra=request_body(RunRequest), responses=_SUBMISSION_PROBLEMS)
async def predict(
    request: Request, response: Response, jobs: JobsDep, settings: SettingsDep
) -> JobAnswer:
    """Predict the memory of a run, without a GPU: 200 with the result, or 202 with a job."""
    return await _submit("predict", request, response, jobs, settings.quick_answer_s)


@router.post("/profile", openapi_extra=request_body(RunRequest), responses=_SUBMISSION_PROBLEMS)
async def profile(
    request: Request, response: Response, jobs: JobsDep, settings: SettingsDep
) -> JobAnswer:
    """Where every byte goes, layer by layer: 200 with the result, or 202 with a job."""
    return await _submit("profile", request, response, jobs, settings.quick_answer_s)


@router.post(
    "/optimize", openapi_extra=request_body(OptimizeRequest), responses=_SUBMISSION_PROBLEMS
)
async def optimize(
    request: Request, response: Response, jobs: JobsDep, settings: SettingsDep
) -> JobAnswer:
    """Plan how a training step keeps within a budget: 200 with the plan, or 202 with a job."""
    submission = await read_submission(request, OptimizeRequest)
    limits = gpu_limits(settings) if submission.payload["verify"] else None
    return await _begin("optimize", submission, response, jobs, (settings.quick_answer_s, limits))


@router.get("/jobs/{job_id}", responses=documented_problems(HTTPStatus.NOT_FOUND))
async def show_job(job_id: str, jobs: JobsDep) -> JobAnswer:
    """A job as it is now."""
    return JobAnswer.of(jobs.get(job_id))


@router.get(
    "/jobs/{job_id}/events",
    responses=documented_problems(HTTPStatus.NOT_FOUND),
    response_class=StreamingResponse,
    response_model=None,
)
async def follow_job(job_id: str, jobs: JobsDep) -> StreamingResponse:
    """Events of a job as they come (server-sent events); the last one is the job itself."""
    job = jobs.get(job_id)
    return StreamingResponse(_events(jobs, job), media_type="text/event-stream")


@router.delete("/jobs/{job_id}", responses=documented_problems(HTTPStatus.NOT_FOUND))
async def cancel_job(job_id: str, jobs: JobsDep) -> JobAnswer:
    """Stop a job; one that has ended stays as it is."""
    job = jobs.get(job_id)
    await jobs.cancel(job)
    return JobAnswer.of(job)


@router.get("/metrics", response_class=Response, response_model=None)
def metrics(collectors: MetricsDep, jobs: JobsDep) -> Response:
    """Prometheus metrics of this process and its GPUs."""
    collectors.unfinished(jobs.n_unfinished)
    return Response(generate_latest(collectors.registry), media_type=CONTENT_TYPE_LATEST)


@router.websocket("/telemetry")
async def telemetry(websocket: WebSocket) -> None:
    """Send what the GPUs are doing, once a second."""
    await websocket.accept()
    gone = asyncio.create_task(_until_gone(websocket))
    try:
        while not gone.done():
            activity = await to_thread.run_sync(read_activity)
            message = Telemetry(
                time_s=time.time(), gpus=[ActivityAnswer.of(one) for one in activity]
            )
            await websocket.send_text(message.model_dump_json())
            await asyncio.wait({gone}, timeout=TELEMETRY_EVERY_S)
    except WebSocketDisconnect:
        return
    finally:
        gone.cancel()


async def _until_gone(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _submit(
    kind: str, request: Request, response: Response, jobs: JobStore, quick_answer_s: float
) -> JobAnswer:
    submission = await read_submission(request)
    return await _begin(kind, submission, response, jobs, (quick_answer_s, None))


async def _begin(
    kind: str,
    submission: Submission,
    response: Response,
    jobs: JobStore,
    bounds: tuple[float, JobLimits | None],
) -> JobAnswer:
    quick_answer_s, limits = bounds
    try:
        job = jobs.begin(kind, submission.payload, submission.cleanup, limits)
    except BaseException:
        submission.cleanup()
        raise
    if not await jobs.wait(job, quick_answer_s):
        response.status_code = HTTPStatus.ACCEPTED
        response.headers["Location"] = f"/jobs/{job.job_id}"
    failure = None if job.result is None else job.result.failure
    if failure is not None and failure.reason is FailureReason.INVALID:
        raise JobFailedError(failure.reason, failure.message)
    return JobAnswer.of(job)


async def _events(jobs: JobStore, job: Job) -> AsyncIterator[str]:
    async for event in jobs.follow(job):
        yield f"event: progress\ndata: {json.dumps(event)}\n\n"
    yield f"event: end\ndata: {JobAnswer.of(job).model_dump_json()}\n\n"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
