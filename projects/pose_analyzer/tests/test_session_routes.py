"""Sessions over HTTP: listed, looked at in buckets, exported, forgotten."""

import io
import json
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import ezc3d
import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from pose_analyzer.artifact_keys import original_key
from pose_analyzer.db_connector import Database
from pose_analyzer.session_records import FrameBlock, SessionRecord
from pose_analyzer.storage.artifacts import open_artifact_store
from pose_analyzer.storage.models import ExerciseSession, FaultRow, PoseFrame, RepetitionRow
from pose_analyzer.storage.session_writer import write_records
from pose_analyzer.storage_settings import StorageSettings

from .image_service import check_problem
from .session_examples import (
    STARTED,
    STARTED_US,
    block,
    closed,
    done,
    fault,
    frame_rows,
    opened,
    whole_session,
)
from .test_exports import read_trc
from .uploaded_videos import service


@pytest.fixture
def client(storage_settings: StorageSettings, tmp_path: Path) -> Iterator[TestClient]:
    with service(storage_settings, tmp_path) as client:
        yield client


def stored(database: Database, records: Sequence[SessionRecord]) -> uuid.UUID:
    with database.session() as session:
        write_records(session, records)
    return records[0].session_id


def a_session(database: Database, n_frames=90) -> uuid.UUID:
    return stored(database, whole_session(uuid.uuid4(), n_frames))


def got(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_session_tells_everything_but_its_frames(client: TestClient, database: Database) -> None:
    session_id = a_session(database)
    body = got(client, f"/sessions/{session_id}")
    assert body["session_id"] == str(session_id)
    assert (body["kind"], body["stream_id"], body["detector"]) == ("live", "stream", "yolo11n-pose")
    assert (body["n_frames"], body["n_repetitions"], body["score"]) == (90, 2, 81.5)
    assert body["tracks"] == [
        {"track_id": 1, "n_rows": 90, "first_s": 0.0, "last_s": pytest.approx(89 / 30)}
    ]
    first, second = body["repetitions"]
    assert (first["number"], first["score"], first["components"]["deviation"]) == (1, 81.0, 90.0)
    assert first["ranges"][0]["min_deg"] == 80.0
    assert [one["name"] for one in first["faults"]] == ["shallow"]
    assert second["faults"] == []


def test_sessions_are_listed_by_what_is_asked_for(client: TestClient, database: Database) -> None:
    athlete = client.post("/athletes", json={"name": "Maria"}).json()["athlete_id"]
    ids = [uuid.uuid4() for _ in range(4)]
    for number, session_id in enumerate(ids):
        stored(database, [opened(session_id, uuid.UUID(athlete) if number % 2 else None)])
        with database.session() as session:
            row = session.get_one(ExerciseSession, session_id)
            row.started_at = STARTED + timedelta(hours=number)
            row.exercise = "squat" if number < 3 else "lunge"
    names = [str(one) for one in ids]

    def listed(**query: Any) -> list[str]:
        return [one["session_id"] for one in got(client, "/sessions", **query)["sessions"]]

    assert listed() == names[::-1]
    assert listed(athlete_id=athlete) == [names[3], names[1]]
    assert listed(exercise="squat", limit=2) == [names[2], names[1]]
    assert listed(exercise="squat", limit=2, offset=2) == [names[0]]
    assert listed(since=(STARTED + timedelta(hours=2)).isoformat()) == [names[3], names[2]]
    assert listed(before=(STARTED + timedelta(hours=1)).isoformat()) == [names[0]]
    assert listed(kind="recorded") == []
    assert got(client, "/sessions", exercise="squat", limit=1)["n_total"] == 3
    check_problem(client.get("/sessions", params={"limit": 0}), 422)


def test_buckets_tell_mean_and_extremes(client: TestClient, database: Database) -> None:
    session_id = a_session(database, n_frames=300)
    body = got(client, f"/sessions/{session_id}/timeseries", bucket="1s")
    (track,) = body["tracks"]
    assert body["bucket_s"] == 1
    assert track["start_s"] == list(range(10))
    assert track["n_frames"] == [30] * 10
    rows = frame_rows(np.arange(300))
    seconds = rows["angles"][:, 6].reshape(10, 30)
    knee = track["signals"]["left_knee"]
    np.testing.assert_allclose(knee["mean"], seconds.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(knee["min"], seconds.min(axis=1), atol=1e-3)
    np.testing.assert_allclose(knee["max"], seconds.max(axis=1), atol=1e-3)
    assert track["signals"]["right_knee"]["mean"] == [None] * 10
    assert track["signals"]["score"]["mean"] == [None, None, *[80.0] * 8]


def test_gaps_stay_gaps(client: TestClient, database: Database) -> None:
    session_id = uuid.uuid4()
    stored(database, [opened(session_id), block(session_id, *range(30), *range(120, 165))])
    path = f"/sessions/{session_id}/timeseries"
    (track,) = got(client, path, bucket="1s", signal="confidence")["tracks"]
    assert track["n_frames"] == [30, 0, 0, 0, 30, 15]
    assert track["signals"]["confidence"]["mean"] == [0.9, None, None, None, 0.9, 0.9]
    assert track["signals"].keys() == {"confidence"}
    (track,) = got(client, path, bucket="10s", signal=["progress", "score"])["tracks"]
    assert (track["start_s"], track["n_frames"]) == ([0.0], [75])


def test_people_and_stretches_can_be_chosen(client: TestClient, database: Database) -> None:
    session_id = uuid.uuid4()
    both = [block(session_id, *range(90)), block(session_id, *range(60, 150), track_id=7)]
    stored(database, [opened(session_id), *both])
    path = f"/sessions/{session_id}/timeseries"
    tracks = got(client, path)["tracks"]
    assert [(one["track_id"], one["start_s"][0]) for one in tracks] == [(1, 0.0), (7, 2.0)]
    (track,) = got(client, path, track=7, from_s=2.5, to_s=3.5)["tracks"]
    assert track["start_s"] == [2.0, 3.0]
    assert track["n_frames"] == [15, 16]
    assert got(client, path, track=9)["tracks"] == []


def test_more_buckets_than_an_answer_holds_are_refused(
    client: TestClient, database: Database
) -> None:
    session_id = uuid.uuid4()
    far = frame_rows([0, 30 * 1_000_000])
    stored(database, [opened(session_id), FrameBlock(session_id, STARTED_US, far.tobytes())])
    check_problem(client.get(f"/sessions/{session_id}/timeseries"), 422, "too-much-asked")
    for kind in ("trc", "c3d"):
        answer = client.get(f"/sessions/{session_id}/export", params={"format": kind})
        check_problem(answer, 422, "too-much-asked")


def test_unknown_things_are_told(client: TestClient, database: Database) -> None:
    nowhere = f"/sessions/{uuid.uuid4()}"
    for path in ("", "/timeseries", "/export", "/export?format=trc"):
        check_problem(client.get(nowhere + path), 404, "unknown-session")
    check_problem(client.delete(nowhere), 404, "unknown-session")
    check_problem(client.get(f"/athletes/{uuid.uuid4()}"), 404, "unknown-athlete")
    session_id = a_session(database)
    answer = client.get(f"/sessions/{session_id}/timeseries", params={"signal": "shoe_size"})
    check_problem(answer, 422, "unknown-name")
    answer = client.get(f"/sessions/{session_id}/export", params={"format": "c3d", "track": 5})
    check_problem(answer, 404, "nothing-there")


@pytest.mark.parametrize("odd", ["\0", "\ud800", "'; --", "é" * 80])
def test_odd_texts_are_no_defects(client: TestClient, odd: str) -> None:
    text = odd.encode("utf-8", "surrogatepass")
    for path in ("/sessions", f"/athletes/{uuid.uuid4()}/trends"):
        assert client.get(path, params={"exercise": text}).status_code == 422
    name = urllib.parse.quote(text, safe="")
    check_problem(client.delete(f"/references/{name}"), 404)
    question = {"exercise": "squat", "fps": 25.0, "frames": [[[1.0, 2.0, 0.5]] * 17]}
    body = json.dumps(question | {"reference": odd})
    assert client.post("/analyze-form", content=body).status_code == 422


def exported(client: TestClient, session_id: uuid.UUID, kind: str, **query: Any) -> bytes:
    path = f"/sessions/{session_id}/export"
    answer = client.get(path, params={"format": kind, **query})
    assert answer.status_code == 200, answer.text
    name = f'filename="session_{session_id}.{kind}"'
    assert answer.headers["content-disposition"] == f"attachment; {name}"
    assert int(answer.headers["content-length"]) == len(answer.content)
    return answer.content


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_exported_tables_hold_every_row(client: TestClient, database: Database, kind: str) -> None:
    session_id = uuid.uuid4()
    both = [block(session_id, *range(90)), block(session_id, *range(90), track_id=2)]
    stored(database, [opened(session_id), *both])
    read = {"csv": pl.read_csv, "parquet": pl.read_parquet}[kind]
    table = read(io.BytesIO(exported(client, session_id, kind)))
    assert table.height == 180
    assert table["track_id"].to_list() == [1, 2] * 90
    mine = table.filter(pl.col("track_id") == 1)
    rows = frame_rows(np.arange(90))
    np.testing.assert_array_equal(mine["left_knee_deg"].to_numpy(), rows["angles"][:, 6])
    np.testing.assert_array_equal(mine["nose_x_px"].to_numpy(), rows["keypoints"][:, 0, 0])
    assert mine["score"].null_count() == 60
    part = read(io.BytesIO(exported(client, session_id, kind, track=2, from_s=1.0, to_s=2.0)))
    assert part["frame_index"].to_list() == list(range(30, 61))


def test_exported_markers_hold_one_person(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    session_id = uuid.uuid4()
    both = [block(session_id, *range(30), track_id=1), block(session_id, *range(90), track_id=2)]
    stored(database, [opened(session_id), *both])
    trc, c3d = tmp_path / "markers.trc", tmp_path / "markers.c3d"
    trc.write_bytes(exported(client, session_id, "trc", mm_per_px=2.0))
    c3d.write_bytes(exported(client, session_id, "c3d", rate_hz=60.0, track=1))
    pixels = frame_rows(np.arange(90))["keypoints"][:, :, :2]
    header, times_s, points = read_trc(trc)
    assert (header["DataRate"], header["Units"]) == ("30", "mm")
    np.testing.assert_allclose(times_s, np.arange(90) / 30.0, atol=1e-6)
    np.testing.assert_allclose(points[:, :, 0], 2.0 * pixels[:, :, 0])
    file = ezc3d.c3d(str(c3d))
    assert file["parameters"]["POINT"]["RATE"]["value"] == [60.0]
    assert file["data"]["points"].shape == (4, 17, 59)
    np.testing.assert_allclose(file["data"]["points"][1, :, ::2].T, -pixels[:30, :, 1])


def test_exports_leave_nothing_behind(
    client: TestClient, database: Database, storage_settings: StorageSettings
) -> None:
    session_id = a_session(database)
    exported(client, session_id, "parquet")
    assert list((storage_settings.data_dir / "exports").iterdir()) == []


def count(database: Database, table: type) -> int:
    with database.session() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_deleting_a_session_deletes_all_of_it(
    client: TestClient, database: Database, storage_settings: StorageSettings
) -> None:
    gone, kept = a_session(database), a_session(database)
    files = open_artifact_store(storage_settings)
    for session_id in (gone, kept):
        files.put(original_key(session_id, ".mp4"), b"a video")
    assert client.delete(f"/sessions/{gone}").status_code == 204
    check_problem(client.get(f"/sessions/{gone}"), 404, "unknown-session")
    assert not files.exists(original_key(gone, ".mp4"))
    assert files.exists(original_key(kept, ".mp4"))
    assert got(client, f"/sessions/{kept}")["n_frames"] == 90
    assert (count(database, PoseFrame), count(database, RepetitionRow)) == (90, 2)
    assert count(database, FaultRow) == 1


def test_athletes_are_entered_renamed_and_forgotten(
    client: TestClient, database: Database, storage_settings: StorageSettings
) -> None:
    entered = client.post("/athletes", json={"name": " Maria "})
    assert entered.status_code == 201
    maria = entered.json()
    assert (maria["name"], maria["n_sessions"]) == ("Maria", 0)
    client.post("/athletes", json={"name": "Anna"})
    path = f"/athletes/{maria['athlete_id']}"
    assert client.patch(path, json={"name": "Maria K."}).json()["name"] == "Maria K."
    names = [one["name"] for one in got(client, "/athletes")["athletes"]]
    assert names == ["Anna", "Maria K."]
    session_id = uuid.uuid4()
    mine = [opened(session_id, uuid.UUID(maria["athlete_id"])), *whole_session(session_id)[1:]]
    stored(database, mine)
    files = open_artifact_store(storage_settings)
    files.put(original_key(session_id, ".mp4"), b"a video")
    assert got(client, path)["n_sessions"] == 1
    assert client.delete(path).status_code == 204
    check_problem(client.get(path), 404, "unknown-athlete")
    check_problem(client.delete(path), 404, "unknown-athlete")
    assert got(client, "/sessions")["n_total"] == 0
    assert (count(database, PoseFrame), count(database, FaultRow)) == (0, 0)
    assert not files.exists(original_key(session_id, ".mp4"))


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0b", "\ud800", "x" * 201, None])
def test_names_that_cannot_be_shown_are_refused(client: TestClient, name: str | None) -> None:
    sent = {"content": json.dumps({"name": name}), "headers": {"content-type": "application/json"}}
    check_problem(client.post("/athletes", **sent), 422)


def test_trends_tell_how_weeks_differ(client: TestClient, database: Database) -> None:
    athlete = client.post("/athletes", json={"name": "Maria"}).json()["athlete_id"]
    for week, score in enumerate((60.0, 80.0)):
        session_id = uuid.uuid4()
        later_us = STARTED_US + week * 7 * 86_400_000_000
        records = [
            opened(session_id, uuid.UUID(athlete)),
            *(
                type(one)(one.session_id, later_us, one.repetition)
                for one in (
                    done(session_id, 1, score=score, faults=[fault()]),
                    done(session_id, 2, score=score + 4.0),
                    done(session_id, 3, score=None, exercise="lunge", ranges=[]),
                )
            ),
            closed(session_id),
        ]
        stored(database, records)
    a_session(database)
    weeks = got(client, f"/athletes/{athlete}/trends")["weeks"]
    assert [(one["week"][:10], one["exercise"], one["n_repetitions"]) for one in weeks] == [
        ("2024-05-06", "lunge", 1),
        ("2024-05-06", "squat", 2),
        ("2024-05-13", "lunge", 1),
        ("2024-05-13", "squat", 2),
    ]
    assert weeks[0]["score"] is None
    assert weeks[1]["score"] == {"mean": 62.0, "n_repetitions": 2}
    assert weeks[3]["score"]["mean"] == 82.0
    assert weeks[1]["range_deg"]["left_knee"] == {"mean": 90.0, "n_repetitions": 2}
    assert weeks[1]["asymmetry_deg"] == {"knee": {"mean": 5.0, "n_repetitions": 2}}
    assert "left_hip" not in weeks[1]["range_deg"]
    later = got(client, f"/athletes/{athlete}/trends", since="2024-05-10T00:00:00Z")["weeks"]
    assert [one["exercise"] for one in later] == ["lunge", "squat"]
    only = got(client, f"/athletes/{athlete}/trends", exercise="squat")["weeks"]
    assert len(only) == 2


def test_without_a_database_routes_say_so(tmp_path: Path) -> None:
    with service(None, tmp_path) as client:
        for path in ("/sessions", "/athletes", f"/sessions/{uuid.uuid4()}/export"):
            check_problem(client.get(path), 503)
