"""Taught references in the database: as those in files, and each with its athlete."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pose_analyzer.api.main import create_app
from pose_analyzer.athlete_forms import FormWish, choose_form
from pose_analyzer.db_connector import Database
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.reference_files import format_reference, parse_reference
from pose_analyzer.settings import Settings
from pose_analyzer.storage.references import store_reference
from pose_analyzer.storage_settings import StorageSettings

from .image_service import Factory, check_problem, small_settings
from .test_form_routes import squats
from .test_form_scorer import REFERENCE

DOCUMENT = format_reference(REFERENCE)
EXERCISES = tuple(load_exercises(Settings().exercises_dir).values())


def service_with(storage: StorageSettings, folder: Path) -> Iterator[TestClient]:
    chosen = small_settings(folder).model_copy(
        update={"taught_references_dir": folder / "taught", "max_upload_bytes": 4_000_000}
    )
    kept = storage.model_copy(update={"local_workers": 0})
    app = create_app(chosen, Factory(), storage=kept)
    with structlog.testing.capture_logs(), TestClient(app) as client:
        while client.get("/health").json()["database"]["state"] == "starting":
            pass
        yield client


@pytest.fixture
def client(storage_settings: StorageSettings, tmp_path: Path) -> Iterator[TestClient]:
    yield from service_with(storage_settings, tmp_path)


@pytest.fixture
def cut_off(storage_settings: StorageSettings, tmp_path: Path) -> Iterator[TestClient]:
    nowhere = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    yield from service_with(storage_settings.model_copy(update={"database_url": nowhere}), tmp_path)


def names_in(client: TestClient) -> list[str]:
    return [one["name"] for one in client.get("/references").json()["references"]]


def test_a_taught_reference_goes_through_the_database(client: TestClient, tmp_path: Path) -> None:
    taught = client.post("/references", json=squats(name="maria"))
    assert taught.status_code == 201, taught.text
    assert not (tmp_path / "taught").exists()
    assert "squat" in names_in(client)
    assert "maria" in names_in(client)
    squat = next(
        one for one in client.get("/exercises").json()["exercises"] if one["name"] == "squat"
    )
    assert "maria" in squat["references"]
    judged = client.post("/analyze-form", json=squats(reference="maria")).json()
    assert judged["repetitions"][0]["reference"] == "maria"
    assert judged["score"] > 80.0
    fetched = client.get("/references/maria")
    assert parse_reference(fetched.content, "maria").exercise == "squat"
    assert client.delete("/references/maria").status_code == 204
    check_problem(client.delete("/references/maria"), 404, "unknown-reference")
    check_problem(client.get("/references/maria"), 404, "unknown-reference")
    refused = client.post("/analyze-form", json=squats(1, reference="maria"))
    check_problem(refused, 422, "unknown-name")


def test_files_and_the_database_are_listed_together(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "good.json").write_text(DOCUMENT)
    assert "good" in names_in(client)
    assert client.put("/references/good", content=DOCUMENT).status_code == 200
    assert names_in(client).count("good") == 1
    check_problem(client.put("/references/squat", content=DOCUMENT), 422, "invalid-reference")
    assert client.delete("/references/good").status_code == 204
    assert "good" not in names_in(client)


def test_a_reference_goes_with_its_athlete(client: TestClient) -> None:
    athlete = client.post("/athletes", json={"name": "Maria"}).json()["athlete_id"]
    stored = client.put("/references/good", content=DOCUMENT, params={"athlete_id": str(athlete)})
    assert stored.json()["athlete_id"] == athlete
    nobody = client.put(
        "/references/good", content=DOCUMENT, params={"athlete_id": str(uuid.uuid4())}
    )
    check_problem(nobody, 404, "unknown-athlete")
    assert client.delete(f"/athletes/{athlete}").status_code == 204
    assert "good" not in names_in(client)


def test_what_somebody_was_taught_is_where_their_own_way_begins(
    client: TestClient, database: Database
) -> None:
    athlete = uuid.UUID(client.post("/athletes", json={"name": "Maria"}).json()["athlete_id"])
    with database.session() as session:
        store_reference(session, REFERENCE, athlete)
    library = load_form_library(folders_of(Settings()))
    chosen = choose_form(database, library, EXERCISES, FormWish(None, "en", athlete))
    judge = library.judge_config(EXERCISES, chosen)
    assert judge.exercises["squat"].own is not None
    assert judge.exercises["squat"].own.name == "good"
    assert judge.exercises["squat"].reference is not None
    assert judge.exercises["squat"].reference.name == "squat"
    assert judge.exercises["lunge"].own is None
    stranger = choose_form(database, library, EXERCISES, FormWish(None, "en"))
    assert stranger.own == ()


def test_without_the_database_files_go_on_and_the_rest_is_told(
    cut_off: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "good.json").write_text(DOCUMENT)
    assert {"squat", "good"} <= set(names_in(cut_off))
    judged = cut_off.post("/analyze-form", json=squats(1, reference="good")).json()
    assert judged["repetitions"][0]["reference"] == "good"
    assert cut_off.post("/analyze-form", json=squats(1)).status_code == 200
    unknown = cut_off.post("/analyze-form", json=squats(1, reference="maria"))
    check_problem(unknown, 503, "database-unavailable")
    check_problem(cut_off.put("/references/good", content=DOCUMENT), 503, "database-unavailable")
    check_problem(cut_off.delete("/references/good"), 503, "database-unavailable")
