"""The service: ``python -m pose_analyzer.api.main --port 8001``."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated, Final, TypedDict

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from pose_analyzer.admission import AdmissionConfig
from pose_analyzer.api.athlete_routes import router as athlete_router
from pose_analyzer.api.clips import ClipDetectorFactory, ClipReader
from pose_analyzer.api.detectors import DetectorFactory, DetectorPool
from pose_analyzer.api.form_routes import router as form_router
from pose_analyzer.api.job_routes import router as job_router
from pose_analyzer.api.problems import install_problem_handlers
from pose_analyzer.api.queue_watch import local_workers, watch_queue
from pose_analyzer.api.recording_setup import start_ingestion
from pose_analyzer.api.routes import router
from pose_analyzer.api.session_routes import router as session_router
from pose_analyzer.api.stream_routes import router as stream_router
from pose_analyzer.api.streaming import router as websocket_router
from pose_analyzer.api.video_limits import video_body_limit
from pose_analyzer.api.video_routes import router as video_router
from pose_analyzer.backends import check_detector, create_detector, create_pipeline, resolve_model
from pose_analyzer.background_database import BackgroundDatabase
from pose_analyzer.errors import (
    InvalidExerciseError,
    InvalidFormFileError,
    InvalidFormModelError,
    InvalidReferenceError,
    UnknownNameError,
)
from pose_analyzer.exercises import Exercise, load_exercises
from pose_analyzer.fault_files import select_language
from pose_analyzer.form_library import FormLibrary, folders_of, load_form_library
from pose_analyzer.live_analysis import LocalAnalysis, ProcessAnalysis
from pose_analyzer.memory_watch import MemoryWatch
from pose_analyzer.metrics import PrometheusMetrics
from pose_analyzer.model_files import MODELS, locate_model
from pose_analyzer.ports import FramePipeline, LiveAnalysis, PoseDetector
from pose_analyzer.recording import SessionRecorder
from pose_analyzer.settings import Settings
from pose_analyzer.sources.allow_list import entries_without_effect
from pose_analyzer.storage.artifacts import LazyArtifactStore
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.stream_manager import ManagerConfig, MemoryReader, StreamManager
from pose_analyzer.video_jobs.job_metrics import QueueMetrics
from pose_analyzer.video_jobs.local_workers import LocalWorkers
from pose_analyzer.vram_governor import VramReading
from shared_utils.body_limit import BodyLimit
from shared_utils.errors import InvalidSettingError
from shared_utils.gpu import GpuReader
from shared_utils.logging import configure_logging
from shared_utils.machine import give_memory_back, n_usable_cores, trim_memory
from shared_utils.settings import read_settings

MAX_PEOPLE: Final = 6
"""How many people MediaPipe, which must know beforehand, looks for in a single image."""
_CORES_PER_ANALYSIS_PROCESS: Final = 4
_MAX_ANALYSIS_PROCESSES: Final = 4

_UNUSABLE: Final = (
    InvalidSettingError,
    InvalidExerciseError,
    InvalidFormFileError,
    InvalidFormModelError,
    InvalidReferenceError,
    UnknownNameError,
)

PipelineMaker = Callable[[str, Settings], FramePipeline]
"""Makes the detector that live streams share."""

log = structlog.get_logger()


class State(TypedDict):
    """What lives as long as the service."""

    settings: Settings
    detectors: DetectorPool
    exercises: dict[str, Exercise]
    metrics: PrometheusMetrics
    manager: StreamManager
    library: FormLibrary
    clips: ClipReader
    database: BackgroundDatabase
    storage: StorageSettings | None
    artifacts: LazyArtifactStore
    workers: LocalWorkers


def image_detector(name: str, settings: Settings) -> PoseDetector:
    """Make a detector for single images.

    Raises
    ------
    ModelUnavailableError
        The model is not here.
    """
    model = _served_model(name, settings)
    n_people = MAX_PEOPLE if model.startswith("mediapipe-") else None
    return create_detector(model, settings, mode="image", n_people=n_people)


def clip_detector(name: str, settings: Settings) -> PoseDetector:
    """Make a detector for one recording.

    Raises
    ------
    ModelUnavailableError
        The model is not here.
    """
    return create_detector(_served_model(name, settings), settings, mode="video")


def stream_pipeline(name: str, settings: Settings) -> FramePipeline:
    """Make a detector for live streams.

    Raises
    ------
    ModelUnavailableError
        The model is not here.
    """
    return create_pipeline(_served_model(name, settings), settings)


def create_app(
    settings: Settings,
    detector_factory: DetectorFactory = image_detector,
    pipeline_factory: PipelineMaker = stream_pipeline,
    read_memory: MemoryReader | None = None,
    clip_factory: ClipDetectorFactory = clip_detector,
    storage: StorageSettings | None = None,
) -> FastAPI:
    """Put the service together.

    Parameters
    ----------
    settings
        As read by the shell.
    detector_factory
        Makes detectors for single images by name.
    pipeline_factory
        Makes detectors for live streams by name.
    read_memory
        How full a GPU is; by default asks its driver.
    clip_factory
        Makes a detector for each uploaded clip by name.
    storage
        Where sessions and videos are kept; None: nowhere, and what needs them is refused.

    Raises
    ------
    InvalidExerciseError
        A file in the folder of exercises is not one.
    InvalidFormFileError, InvalidFormModelError, InvalidReferenceError
        A file that form is judged by is not one.
    UnknownNameError
        The coach does not speak the language of the settings.
    """
    exercises = load_exercises(settings.exercises_dir)
    library = load_form_library(folders_of(settings))
    select_language(library.texts, settings.language)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        reader = read_memory or _gpu_memory()
        metrics = PrometheusMetrics()
        detectors = DetectorPool(settings, detector_factory)
        manager = StreamManager(
            lambda model: pipeline_factory(model, settings),
            _analysis(settings, exercises, library),
            metrics,
            _limits(settings),
            reader,
        )
        app.state.manager = manager
        watch = MemoryWatch(manager, reader, metrics, settings.max_batch)
        chores = [
            asyncio.create_task(manager.run()),
            asyncio.create_task(watch.run()),
            asyncio.create_task(_return_memory(manager)),
        ]
        for chore in chores:
            chore.add_done_callback(_tell_of_defect)
        database = BackgroundDatabase(storage)
        database.start()
        ingestion = await asyncio.to_thread(start_ingestion, storage, database)
        if ingestion is not None:
            manager.record_with(SessionRecorder(ingestion))
            metrics.watch_ingestion(ingestion.stats)
        workers = local_workers(storage)
        queue_watch = asyncio.create_task(
            watch_queue(database, QueueMetrics(metrics.registry), workers)
        )
        queue_watch.add_done_callback(_tell_of_defect)
        log.info("service_started", detector=settings.detector)
        yield {
            "settings": settings,
            "detectors": detectors,
            "exercises": exercises,
            "metrics": metrics,
            "manager": manager,
            "library": library,
            "clips": ClipReader(settings, clip_factory),
            "database": database,
            "storage": storage,
            "artifacts": LazyArtifactStore(storage),
            "workers": workers,
        }
        chores.append(queue_watch)
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await manager.close()
        await detectors.close()
        await asyncio.to_thread(workers.close)
        if ingestion is not None:
            await asyncio.to_thread(ingestion.close)
        await asyncio.to_thread(database.close)
        log.info("service_stopped")

    app = FastAPI(
        title="Pose analyzer", version=metadata.version("pose-analyzer"), lifespan=lifespan
    )
    app.state.settings = settings
    app.add_middleware(
        BodyLimit,
        max_upload_bytes=settings.max_upload_bytes,
        own_limit=None if storage is None else video_body_limit(storage),
    )
    install_problem_handlers(app)
    app.include_router(router)
    app.include_router(form_router)
    app.include_router(stream_router)
    app.include_router(session_router)
    app.include_router(athlete_router)
    app.include_router(video_router)
    app.include_router(job_router)
    app.include_router(websocket_router)
    return app


async def _return_memory(manager: StreamManager) -> None:
    """Once streams have ended, return to the system what their detectors leave behind."""
    n_returned = 0
    while True:
        await asyncio.sleep(_TRIM_EVERY_S)
        if manager.n_ended > n_returned:
            n_returned = manager.n_ended
            await asyncio.to_thread(trim_memory)


def _tell_of_defect(chore: asyncio.Task[None]) -> None:
    if not chore.cancelled():
        log.error("chore_stopped", exc_info=chore.exception())


class Server(uvicorn.Server):
    """Uvicorn for live streams: little waits in its sockets, and nobody is left without a word."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; connections inherit what is set here."""
        await super().startup(sockets)
        if _NOTSENT_OPTION is None:
            return
        for server in self.servers:
            for listener in server.sockets:
                listener.setsockopt(socket.IPPROTO_TCP, _NOTSENT_OPTION, _MAX_NOTSENT_BYTES)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all streams, then the server."""
        app = self.config.app
        if isinstance(app, FastAPI) and self.started:
            manager: StreamManager = app.state.manager
            manager.end_all()
            await asyncio.sleep(_FAREWELL_S)
        await super().shutdown(sockets)


_FAREWELL_S: Final = 0.2
# Linux would keep megabytes, half a minute of answers, for somebody who reads slowly.
_MAX_NOTSENT_BYTES: Final = 16_384
_NOTSENT_OPTION: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_TRIM_EVERY_S: Final = 15.0
# Python's 5 ms would let a detector's thread wait that long for the event loop's.
_SWITCH_INTERVAL_S: Final = 0.0005


def server_config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """How the service is to be served."""
    settings: Settings = app.state.settings
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        ws_max_size=settings.stream_max_frame_bytes,
        # Pictures do not get smaller.
        ws_per_message_deflate=False,
    )


def main(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    host: Annotated[str, typer.Option(help="0.0.0.0 to serve other machines.")] = "127.0.0.1",
) -> None:
    """Serve pose detection and live streams over HTTP and WebSocket."""
    configure_logging()
    give_memory_back()
    try:
        settings = read_settings(Settings)
        check_detector(settings.detector)
        app = create_app(settings, storage=read_settings(StorageSettings))
    except _UNUSABLE as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
        raise typer.Exit(2) from error
    for problem in entries_without_effect(settings.allowed_sources):
        log.warning("allowed_source_without_effect", problem=problem)
    log.info("service_begins", url=f"http://{host}:{port}")
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    Server(server_config(app, host, port)).run()


def _served_model(name: str, settings: Settings) -> str:
    """Which model that is; it must be here.

    The default MediaPipe model is downloaded if it is missing; any other must have been, since a
    client must not make the service download hundreds of megabytes or accept a licence.
    """
    model = resolve_model(name, settings)
    if model in MODELS and model != resolve_model("mediapipe", settings):
        locate_model(model, settings)
    return model


def _analysis(
    settings: Settings, exercises: dict[str, Exercise], library: FormLibrary
) -> LiveAnalysis:
    """Make what follows people; called from the loop that waits for its answers."""
    n_processes = settings.analysis_processes
    if n_processes is None:
        n_processes = min(n_usable_cores() // _CORES_PER_ANALYSIS_PROCESS, _MAX_ANALYSIS_PROCESSES)
    if n_processes == 0:
        return LocalAnalysis(tuple(exercises.values()), library)
    analysis = ProcessAnalysis(tuple(exercises.values()), n_processes, library)
    analysis.receive_in(asyncio.get_running_loop())
    return analysis


def _limits(settings: Settings) -> ManagerConfig:
    return ManagerConfig(
        admission=AdmissionConfig(
            max_streams=settings.max_streams, min_stream_fps=settings.min_stream_fps
        ),
        grace_s=settings.stream_grace_s,
        n_results_kept=settings.stream_results_kept,
    )


def _gpu_memory() -> MemoryReader:
    """Reads the GPU a device such as ``cuda:0`` means."""
    readers: dict[str, GpuReader] = {}

    def read(device: str) -> VramReading | None:
        if not device.startswith("cuda"):
            return None
        if device not in readers:
            index = int(device.partition(":")[2] or 0)
            readers[device] = GpuReader(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        gpu = readers[device].read()
        if gpu is None or gpu.used_bytes is None or gpu.total_bytes is None:
            return None
        return VramReading(time.monotonic(), gpu.used_bytes, gpu.total_bytes)

    return read


if __name__ == "__main__":
    typer.run(main)
