"""What uploads of small videos need."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pose_analyzer import upload_rules
from pose_analyzer.api.main import create_app
from pose_analyzer.storage_settings import StorageSettings
from shared_utils.units import BYTES_PER_MIB

from .image_service import Factory, small_settings
from .sample_videos import sha256


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 1 MiB, so that small files have several."""
    monkeypatch.setattr(upload_rules, "MIN_PART_BYTES", BYTES_PER_MIB)


def upload_app(storage: StorageSettings | None, folder: Path) -> FastAPI:
    """The service, which analyses nothing: what it queues stays queued."""
    if storage is not None:
        storage = storage.model_copy(update={"local_workers": 0})
    return create_app(small_settings(folder), Factory(), storage=storage)


@contextmanager
def service(storage: StorageSettings | None, folder: Path) -> Iterator[TestClient]:
    """The service with a database, once that is open."""
    app = upload_app(storage, folder)
    with structlog.testing.capture_logs(), TestClient(app) as client:
        while storage and client.get("/health").json()["database"]["state"] == "starting":
            pass
        yield client


def announced(client: TestClient, content: bytes, **changes: Any) -> dict[str, Any]:
    """Announce a video; gives the answer."""
    body = {"filename": "squats.mp4", "size_bytes": len(content), "sha256": sha256(content)}
    answer = client.post("/videos", json=body | changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


def parts_of(content: bytes, video: dict[str, Any]) -> dict[int, bytes]:
    """Cut a file as the service asks for."""
    size = video["upload"]["part_bytes"]
    return {
        number: content[start : start + size]
        for number, start in enumerate(range(0, len(content), size))
    }


def files_below(folder: Path) -> list[str]:
    """Names of all files."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def uploaded_files(data_dir: Path) -> list[str]:
    """Names of all files that uploads have left in a data folder."""
    return files_below(data_dir / "files") + files_below(data_dir / "incoming")
