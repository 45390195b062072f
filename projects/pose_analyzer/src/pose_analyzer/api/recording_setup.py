"""Keeps what live streams show, where the service has a place for it."""

from typing import Final

import structlog

from pose_analyzer.background_database import BackgroundDatabase
from pose_analyzer.storage.ingestion import Ingestion, essence_of
from pose_analyzer.storage.spill import SpillFolder
from pose_analyzer.storage_settings import StorageSettings

SPILL: Final = "spill"
"""Folder of the data folder for what waits for the database."""

log = structlog.get_logger()


def start_ingestion(
    storage: StorageSettings | None, database: BackgroundDatabase
) -> Ingestion | None:
    """Begin to write what is put; None where nothing is to be kept. Reads what was left behind."""
    if storage is None or not storage.store_frames:
        return None
    return Ingestion(lambda: database.get().session(), _spill_folder(storage))


def _spill_folder(storage: StorageSettings) -> SpillFolder | None:
    try:
        return SpillFolder(storage.data_dir / SPILL, storage.spill_bytes, essence_of)
    except OSError as error:
        log.warning("rows_wait_in_memory_only", reason=str(error))
        return None
