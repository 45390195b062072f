"""Fixtures shared by the tests of the pose analyzer."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from pose_analyzer.db_connector import Database, open_database
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.ultralytics_library import import_ultralytics, ultralytics_installed

from .databases import DatabaseServer, running_server, settings_for

# Times say more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data beside the checkout; its absence skips the test."""
    folder = Path(os.environ.get("SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the evaluation data at {folder} (SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The library of the optional extra, imported the way the product does it."""
    if not ultralytics_installed():
        pytest.skip("needs the extra yolo")
    return import_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="session")
def weights() -> Path:
    """YOLO weights in a folder of POSE_MODEL_PATH."""
    for folder in os.environ.get("POSE_MODEL_PATH", "").split(os.pathsep):
        if (path := Path(folder) / "yolo11n-pose.pt").is_file():
            return path
    pytest.skip("yolo11n-pose.pt is in no folder of POSE_MODEL_PATH")


@pytest.fixture(scope="session")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A PostgreSQL server of this run."""
    yield from running_server(tmp_path_factory.mktemp("server"))


@pytest.fixture
def storage_settings(database_server: DatabaseServer, tmp_path: Path) -> Iterator[StorageSettings]:
    """Settings of a database of this test's own, with all tables and no rows, and a data folder.

    Its DATABASE_URL also works in other processes.
    """
    url = database_server.new_database()
    yield settings_for(url, tmp_path / "data")
    database_server.drop(url)


@pytest.fixture
def database(storage_settings: StorageSettings) -> Iterator[Database]:
    """That database, open."""
    with open_database(storage_settings) as opened:
        yield opened
