"""Looks after the queue of recorded videos: tells metrics what waits, and has workers there."""

import asyncio
import os
from typing import Final

import structlog

from pose_analyzer.background_database import BackgroundDatabase
from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.jobs import QueueDepth, queue_depth
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_jobs.job_metrics import QueueMetrics
from pose_analyzer.video_jobs.local_workers import LocalWorkers

_LOOK_EVERY_S: Final = 5.0

log = structlog.get_logger()


def local_workers(storage: StorageSettings | None) -> LocalWorkers:
    """Workers of this machine, with the same database and files as the service; perhaps none."""
    if storage is None:
        return LocalWorkers(0)
    return LocalWorkers(storage.local_workers, {**os.environ, **storage.as_environment()})


async def watch_queue(
    database: BackgroundDatabase, metrics: QueueMetrics, workers: LocalWorkers
) -> None:
    """Look again and again, until cancelled.

    Work may wait although nobody has just asked for it: since before the service started, or
    because a worker has died.
    """
    while True:
        try:
            depth = await asyncio.to_thread(_read, database)
        except DatabaseUnavailableError as error:
            log.debug("queue_unknown", reason=error.reason)
        else:
            metrics.depth(depth)
            if depth.queued_chunks or depth.processing_chunks or depth.waiting_aggregations:
                workers.wake()
        await asyncio.sleep(_LOOK_EVERY_S)


def _read(database: BackgroundDatabase) -> QueueDepth:
    with database.get().session() as session:
        return queue_depth(session)
