"""Analyses chunks of recorded videos: ``python -m pose_analyzer.chunk_worker``.

Any number of them, on any machines that reach the same database and the same files.
"""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
from prometheus_client import CollectorRegistry

from pose_analyzer.db_connector import open_database
from pose_analyzer.settings import Settings
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.storage.listening import Listener
from pose_analyzer.storage.models import DeepMode
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_jobs.chunk_duty import ChunkDuty
from pose_analyzer.video_jobs.detection import ChunkDetection
from pose_analyzer.video_jobs.job_metrics import WorkerMetrics
from pose_analyzer.video_jobs.local_copies import LocalCopies
from pose_analyzer.video_jobs.shell import (
    IdleOption,
    MetricsOption,
    StdinOption,
    end_with_stdin,
    run_worker,
    serve_metrics,
    stopped_by_signals,
)
from pose_analyzer.video_jobs.work_loop import WorkLoop
from pose_analyzer.video_jobs.workplace import Workplace
from shared_utils.gpu import read_gpus
from shared_utils.settings import read_settings


class Device(StrEnum):
    """Which jobs a worker takes, beside those that leave it open."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


_MODES: Final = {
    Device.CPU: (DeepMode.CPU, DeepMode.AUTO),
    Device.GPU: (DeepMode.GPU, DeepMode.AUTO),
}

log = structlog.get_logger()


def main(
    device: Annotated[
        Device, typer.Option(help="Take jobs for CPUs or GPUs; auto: by what is here.")
    ] = Device.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; several workers share cores.")
    ] = None,
    idle_s: IdleOption = None,
    metrics_port: MetricsOption = None,
    *,
    until_stdin_closes: StdinOption = False,
) -> None:
    """Analyse chunks of recorded videos until stopped."""
    settings, storage = read_settings(Settings), read_settings(StorageSettings)
    if device is Device.AUTO:
        has_gpu = storage.gpu_processing_enabled and bool(read_gpus())
        device = Device.GPU if has_gpu else Device.CPU
    registry = CollectorRegistry()
    store = open_artifact_store(storage)
    with (
        tempfile.TemporaryDirectory(prefix="pose-videos-") as cache,
        open_database(storage) as database,
    ):
        place = Workplace(database, store, LocalCopies(store, Path(cache)), RetryPolicy())
        detection = ChunkDetection(settings, store, threads)
        duty = ChunkDuty(place, _MODES[device], detection, WorkerMetrics("chunk", registry))
        listener = Listener(database)
        loop = WorkLoop(duty, listener, idle_s=idle_s)
        serve_metrics(metrics_port, registry)
        if until_stdin_closes:
            end_with_stdin(loop.stop)
        log.info("worker_started", worker="chunks", device=device.value)
        with stopped_by_signals(loop.stop):
            n_done = loop.run()
        listener.close()
        detection.close()
        log.info("worker_stopped", worker="chunks", n_done=n_done)


if __name__ == "__main__":
    run_worker(main)
