"""Puts analysed chunks together: ``python -m pose_analyzer.worker_main``."""

import tempfile
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from pose_analyzer.db_connector import open_database
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.settings import Settings
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.storage.listening import Listener
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_jobs.aggregation import AggregationDuty, Knowledge
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
from shared_utils.settings import read_settings

log = structlog.get_logger()


def main(
    idle_s: IdleOption = None,
    metrics_port: MetricsOption = None,
    *,
    until_stdin_closes: StdinOption = False,
) -> None:
    """Put analysed chunks of recorded videos together until stopped."""
    settings, storage = read_settings(Settings), read_settings(StorageSettings)
    knowledge = Knowledge(
        load_exercises(settings.exercises_dir), load_form_library(folders_of(settings))
    )
    registry = CollectorRegistry()
    store = open_artifact_store(storage)
    with (
        tempfile.TemporaryDirectory(prefix="pose-videos-") as cache,
        open_database(storage) as database,
    ):
        place = Workplace(database, store, LocalCopies(store, Path(cache)), RetryPolicy())
        duty = AggregationDuty(place, knowledge, WorkerMetrics("aggregation", registry))
        listener = Listener(database)
        loop = WorkLoop(duty, listener, idle_s=idle_s)
        serve_metrics(metrics_port, registry)
        if until_stdin_closes:
            end_with_stdin(loop.stop)
        log.info("worker_started", worker="aggregation")
        with stopped_by_signals(loop.stop):
            n_done = loop.run()
        listener.close()
        log.info("worker_stopped", worker="aggregation", n_done=n_done)


if __name__ == "__main__":
    run_worker(main)
