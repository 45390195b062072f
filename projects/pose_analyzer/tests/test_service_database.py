"""The service with a database, and without one."""

from collections.abc import Iterator

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pose_analyzer.api.dependencies import DatabaseDep
from pose_analyzer.api.main import create_app
from pose_analyzer.storage_settings import StorageSettings

from .databases import eventually
from .image_service import Factory, check_problem, picture, small_settings, upload


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def service(tmp_path, storage: StorageSettings | None) -> FastAPI:
    app = create_app(small_settings(tmp_path), Factory(), storage=storage)

    @app.get("/test-of-the-database")
    def needs_it(database: DatabaseDep) -> str:
        database.ping()
        return "answered"

    return app


def test_the_port_opens_before_the_database_does(tmp_path):
    storage = StorageSettings(database_url=None, data_dir=tmp_path / "data")
    with TestClient(service(tmp_path, storage)) as client:
        assert client.get("/health").json()["database"]["state"] == "starting"
        eventually(lambda: client.get("/health").json()["database"]["state"] == "ok")
        assert client.get("/health").json()["database"]["reason"] is None
        assert client.get("/test-of-the-database").json() == "answered"


@pytest.mark.parametrize(
    "url", [None, "postgresql://me:s3cret@127.0.0.1:1/x", "mysql://s3cret@x/y"]
)
def test_all_else_works_without(tmp_path, url):
    (tmp_path / "file").touch()
    storage = StorageSettings(
        database_url=url and SecretStr(url), data_dir=tmp_path / "file" / "data"
    )
    with TestClient(service(tmp_path, storage)) as client:
        eventually(lambda: client.get("/health").json()["database"]["state"] == "unavailable")
        health = client.get("/health")
        assert health.json()["status"] == "ok"
        assert health.json()["database"]["reason"]
        assert "s3cret" not in health.text
        check_problem(client.get("/test-of-the-database"), 503, "database-unavailable")
        assert client.post("/detect", files=upload(picture())).status_code == 200


def test_none_is_set_up(tmp_path):
    with TestClient(service(tmp_path, None)) as client:
        assert client.get("/health").json()["database"]["state"] == "unavailable"
        check_problem(client.get("/test-of-the-database"), 503, "database-unavailable")
