"""Connections to one database: sessions, psycopg2 connections, and what says that it is away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

import psycopg2
import psycopg2.extensions
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.embedded import EmbeddedServer
from pose_analyzer.storage.urls import normalised_url, url_of
from pose_analyzer.storage_settings import StorageSettings

_POOL_SIZE: Final = 5
_MAX_EXTRA_CONNECTIONS: Final = 10
# Libpq would wait for hours for a server whose network has gone.
_CONNECTION: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# Refused and broken connections, a server that starts or stops, a full disk, a deadlock.
_AWAY: Final = (OperationalError, InterfaceError)
_AWAY_RAW: Final = (psycopg2.OperationalError, psycopg2.InterfaceError)
DATABASE_FOLDER: Final = "database"
"""Folder of the embedded server within the data folder."""


class Database:
    """An open database; a context manager that closes it.

    Parameters
    ----------
    find
        Tells where it is at present.
    server
        The embedded server, closed with this; None where it is somebody else's.
    """

    def __init__(self, find: Callable[[], URL], server: EmbeddedServer | None = None) -> None:
        self._find = find
        self._server = server
        self.engine: Final[Engine] = create_engine(
            "postgresql+psycopg2://",
            creator=self.connect,
            # Names of people are nobody's business in a log.
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=_POOL_SIZE,
            max_overflow=_MAX_EXTRA_CONNECTIONS,
        )
        self._new_session = sessionmaker(self.engine, expire_on_commit=False)
        self._has_timescaledb: bool | None = None

    @property
    def url(self) -> URL:
        """Where it is; its password is hidden in ``str``, not in ``render_as_string(False)``."""
        return self._find()

    @property
    def has_timescaledb(self) -> bool:
        """Whether its frames are in a hypertable."""
        if self._has_timescaledb is None:
            with self.engine.connect() as connection:
                found = connection.execute(
                    text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
                )
                self._has_timescaledb = found.first() is not None
        return self._has_timescaledb

    def ping(self) -> None:
        """See whether it answers.

        Raises
        ------
        DatabaseUnavailableError
            It does not.
        """
        with self.session() as session:
            session.execute(text("SELECT 1"))

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back if the block raises.

        What it returned stays readable afterwards.

        Raises
        ------
        DatabaseUnavailableError
            The server is away, or ended what was under way; worth another try.
        """
        with self.absence_told(), self._new_session.begin() as session:
            yield session

    @contextmanager
    def raw(self) -> Iterator[psycopg2.extensions.connection]:
        """A psycopg2 connection of the pool, for COPY.

        Committed at the end, or rolled back if the block raises.

        Raises
        ------
        DatabaseUnavailableError
            The server is away, or ended what was under way; worth another try.
        """
        with self.absence_told():
            pooled = self.engine.raw_connection()
            try:
                connection: Any = pooled.driver_connection
                yield connection
                pooled.commit()
            except BaseException:
                # It may be broken, or in the middle of a COPY.
                pooled.invalidate()
                raise
            finally:
                pooled.close()

    def connect(self) -> psycopg2.extensions.connection:
        """A psycopg2 connection outside the pool, for LISTEN; the caller closes it.

        Raises
        ------
        psycopg2.OperationalError
            The server is away.
        """
        _, arguments = self.engine.dialect.create_connect_args(self._find())
        for name, value in _CONNECTION.items():
            arguments.setdefault(name, value)
        connection: psycopg2.extensions.connection = psycopg2.connect(**arguments)
        return connection

    @contextmanager
    def absence_told(self) -> Iterator[None]:
        """For work on `engine` itself: what drivers raise becomes `DatabaseUnavailableError`."""
        try:
            yield
        except DBAPIError as error:
            if not (error.connection_invalidated or isinstance(error, _AWAY)):
                raise
            raise DatabaseUnavailableError(str(self.url), str(error.orig).strip()) from error
        except (*_AWAY_RAW, PoolTimeoutError) as error:
            raise DatabaseUnavailableError(str(self.url), str(error).strip()) from error

    def close(self) -> None:
        """Close all connections, and the embedded server if this process owns it."""
        self.engine.dispose()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> "Database":  # noqa: PYI034 - the tests' type checker knows no Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find_database(settings: StorageSettings) -> Database:
    """The database of the settings, whatever is in it; starts or joins the embedded server.

    Raises
    ------
    DatabaseUnavailableError
        The embedded server cannot be started.
    InvalidDatabaseUrlError
        DATABASE_URL names no PostgreSQL server.
    """
    if settings.database_url is not None:
        url = normalised_url(settings.database_url.get_secret_value())
        return Database(lambda: url)
    server = EmbeddedServer(settings.data_dir / DATABASE_FOLDER)
    server.start()
    return Database(lambda: url_of(server.address), server)
