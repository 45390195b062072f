"""The service: ``python -m pose_analyzer.api.main --port 8001``."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated, Final, TypedDict

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from pose_analyzer.api.detectors import DetectorFactory, DetectorPool
from pose_analyzer.api.problems import install_problem_handlers
from pose_analyzer.api.routes import router
from pose_analyzer.api.uploads import BodyLimit
from pose_analyzer.backends import create_detector, resolve_model
from pose_analyzer.model_files import MODELS, locate_model
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from shared_utils.errors import InvalidSettingError
from shared_utils.logging import configure_logging
from shared_utils.settings import read_settings

MAX_PEOPLE: Final = 6
"""How many people MediaPipe, which must know beforehand, looks for."""

log = structlog.get_logger()


class State(TypedDict):
    """What lives as long as the service."""

    settings: Settings
    detectors: DetectorPool


def image_detector(name: str, settings: Settings) -> PoseDetector:
    """Make a detector for single images.

    The default MediaPipe model is downloaded if it is missing; any other must be here, since a
    client must not make the service download hundreds of megabytes or accept a licence.

    Raises
    ------
    ModelUnavailableError
        The model is not here.
    """
    model = resolve_model(name, settings)
    if model in MODELS and model != resolve_model("mediapipe", settings):
        locate_model(model, settings)
    n_people = MAX_PEOPLE if model.startswith("mediapipe-") else None
    return create_detector(model, settings, mode="image", n_people=n_people)


def create_app(settings: Settings, detector_factory: DetectorFactory = image_detector) -> FastAPI:
    """Put the service together.

    Parameters
    ----------
    settings
        As read by the shell.
    detector_factory
        Makes detectors by name.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        detectors = DetectorPool(settings, detector_factory)
        log.info("service_started", detector=settings.detector)
        yield {"settings": settings, "detectors": detectors}
        await detectors.close()
        log.info("service_stopped")

    app = FastAPI(
        title="Pose analyzer", version=metadata.version("pose-analyzer"), lifespan=lifespan
    )
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    install_problem_handlers(app)
    app.include_router(router)
    return app


def main(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    host: Annotated[str, typer.Option(help="0.0.0.0 to serve other machines.")] = "127.0.0.1",
) -> None:
    """Serve pose detection over HTTP."""
    configure_logging()
    try:
        settings = read_settings(Settings)
    except InvalidSettingError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
        raise typer.Exit(2) from error
    uvicorn.run(create_app(settings), host=host, port=port)


if __name__ == "__main__":
    typer.run(main)
