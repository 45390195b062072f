"""A detector for single images that needs no model, and what is asked of the service."""

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.types import Pose
from shared_utils.problems import MEDIA_TYPE


class FakeDetector:
    """Sees one standing person with an unseen left wrist in every image."""

    device = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy = threading.Lock()
        self.images: list[np.ndarray] = []
        self.closed = False

    def detect(
        self, images_bgr: Sequence[np.ndarray], times_s: Sequence[float] | None = None
    ) -> list[list[Pose]]:
        assert self.busy.acquire(blocking=False), "called twice at the same time"
        time.sleep(0.01)
        self.images += images_bgr
        self.busy.release()
        return [[standing()] for _ in images_bgr]

    def close(self) -> None:
        self.closed = True


def standing() -> Pose:
    x_px = [50, 52, 48, 55, 45, 60, 40, 62, 38, 63, 37, 57, 43, 57, 43, 57, 43]
    y_px = [10, 8, 8, 9, 9, 25, 25, 45, 45, 65, 65, 65, 65, 95, 95, 125, 125]
    keypoints_px = np.array([x_px, y_px], dtype=np.float64).T
    confidences = np.full(17, 0.9)
    keypoints_px[9], confidences[9] = np.nan, 0.0
    return Pose(keypoints_px, confidences, np.array([35.0, 5.0, 65.0, 130.0]), 0.9)


class Factory:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: list[FakeDetector] = []
        self.error: Exception | None = None

    def __call__(self, name: str, settings: Settings) -> PoseDetector:
        self.asked.append(name)
        if self.error:
            raise self.error
        self.made.append(FakeDetector(name))
        return self.made[-1]


def small_settings(folder: Path) -> Settings:
    """Of a service without models that accepts little."""
    return Settings(
        model_path=(),
        model_dir=folder / "models",
        cache_dir=folder / "cache",
        max_upload_bytes=100_000,
        max_image_pixels=1_000_000,
    )


def picture(width_px: int = 100, height_px: int = 140, kind: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (200, 100, 50)).save(buffer, kind, **save)
    return buffer.getvalue()


def upload(content: bytes) -> dict[str, tuple[str, bytes]]:
    return {"file": ("picture.png", content)}


def check_problem(response: Any, status: int, code: str | None = None) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert {"type", "title", "status", "detail", "instance"} <= body.keys()
    assert body["status"] == status
    if code:
        assert body["type"].endswith(f":{code}")
    assert "Traceback" not in response.text
    detail: str = body["detail"]
    return detail
