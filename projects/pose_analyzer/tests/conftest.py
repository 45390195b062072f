"""Fixtures shared by the tests of the pose analyzer."""

import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from pose_analyzer.ultralytics_library import import_ultralytics, ultralytics_installed

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
