"""What routes ask for; HTTPConnection, so that WebSocket routes can ask for the same."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import HTTPConnection

from pose_analyzer.api.clips import ClipReader
from pose_analyzer.api.detectors import DetectorPool
from pose_analyzer.backends import DETECTOR_NAMES
from pose_analyzer.background_database import BackgroundDatabase
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import UnknownNameError
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.metrics import PrometheusMetrics
from pose_analyzer.settings import Settings
from pose_analyzer.storage.artifacts import ArtifactStore, LazyArtifactStore
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.stream_manager import StreamManager
from pose_analyzer.upload_errors import StorageUnavailableError


def _settings(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.state.settings
    return settings


def _detectors(connection: HTTPConnection) -> DetectorPool:
    detectors: DetectorPool = connection.state.detectors
    return detectors


def _manager(connection: HTTPConnection) -> StreamManager:
    manager: StreamManager = connection.state.manager
    return manager


def _exercises(connection: HTTPConnection) -> dict[str, Exercise]:
    exercises: dict[str, Exercise] = connection.state.exercises
    return exercises


def _clips(connection: HTTPConnection) -> ClipReader:
    clips: ClipReader = connection.state.clips
    return clips


def _library(connection: HTTPConnection) -> FormLibrary:
    library: FormLibrary = connection.state.library
    return library


def _metrics(connection: HTTPConnection) -> PrometheusMetrics:
    metrics: PrometheusMetrics = connection.state.metrics
    return metrics


def _database_watch(connection: HTTPConnection) -> BackgroundDatabase:
    database: BackgroundDatabase = connection.state.database
    return database


def _database(connection: HTTPConnection) -> Database:
    """The open database; its absence refuses the request."""
    return _database_watch(connection).get()


def _storage(connection: HTTPConnection) -> StorageSettings:
    storage: StorageSettings | None = connection.state.storage
    if storage is None:
        raise StorageUnavailableError("the service was set up without a place for files")
    return storage


def _lazy_artifacts(connection: HTTPConnection) -> LazyArtifactStore:
    artifacts: LazyArtifactStore = connection.state.artifacts
    return artifacts


def _artifacts(connection: HTTPConnection) -> ArtifactStore:
    """The store of files; a folder that cannot be written to refuses the request."""
    return _lazy_artifacts(connection).get()


def detector_or_default(name: str | None, settings: Settings) -> str:
    """Check a client's choice of detector; the setting's where it made none.

    Raises
    ------
    UnknownNameError
        There is no such detector. `create_detector` also takes paths of weights, which run code
        when they are loaded: those are for whoever runs the service, not for its clients.
    """
    if name is None:
        return settings.detector
    if name not in DETECTOR_NAMES:
        raise UnknownNameError("detector", name, DETECTOR_NAMES)
    return name


def _detector_name(
    connection: HTTPConnection,
    detector: Annotated[
        str | None,
        Query(
            description="auto, mediapipe, yolo, or a model such as mediapipe-full or "
            "yolo11s-pose; by default the one in the settings."
        ),
    ] = None,
) -> str:
    return detector_or_default(detector, _settings(connection))


SettingsDep = Annotated[Settings, Depends(_settings)]
DetectorsDep = Annotated[DetectorPool, Depends(_detectors)]
DetectorNameDep = Annotated[str, Depends(_detector_name)]
ManagerDep = Annotated[StreamManager, Depends(_manager)]
ExercisesDep = Annotated[dict[str, Exercise], Depends(_exercises)]
ClipsDep = Annotated[ClipReader, Depends(_clips)]
LibraryDep = Annotated[FormLibrary, Depends(_library)]
DatabaseWatchDep = Annotated[BackgroundDatabase, Depends(_database_watch)]
DatabaseDep = Annotated[Database, Depends(_database)]
StorageDep = Annotated[StorageSettings, Depends(_storage)]
LazyArtifactsDep = Annotated[LazyArtifactStore, Depends(_lazy_artifacts)]
ArtifactsDep = Annotated[ArtifactStore, Depends(_artifacts)]
MetricsDep = Annotated[PrometheusMetrics, Depends(_metrics)]
