"""Live streams and recordings leave the same behind, under a session that outlives connections."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from pose_analyzer.api.main import create_app
from pose_analyzer.db_connector import Database
from pose_analyzer.frame_rows import ROW
from pose_analyzer.recording import store_analysis
from pose_analyzer.storage.models import ExerciseSession, SessionKind
from pose_analyzer.storage.pose_rows import RowFilter, read_rows
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.video_processor import process_video

from .builders import FakeDetector, FakeSource, person_analysis, video_analysis
from .live_server import LiveServer, png, receive, send, serving
from .session_examples import wait_until
from .squat_service import pipeline, settings, squatter
from .test_live_equals_recorded import config_of

PICTURE = png(np.zeros((40, 64, 3), np.uint8))
TIMES_S = np.arange(0, 240) / 29.97


@contextmanager
def keeping(storage: StorageSettings, **changes: Any) -> Iterator[LiveServer]:
    """The service with a database, once that is open."""
    app = create_app(
        settings(**changes),
        pipeline_factory=pipeline,
        storage=storage.model_copy(update={"local_workers": 0}),
    )
    with serving(app) as live:
        wait_until(lambda: live.call("GET", "/health")[1]["database"]["state"] != "starting")
        yield live


def play(live: LiveServer, stream: dict[str, Any], times_s=TIMES_S) -> list[dict[str, Any]]:
    """Send pictures one by one; gives the answers."""
    answers = []
    with live.connect(stream, "pose.v1.msgpack") as socket_:
        for time_s in times_s:
            send(socket_, PICTURE, float(time_s))
            answers.append(receive(socket_))
    return answers


def ended_session(live: LiveServer, stream: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a stream, which is ended for that."""
    path = f"/sessions/{stream['session_id']}"
    assert live.call("DELETE", f"/stream/{stream['stream_id']}")[0] == 204
    wait_until(lambda: (live.call("GET", path)[1] or {}).get("ended_at") is not None)
    return live.call("GET", path)[1]


def rows_of(database: Database, session_id: str) -> np.ndarray:
    with database.raw() as connection:
        return np.concatenate(list(read_rows(connection, RowFilter(uuid.UUID(session_id)))))


def recorded_session(database: Database, analysis, forms) -> str:
    session_id = uuid.uuid4()
    with database.session() as session:
        session.add(ExerciseSession(session_id=session_id, kind=SessionKind.RECORDED))
    store_analysis(database, session_id, analysis, forms, datetime(2024, 1, 2, tzinfo=UTC))
    return str(session_id)


@pytest.mark.parametrize("n_processes", [0, 1])
def test_live_leaves_what_a_recording_leaves(
    database: Database, storage_settings: StorageSettings, n_processes: int
) -> None:
    config = config_of("auto", sample_fps=None)
    source = FakeSource(TIMES_S, width_px=64, height_px=40)
    forms: list[Any] = []
    analysis = process_video(source, FakeDetector(squatter), config, on_form=forms.append)
    with keeping(storage_settings, analysis_processes=n_processes) as live:
        stream = live.start_stream(exercise="auto")
        play(live, stream)
        seen = ended_session(live, stream)
        told = live.call("GET", f"/sessions/{recorded_session(database, analysis, forms)}")[1]
    rows, others = rows_of(database, stream["session_id"]), rows_of(database, told["session_id"])
    # Live knows the exercise and the score only from the moment when they are found out.
    later = {"progress", "n_repetitions", "score"}
    for name in set(ROW.names) - later:
        np.testing.assert_array_equal(rows[name], others[name])
    known = np.isfinite(rows["progress"])
    np.testing.assert_array_equal(rows["progress"][known], others["progress"][known])
    scores = [set(some["score"][np.isfinite(some["score"])]) for some in (rows, others)]
    assert set() < scores[0] <= scores[1]
    same = ("exercise", "n_frames", "n_repetitions", "score")
    assert {name: seen[name] for name in same} == {name: told[name] for name in same}
    assert seen["n_repetitions"] == 3
    assert seen["score"] is not None
    for one, other in zip(seen["repetitions"], told["repetitions"], strict=True):
        assert one | {"time": None} == other | {"time": None}


def test_a_session_goes_on_with_the_next_connection(storage_settings: StorageSettings) -> None:
    with keeping(storage_settings) as live:
        stream = live.start_stream(exercise="squat")
        play(live, stream, TIMES_S[:100])
        info = live.call("GET", f"/stream/{stream['stream_id']}")[1]
        assert info["session_id"] == stream["session_id"]
        play(live, stream, TIMES_S[100:])
        seen = ended_session(live, stream)
        listed = live.call("GET", "/sessions")[1]
    assert (seen["n_frames"], seen["n_repetitions"]) == (240, 3)
    assert listed["n_total"] == 1
    assert seen["kind"] == "live"
    assert seen["stream_id"] == stream["stream_id"]


def test_each_exercise_counts_from_one_and_none_is_lost(
    storage_settings: StorageSettings,
) -> None:
    with keeping(storage_settings) as live:
        stream = live.start_stream(exercise="squat")
        with live.connect(stream, "pose.v1.msgpack") as socket_:
            for number, time_s in enumerate(TIMES_S):
                # Standing between two repetitions.
                if number in (78, 136):
                    name = "lunge" if number == 78 else "squat"
                    socket_.send(f'{{"type": "exercise", "exercise": "{name}"}}')
                send(socket_, PICTURE, float(time_s))
                receive(socket_)
        seen = ended_session(live, stream)
    squats = [one for one in seen["repetitions"] if one["exercise"] == "squat"]
    assert len(squats) == seen["n_repetitions"] == 2
    assert [one["number"] for one in squats] == [1, 2]


def test_the_shutdown_writes_what_is_left(
    database: Database, storage_settings: StorageSettings
) -> None:
    with keeping(storage_settings) as live:
        stream = live.start_stream(exercise="squat")
        play(live, stream)
    assert len(rows_of(database, stream["session_id"])) == 240
    with database.session() as session:
        row = session.get_one(ExerciseSession, uuid.UUID(stream["session_id"]))
    assert row.ended_at is not None
    assert row.n_repetitions == 3


def test_without_its_database_the_service_streams_and_keeps_for_later(
    database: Database, storage_settings: StorageSettings
) -> None:
    nowhere = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    with keeping(storage_settings.model_copy(update={"database_url": nowhere})) as live:
        stream = live.start_stream(exercise="squat")
        answers = play(live, stream)
        assert answers[-1]["people"][0]["n_repetitions"] == 3
        status, body, _ = live.call("POST", "/stream/start", {"athlete_id": str(uuid.uuid4())})
        assert (status, body["type"].rpartition(":")[2]) == (503, "database-unavailable")
    with keeping(storage_settings) as live:
        path = f"/sessions/{stream['session_id']}"
        wait_until(lambda: (live.call("GET", path)[1] or {}).get("ended_at") is not None)
    assert len(rows_of(database, stream["session_id"])) == 240


def test_nothing_is_kept_where_nothing_is_to_be(storage_settings: StorageSettings) -> None:
    with keeping(storage_settings.model_copy(update={"store_frames": False})) as live:
        stream = live.start_stream(exercise="squat")
        assert stream["session_id"] is None
        play(live, stream, TIMES_S[:10])
        assert live.call("GET", "/sessions")[1]["n_total"] == 0


def test_a_known_athlete_begins_with_their_own_way(
    storage_settings: StorageSettings, tmp_path: Path
) -> None:
    # Where there is no reference, who begins is believed.
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with keeping(storage_settings, references_dir=nothing, faults_dir=nothing) as live:
        maria = live.call("POST", "/athletes", {"name": "Maria"})[1]["athlete_id"]
        modes = []
        for athlete_id in (maria, maria, None):
            stream = live.start_stream(exercise="squat", athlete_id=athlete_id)
            play(live, stream, np.arange(0, 280) / 29.97)
            seen = ended_session(live, stream)
            modes.append([one["reference_mode"] for one in seen["repetitions"]])
            assert seen["athlete_id"] == athlete_id
            assert all(one["accepted"] for one in seen["repetitions"])
        status, body, _ = live.call("POST", "/stream/start", {"athlete_id": str(uuid.uuid4())})
    assert modes == [[None] * 3, ["personal"] * 3, [None] * 3]
    assert (status, body["type"].rpartition(":")[2]) == (404, "unknown-athlete")


def test_a_recording_stored_again_takes_the_place_of_the_first(database: Database) -> None:
    analysis = video_analysis([person_analysis(121), person_analysis(40, track_id=2)])
    session_id = recorded_session(database, analysis, [])
    shorter = replace(analysis, people=analysis.people[:1], n_frames=100)
    store_analysis(database, uuid.UUID(session_id), shorter, [], datetime(2024, 1, 3, tzinfo=UTC))
    rows = rows_of(database, session_id)
    assert len(rows) == 121
    np.testing.assert_array_equal(rows["time_s"], analysis.people[0].time_s)
    assert np.isnan(rows["confidence"]).all()
    with database.session() as session:
        row = session.get_one(ExerciseSession, uuid.UUID(session_id))
    assert (row.n_frames, row.n_repetitions, row.exercise) == (100, 2, "squat")
    assert row.started_at == datetime(2024, 1, 3, tzinfo=UTC)


def test_the_folder_may_be_one_nobody_can_write_to(
    storage_settings: StorageSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    away = storage_settings.model_copy(update={"data_dir": tmp_path / "file" / "data"})
    with keeping(away) as live:
        stream = live.start_stream(exercise="squat")
        play(live, stream, TIMES_S[:30])
        assert ended_session(live, stream)["n_frames"] == 30
