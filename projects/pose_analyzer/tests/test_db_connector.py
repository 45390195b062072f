"""Opening the database, and what its absence looks like from the outside."""

import time

import psycopg2
import psycopg2.extensions
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from pose_analyzer.background_database import BackgroundDatabase, DatabaseState
from pose_analyzer.db_connector import open_database
from pose_analyzer.errors import (
    DatabaseUnavailableError,
    InvalidDatabaseUrlError,
    SchemaVersionError,
)
from pose_analyzer.storage.models import Athlete
from pose_analyzer.storage_settings import StorageSettings

from .databases import eventually, settings_for

SECRET = "s3cret%40"  # noqa: S105
NOWHERE = f"postgresql://me:{SECRET}@127.0.0.1:1/x"


def settings_of(url: str, tmp_path) -> StorageSettings:
    return StorageSettings(database_url=SecretStr(url), data_dir=tmp_path)


def test_what_a_session_wrote_is_there_for_others(database):
    with database.session() as session:
        session.add(Athlete(name="Ada"))
    with database.session() as session:
        athlete = session.scalars(select(Athlete)).one()
    assert athlete.name == "Ada"
    with database.raw() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM athletes")
        assert cursor.fetchall() == [("Ada",)]


def test_what_fails_leaves_nothing(database):
    def add_and_fail() -> None:
        with database.session() as session:
            session.add(Athlete(name="Ada"))
            raise RuntimeError

    def add_raw_and_fail() -> None:
        with database.raw() as connection:
            connection.cursor().execute("INSERT INTO athletes VALUES (gen_random_uuid(), 'Bea')")
            raise RuntimeError

    for fail in (add_and_fail, add_raw_and_fail):
        with pytest.raises(RuntimeError):
            fail()
    with database.session() as session:
        assert session.scalars(select(Athlete)).all() == []


def test_a_mistake_is_not_an_absence(database):
    with pytest.raises(IntegrityError), database.session() as session:
        session.execute(text("INSERT INTO athletes (athlete_id) VALUES (gen_random_uuid())"))


def test_rows_that_are_copied(database):
    with database.raw() as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.copy_expert("COPY athletes (athlete_id, name) FROM STDIN", Rows(1000))
    with database.raw() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), current_setting('synchronous_commit') FROM athletes")
        assert cursor.fetchone() == (1000, "on")


class Rows:
    """Text as COPY reads it."""

    def __init__(self, n: int) -> None:
        self.lines = iter(f"00000000-0000-0000-0000-{i:012}\tAda\n" for i in range(n))

    def read(self, _size: int) -> str:
        return next(self.lines, "")


def test_a_connection_outside_the_pool_can_listen(database):
    listening = database.connect()
    listening.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    listening.cursor().execute("LISTEN news")
    with database.session() as session:
        session.execute(text("NOTIFY news, 'today'"))
    give_up_s = time.monotonic() + 10.0
    while not listening.notifies and time.monotonic() < give_up_s:
        time.sleep(0.02)
        listening.poll()
    assert [notice.payload for notice in listening.notifies] == ["today"]
    listening.close()


def test_broken_connections_are_replaced(database, database_server):
    with database.session() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    database_server.execute(f"SELECT pg_terminate_backend({pid})")
    database.ping()


def test_a_transaction_that_the_server_ended_says_so(database, database_server):
    def in_session() -> None:
        with database.session() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            database_server.execute(f"SELECT pg_terminate_backend({pid})")
            session.scalar(text("SELECT 1"))

    def in_raw_connection() -> None:
        with database.raw() as connection:
            pid = connection.info.backend_pid
            database_server.execute(f"SELECT pg_terminate_backend({pid})")
            connection.cursor().execute("SELECT 1")

    for work in (in_session, in_raw_connection):
        with pytest.raises(DatabaseUnavailableError):
            work()


def test_a_wrong_address_is_refused_without_quoting_it(tmp_path):
    with pytest.raises(InvalidDatabaseUrlError) as refused:
        open_database(settings_of(NOWHERE.replace("postgresql", "mysql"), tmp_path))
    assert "s3cret" not in str(refused.value)


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path):
    with capture_logs() as logs, pytest.raises(DatabaseUnavailableError) as absent:
        open_database(settings_of(NOWHERE, tmp_path))
    assert "127.0.0.1:1/x" in str(absent.value)
    assert "refused" in absent.value.reason
    assert "s3cret" not in f"{absent.value}{logs}"


def test_tables_are_only_made_where_that_is_wanted(database_server, tmp_path):
    url = database_server.new_database(template="template0")
    settings = settings_for(url, tmp_path)
    with pytest.raises(SchemaVersionError):
        open_database(settings, migrate=False)
    with open_database(settings):
        pass
    with open_database(settings, migrate=False) as database:
        database.ping()
    database_server.drop(url)


def test_without_an_address_there_is_one_of_ones_own(tmp_path):
    settings = StorageSettings(database_url=None, data_dir=tmp_path)
    with open_database(settings) as database, open_database(settings) as other:
        with database.session() as session:
            session.add(Athlete(name="Ada"))
        with other.session() as session:
            assert session.scalars(select(Athlete.name)).all() == ["Ada"]


class TestInTheBackground:
    def test_opens_by_and_by_and_then_answers(self, storage_settings):
        background = BackgroundDatabase(storage_settings)
        assert background.status.state is DatabaseState.STARTING
        with pytest.raises(DatabaseUnavailableError, match="being started"):
            background.get()
        background.start()
        eventually(lambda: background.status.state is DatabaseState.OK)
        background.get().ping()
        background.close()
        with pytest.raises(DatabaseUnavailableError):
            background.get()

    def test_says_why_there_is_none(self, tmp_path):
        background = BackgroundDatabase(settings_of(NOWHERE, tmp_path))
        background.start()
        eventually(lambda: background.status.state is DatabaseState.UNAVAILABLE)
        assert "refused" in background.status.reason
        assert "s3cret" not in background.status.reason
        background.close()

    def test_notices_that_it_went_away_and_came_back(self, database_server, tmp_path):
        url = database_server.new_database()
        background = BackgroundDatabase(settings_for(url, tmp_path))
        background.start()
        eventually(lambda: background.status.state is DatabaseState.OK)
        database_server.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
        database_server.end_connections(url)
        eventually(lambda: background.status.state is DatabaseState.UNAVAILABLE)
        assert "not currently accepting connections" in background.status.reason
        database_server.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
        eventually(lambda: background.status.state is DatabaseState.OK)
        background.close()
        database_server.drop(url)

    def test_none_is_wanted(self):
        background = BackgroundDatabase(None)
        background.start()
        assert background.status.state is DatabaseState.UNAVAILABLE
        background.close()
