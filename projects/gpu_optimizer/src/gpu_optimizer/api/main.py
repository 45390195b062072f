"""The service: ``python -m gpu_optimizer.api.main --port 8002``."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import metadata
from typing import Annotated, Final, TypedDict

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from gpu_optimizer.api.routes import router
from gpu_optimizer.api.schemas import OptimizeRequest, RunRequest
from gpu_optimizer.dashboard import PrometheusMetrics
from gpu_optimizer.errors import (
    BusyError,
    InvalidModelError,
    JobFailedError,
    UnknownJobError,
    UnknownNameError,
)
from gpu_optimizer.jobs.limits import job_limits
from gpu_optimizer.jobs.store import JobStore
from gpu_optimizer.profiling_worker import JobRunner, WorkerConfig
from gpu_optimizer.settings import Settings
from shared_utils.body_limit import BodyLimit
from shared_utils.errors import InvalidSettingError, ProjectError
from shared_utils.gpu import read_activity
from shared_utils.logging import configure_logging
from shared_utils.problems import ProblemHandlers, ProblemKind
from shared_utils.settings import read_settings

PROBLEMS: Final[dict[type[ProjectError], ProblemKind]] = {
    InvalidModelError: ProblemKind(
        "invalid-model", HTTPStatus.UNPROCESSABLE_ENTITY, "The model cannot be profiled"
    ),
    UnknownNameError: ProblemKind(
        "unknown-name", HTTPStatus.UNPROCESSABLE_ENTITY, "There is nothing of that name"
    ),
    JobFailedError: ProblemKind(
        "invalid-run", HTTPStatus.UNPROCESSABLE_ENTITY, "The model cannot be run like this"
    ),
    UnknownJobError: ProblemKind("unknown-job", HTTPStatus.NOT_FOUND, "There is no such job"),
    BusyError: ProblemKind("busy", HTTPStatus.SERVICE_UNAVAILABLE, "Too many jobs are waiting"),
}

log = structlog.get_logger()


class State(TypedDict):
    """What lives as long as the service."""

    settings: Settings
    jobs: JobStore
    metrics: PrometheusMetrics


def create_app(settings: Settings, worker: WorkerConfig | None = None) -> FastAPI:
    """Put the service together.

    Parameters
    ----------
    settings
        As read by the shell.
    worker
        How jobs are run; by default as the settings say.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        metrics = PrometheusMetrics(read_activity)
        jobs = JobStore(
            JobRunner(worker or _worker(settings)),
            settings.max_jobs + settings.max_waiting_jobs,
            settings.jobs_kept,
            metrics.job_ended,
        )
        log.info("service_started")
        yield {"settings": settings, "jobs": jobs, "metrics": metrics}
        await jobs.close()
        log.info("service_stopped")

    app = FastAPI(
        title="GPU memory optimizer", version=metadata.version("gpu-optimizer"), lifespan=lifespan
    )
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    ProblemHandlers("gpu-optimizer", PROBLEMS).install(app)
    app.include_router(router)
    _document_request(app)
    return app


def main(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    host: Annotated[str, typer.Option(help="0.0.0.0 to serve other machines.")] = "127.0.0.1",
) -> None:
    """Serve memory predictions and profiles over HTTP."""
    configure_logging()
    try:
        settings = read_settings(Settings)
    except InvalidSettingError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
        raise typer.Exit(2) from error
    log.info("service_begins", url=f"http://{host}:{port}")
    uvicorn.run(create_app(settings), host=host, port=port, access_log=False, log_level="warning")


def _worker(settings: Settings) -> WorkerConfig:
    return WorkerConfig(limits=job_limits(settings), max_concurrent=settings.max_jobs)


def _document_request(app: FastAPI) -> None:
    """Add the requests' schemas, which FastAPI does not see: the routes read them themselves."""
    document = app.openapi()
    for request in (RunRequest, OptimizeRequest):
        schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema.pop("$defs", {})
        document["components"]["schemas"] |= {request.__name__: schema, **parts}


if __name__ == "__main__":
    typer.run(main)
