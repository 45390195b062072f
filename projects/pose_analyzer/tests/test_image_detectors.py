"""The detectors of single images: which are served, and how they are loaded."""

import threading
from pathlib import Path

import anyio
import numpy as np
import pytest

from pose_analyzer.api import main as api_main
from pose_analyzer.api.detectors import DetectorPool
from pose_analyzer.api.main import image_detector
from pose_analyzer.errors import (
    ModelUnavailableError,
)
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings

from .image_service import FakeDetector, small_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path)


async def test_while_a_model_loads_the_others_work(settings: Settings) -> None:
    download = threading.Event()
    made = []

    def factory(name: str, _: Settings) -> PoseDetector:
        if name == "mediapipe-lite":
            assert download.wait(10)
        made.append(name)
        return FakeDetector(name)

    pool = DetectorPool(settings, factory)
    image_bgr = np.zeros((4, 4, 3), np.uint8)
    await pool.detect("auto", image_bgr)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(pool.detect, "mediapipe-lite", image_bgr)
        await anyio.sleep(0.05)
        with anyio.fail_after(5):
            await pool.detect("auto", image_bgr)
            await pool.detect("mediapipe-heavy", image_bgr)
        download.set()
    assert made == ["mediapipe-full", "mediapipe-heavy", "mediapipe-lite"]
    await pool.close()
    assert pool.loaded == ()


def test_only_mediapipe_is_told_a_number_of_people(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def create(name: str, *_: object, n_people: int | None, **__: object) -> PoseDetector:
        asked[name] = n_people
        return FakeDetector(name)

    monkeypatch.setattr(api_main, "create_detector", create)
    monkeypatch.setattr(api_main, "locate_model", lambda *_: None)
    for name in ("mediapipe", "yolo", "/srv/own-pose.onnx"):
        image_detector(name, settings)
    assert asked == {"mediapipe-full": 6, "yolo11n-pose": None, "/srv/own-pose.onnx": None}


def test_a_client_cannot_make_the_service_download_other_models(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(
        api_main, "create_detector", lambda name, *_, **__: made.append(name) or FakeDetector(name)
    )
    for name in ("yolo", "yolo26x-pose", "mediapipe-heavy"):
        with pytest.raises(ModelUnavailableError):
            image_detector(name, settings)
    for name in ("auto", "mediapipe", "mediapipe-full"):
        image_detector(name, settings)
    assert made == ["mediapipe-full"] * 3
