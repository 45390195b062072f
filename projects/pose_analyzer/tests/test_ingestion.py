"""What streams leave behind reaches the database once, whatever happens to it meanwhile."""

import errno
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from pose_analyzer.db_connector import Database
from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.ingestion import (
    Ingestion,
    IngestionConfig,
    SessionOpener,
    essence_of,
)
from pose_analyzer.storage.models import (
    ExerciseSession,
    FaultRow,
    PoseFrame,
    RepetitionRow,
)
from pose_analyzer.storage.session_writer import write_records
from pose_analyzer.storage.spill import SpilledBatch, SpillFolder

from .session_examples import block, closed, done, opened, wait_until, whole_session

QUICK = IngestionConfig(batch_s=0.02, retry_s=0.02, batch_records=64)


class Door:
    """A way to the database that can be shut, or lose answers to commits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.open = True
        self.n_answers_to_lose = 0
        self.n_refused = 0

    @contextmanager
    def session(self) -> Iterator[Session]:
        if not self.open:
            self.n_refused += 1
            raise DatabaseUnavailableError("here", "the door is shut")
        with self._database.session() as session:
            yield session
        if self.n_answers_to_lose:
            self.n_answers_to_lose -= 1
            raise DatabaseUnavailableError("here", "the connection broke")


@pytest.fixture
def door(database: Database) -> Door:
    return Door(database)


Start = Callable[..., Ingestion]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Ingestion] = []

    def begin(
        open_session: SessionOpener, *, spill_bytes: int | None = 10_000_000, config=QUICK
    ) -> Ingestion:
        folder = None if spill_bytes is None else SpillFolder(tmp_path, spill_bytes, essence_of)
        started.append(Ingestion(open_session, folder, config))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def frames_of(database: Database, session_id: uuid.UUID) -> list[int]:
    query = select(PoseFrame.frame_index).where(PoseFrame.session_id == session_id)
    with database.session() as session:
        return list(session.scalars(query.order_by(PoseFrame.time, PoseFrame.track_id)))


def session_of(database: Database, session_id: uuid.UUID) -> ExerciseSession | None:
    with database.session() as session:
        return session.get(ExerciseSession, session_id)


def count(database: Database, table: type) -> int:
    with database.session() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def assert_whole(database: Database, session_id: uuid.UUID, n_frames=90) -> None:
    assert frames_of(database, session_id) == list(range(n_frames))
    row = session_of(database, session_id)
    assert row is not None
    assert (row.n_frames, row.n_repetitions, row.exercise) == (n_frames, 2, "squat")
    assert row.ended_at is not None


def test_a_session_is_written_whole(database: Database, door: Door, start: Start) -> None:
    session_id = uuid.uuid4()
    ingestion = start(door.session)
    for record in whole_session(session_id):
        ingestion.put(record)
    ingestion.close()
    assert_whole(database, session_id)
    with database.session() as session:
        first, second = session.scalars(select(RepetitionRow).order_by(RepetitionRow.number))
        (fault,) = session.scalars(select(FaultRow))
    assert (first.score, second.score) == (81.0, 82.0)
    assert first.ranges[0] == {
        "angle": "left_knee",
        "min_deg": 80.0,
        "max_deg": 170.0,
        "trusted": True,
    }
    assert (fault.repetition_id, fault.name, fault.amount) == (first.repetition_id, "shallow", 12.5)
    stats = ingestion.stats()
    assert stats.n_rows_written == 90
    assert not any(stats.n_dropped.values())
    assert (stats.n_queued, stats.n_spilled_bytes, stats.lag_s) == (0, 0, 0.0)


def test_while_a_session_runs_its_frames_are_counted(
    database: Database, door: Door, start: Start
) -> None:
    session_id = uuid.uuid4()
    ingestion = start(door.session)
    ingestion.put(opened(session_id))
    ingestion.put(block(session_id, 0, 1))
    ingestion.put(block(session_id, 1, track_id=2))
    ingestion.put(done(session_id))
    wait_until(lambda: count(database, RepetitionRow) == 1)
    row = session_of(database, session_id)
    assert row is not None
    assert (row.n_frames, row.n_repetitions, row.ended_at) == (2, 1, None)


@pytest.mark.parametrize("spill_bytes", [10_000_000, None], ids=["spilled", "in memory"])
def test_what_came_while_the_database_was_away_is_caught_up(
    database: Database, door: Door, start: Start, spill_bytes: int | None
) -> None:
    session_id = uuid.uuid4()
    ingestion = start(door.session, spill_bytes=spill_bytes)
    records = whole_session(session_id)
    for record in records[:30]:
        ingestion.put(record)
    wait_until(lambda: len(frames_of(database, session_id)) == 29)
    door.open = False
    for record in records[30:60]:
        ingestion.put(record)
    wait_until(lambda: door.n_refused >= 3)
    assert ingestion.stats().lag_s > 0.0
    for record in records[60:]:
        ingestion.put(record)
    assert (ingestion.stats().n_spilled_bytes > 0) is (spill_bytes is not None)
    door.open = True
    wait_until(lambda: ingestion.stats().lag_s == 0.0)
    ingestion.close()
    assert_whole(database, session_id)
    assert ingestion.stats().n_rows_written == 90


def test_the_next_start_catches_up(database: Database, door: Door, start: Start) -> None:
    session_id = uuid.uuid4()
    door.open = False
    ingestion = start(door.session)
    for record in whole_session(session_id):
        ingestion.put(record)
    ingestion.close()
    assert ingestion.stats().n_spilled_bytes > 0
    door.open = True
    again = start(door.session)
    wait_until(lambda: again.stats().n_spilled_bytes == 0)
    again.close()
    assert_whole(database, session_id)


@pytest.mark.parametrize("spill_bytes", [10_000_000, None], ids=["spilled", "in memory"])
def test_a_commit_whose_answer_was_lost_is_not_repeated(
    database: Database, door: Door, start: Start, spill_bytes: int | None
) -> None:
    session_id = uuid.uuid4()
    door.n_answers_to_lose = 4
    ingestion = start(door.session, spill_bytes=spill_bytes)
    for record in whole_session(session_id):
        ingestion.put(record)
    wait_until(lambda: door.n_answers_to_lose == 0 and ingestion.stats().lag_s == 0.0)
    ingestion.close()
    assert_whole(database, session_id)
    assert ingestion.stats().n_rows_written == 90
    assert count(database, RepetitionRow) == 2
    assert count(database, FaultRow) == 1


def test_a_retry_waits_until_the_first_try_has_ended(database: Database) -> None:
    session_id = uuid.uuid4()
    records = [opened(session_id), block(session_id, *range(20))]
    with database.session() as session:
        write_records(session, records[:1])
    begun, finish = threading.Event(), threading.Event()

    def first() -> None:
        with database.session() as session:
            write_records(session, records)
            begun.set()
            finish.wait(10)

    def second() -> None:
        with database.session() as session:
            write_records(session, records, again=True)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with database.session() as session:
        wait_until(lambda: session.scalar(waiting) == 1)
    finish.set()
    for thread in threads:
        thread.join(10)
    assert frames_of(database, session_id) == list(range(20))


def test_beyond_the_limit_the_oldest_frames_go_and_nothing_else(
    database: Database, door: Door, start: Start
) -> None:
    door.open = False
    ingestion = start(door.session, spill_bytes=60_000)
    session_id = uuid.uuid4()
    for record in whole_session(session_id, n_frames=600):
        ingestion.put(record)
    wait_until(lambda: ingestion.stats().n_queued == 0)
    n_dropped = ingestion.stats().n_dropped["spill_full"]
    assert 0 < n_dropped < 600
    assert ingestion.stats().n_spilled_bytes <= 60_000
    door.open = True
    wait_until(lambda: ingestion.stats().n_spilled_bytes == 0)
    ingestion.close()
    assert frames_of(database, session_id) == list(range(n_dropped, 600))
    row = session_of(database, session_id)
    assert row is not None
    assert row.n_frames == 600
    assert count(database, RepetitionRow) == 2


def test_a_full_disk_leaves_the_memory(
    database: Database, door: Door, start: Start, tmp_path: Path, monkeypatch
) -> None:
    def full(self: SpillFolder, batch: SpilledBatch) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpillFolder, "append", full)
    door.open = False
    session_id = uuid.uuid4()
    ingestion = start(door.session)
    for record in whole_session(session_id):
        ingestion.put(record)
    wait_until(lambda: door.n_refused >= 3)
    door.open = True
    wait_until(lambda: ingestion.stats().lag_s == 0.0)
    ingestion.close()
    assert_whole(database, session_id)


def test_put_never_waits(database: Database, start: Start) -> None:
    entered, go_on = threading.Event(), threading.Event()

    @contextmanager
    def stuck() -> Iterator[Session]:
        entered.set()
        go_on.wait(20)
        with database.session() as session:
            yield session

    config = IngestionConfig(batch_s=0.01, batch_records=64, max_queued=100)
    ingestion = start(stuck, config=config)
    session_id = uuid.uuid4()
    ingestion.put(opened(session_id))
    assert entered.wait(10)
    # If this waited, nobody would let the writer go on.
    for frame in range(250):
        ingestion.put(block(session_id, frame))
    ingestion.put(closed(session_id))
    assert ingestion.stats().n_queued <= 101
    go_on.set()
    ingestion.close()
    assert ingestion.stats().n_dropped["queue_full"] == 151
    assert frames_of(database, session_id) == list(range(151, 250))
    row = session_of(database, session_id)
    assert row is not None
    assert row.ended_at is not None


def test_rows_of_a_deleted_session_are_dropped_alone(
    database: Database, door: Door, start: Start
) -> None:
    gone, kept = uuid.uuid4(), uuid.uuid4()
    ingestion = start(door.session)
    for session_id in (gone, kept):
        ingestion.put(opened(session_id))
    wait_until(lambda: count(database, ExerciseSession) == 2)
    with database.session() as session:
        session.execute(delete(ExerciseSession).where(ExerciseSession.session_id == gone))
    for frame in range(5):
        ingestion.put(block(gone, frame))
        ingestion.put(block(kept, frame))
    ingestion.put(done(gone))
    ingestion.put(closed(gone))
    ingestion.close()
    assert frames_of(database, kept) == list(range(5))
    assert frames_of(database, gone) == []
    assert ingestion.stats().n_dropped["session_deleted"] == 5
    assert count(database, RepetitionRow) == 0


def test_sessions_of_a_deleted_athlete_are_not_begun(
    database: Database, door: Door, start: Start
) -> None:
    ingestion = start(door.session)
    ingestion.put(opened(uuid.uuid4(), athlete_id=uuid.uuid4()))
    ingestion.close()
    assert count(database, ExerciseSession) == 0


def test_a_real_outage_loses_and_doubles_nothing(
    database_server, database: Database, start: Start
) -> None:
    session_id = uuid.uuid4()
    ingestion = start(database.session)
    records = whole_session(session_id, n_frames=600)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%'"
    for number, record in enumerate(records):
        ingestion.put(record)
        if number % 60 == 59:
            database_server.execute(cut)
    wait_until(lambda: ingestion.stats().lag_s == 0.0)
    ingestion.close()
    assert_whole(database, session_id, n_frames=600)


def test_times_are_exact_to_the_microsecond(database: Database, door: Door, start: Start) -> None:
    session_id = uuid.uuid4()
    ingestion = start(door.session)
    ingestion.put(opened(session_id))
    ingestion.put(block(session_id, *range(100)))
    ingestion.close()
    query = select(PoseFrame.time, PoseFrame.time_s).where(PoseFrame.session_id == session_id)
    with database.session() as session:
        began = session.get_one(ExerciseSession, session_id).started_at
        for time, time_s in session.execute(query):
            assert round(time_s * 1e6) == round((time - began).total_seconds() * 1e6)
            assert np.float64(time_s) in np.arange(100) / 30.0
