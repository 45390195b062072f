"""Person-frames go into the table and come back as they were."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sqlalchemy import select

from pose_analyzer.db_connector import Database
from pose_analyzer.frame_rows import ROW, pack_people, rows_of, unpack_rows
from pose_analyzer.storage.models import ExerciseSession, PoseFrame, SessionKind
from pose_analyzer.storage.pose_rows import RowFilter, copy_rows, encode_rows, read_rows

from .builders import person_analysis, person_frame

STARTED = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
STARTED_US = int(STARTED.timestamp()) * 1_000_000 + STARTED.microsecond


def stored_session(database: Database, rows, started_us=STARTED_US) -> uuid.UUID:
    session_id = uuid.uuid4()
    with database.session() as session:
        session.add(
            ExerciseSession(session_id=session_id, kind=SessionKind.LIVE, started_at=STARTED)
        )
    with database.raw() as connection:
        copy_rows(connection, [encode_rows(session_id, started_us, rows)])
    return session_id


def some_rows(n=500, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, ROW)
    rows["track_id"] = rng.integers(1, 4, n)
    rows["frame_index"] = np.arange(n)
    rows["time_s"] = np.arange(n) / 29.97
    rows["keypoints"] = rng.normal(300, 100, (n, 17, 3))
    rows["angles"] = rng.normal(120, 30, (n, 12))
    for name in ("confidence", "progress", "score"):
        rows[name] = np.where(rng.random(n) < 0.3, np.nan, rng.random(n))
    rows["keypoints"][2, 4] = np.nan
    rows["angles"][:, 5] = np.nan
    rows["n_repetitions"] = np.arange(n) // 60
    return rows


def test_rows_come_back_as_they_were(database: Database) -> None:
    rows = some_rows()
    session_id = stored_session(database, rows)
    with database.raw() as connection:
        pages = list(read_rows(connection, RowFilter(session_id), page_rows=128))
    assert [len(page) for page in pages] == [128, 128, 128, 116]
    assert np.concatenate(pages).tobytes() == rows.tobytes()


def test_rows_are_what_sqlalchemy_reads(database: Database) -> None:
    rows = some_rows(3)
    rows["score"] = [np.nan, 70.5, np.nan]
    session_id = stored_session(database, rows)
    query = select(PoseFrame).where(PoseFrame.session_id == session_id)
    with database.session() as session:
        stored = session.scalars(query.order_by(PoseFrame.time)).all()
    assert [one.score for one in stored] == [None, 70.5, None]
    assert (stored[1].time - STARTED).total_seconds() == round(1 / 29.97, 6)
    assert stored[2].time_s == 2 / 29.97
    np.testing.assert_array_equal(np.float32(stored[1].keypoints), rows["keypoints"][1].ravel())
    assert np.isnan(stored[0].angles[5])


def test_people_and_times_can_be_chosen(database: Database) -> None:
    rows = some_rows()
    session_id = stored_session(database, rows)
    chosen = rows[(rows["track_id"] == 2) & (rows["time_s"] >= 2.0) & (rows["time_s"] <= 9.5)]
    wanted = RowFilter(session_id, track_id=2, from_s=2.0, to_s=9.5)
    with database.raw() as connection:
        found = np.concatenate(list(read_rows(connection, wanted, page_rows=17)))
        assert list(read_rows(connection, RowFilter(uuid.uuid4()))) == []
    assert found.tobytes() == chosen.tobytes()


def test_people_of_one_moment_are_paged_without_loss(database: Database) -> None:
    rows = np.repeat(some_rows(40), 3)
    rows["track_id"] = np.tile([1, 2, 3], 40)
    session_id = stored_session(database, rows)
    with database.raw() as connection:
        pages = list(read_rows(connection, RowFilter(session_id), page_rows=7))
    assert np.concatenate(pages).tobytes() == rows.tobytes()


def test_a_recording_and_a_stream_give_the_same_rows() -> None:
    person = person_analysis(40)
    scores = np.where(person.time_s > 1.0, 81.5, np.nan)
    recorded = rows_of(replace(person, score=np.full(40, 0.9)), scores)
    live = b"".join(
        pack_people(
            [
                person_frame(
                    float(person.progress[i]),
                    frame_index=i,
                    time_s=float(person.time_s[i]),
                    n_repetitions=int(person.n_repetitions[i]),
                )
            ],
            {1: 81.5 if person.time_s[i] > 1.0 else None},
        )
        for i in range(40)
    )
    for name in ROW.names:
        np.testing.assert_array_equal(unpack_rows(live)[name], recorded[name])


@given(arrays.arrays(np.float32, (4, 3), elements=st.floats(width=32)))
def test_null_is_nan_and_nothing_else(values) -> None:
    rows = some_rows(4)
    for column, name in enumerate(("confidence", "progress", "score")):
        rows[name] = values[:, column]
    n_null = np.isnan(values).sum()
    whole = encode_rows(uuid.uuid4(), 0, np.zeros(4, ROW))
    assert len(encode_rows(uuid.uuid4(), 0, rows)) == len(whole) - 4 * n_null
