"""The database of a service that must also work without one."""

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

from pose_analyzer.db_connector import Database, open_database
from pose_analyzer.errors import (
    DatabaseUnavailableError,
    InvalidDatabaseUrlError,
    SchemaVersionError,
)
from pose_analyzer.storage_settings import StorageSettings

_LOOK_EVERY_S: Final = 2.0
_MIN_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 30.0
_CLOSE_WITHIN_S: Final = 90.0

log = structlog.get_logger()


class DatabaseState(StrEnum):
    """Whether the database can be used."""

    OK = "ok"
    STARTING = "starting"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class DatabaseStatus:
    """How the database is."""

    state: DatabaseState
    reason: str | None = None
    """Why it is not `ok`, with what to do."""


class BackgroundDatabase:
    """Opens the database in a thread, keeps trying, and knows how it is.

    Parameters
    ----------
    settings
        As read by the shell; None: there is to be no database.
    """

    def __init__(self, settings: StorageSettings | None) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._closing = threading.Event()
        self._status = (
            DatabaseStatus(DatabaseState.STARTING, "The database is being started.")
            if settings is not None
            else DatabaseStatus(DatabaseState.UNAVAILABLE, "This service was set up without one.")
        )
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)

    @property
    def status(self) -> DatabaseStatus:
        """How it was at the latest look, a few seconds ago at most."""
        return self._status

    def start(self) -> None:
        """Begin to open it; returns at once."""
        self._thread.start()

    def get(self) -> Database:
        """The open database.

        Raises
        ------
        DatabaseUnavailableError
            It is not open yet, or was not to be reached lately.
        """
        database, status = self._database, self._status
        if database is None or status.state is not DatabaseState.OK:
            raise DatabaseUnavailableError("of this service", status.reason or status.state)
        return database

    def close(self) -> None:
        """Close it; blocks while an embedded server stops."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_WITHIN_S)

    def _run(self) -> None:
        database = self._opened()
        if database is None:
            return
        with database:
            self._database = database
            while not self._closing.wait(_LOOK_EVERY_S):
                self._look(database)
            self._tell(DatabaseStatus(DatabaseState.UNAVAILABLE, "The service is ending."))

    def _opened(self) -> Database | None:
        """Try until it is open; None if this is closed before, or there is to be none."""
        wait_s = _MIN_RETRY_S
        while self._settings is not None and not self._closing.is_set():
            try:
                database = open_database(self._settings)
            except (DatabaseUnavailableError, InvalidDatabaseUrlError, SchemaVersionError) as error:
                self._tell(DatabaseStatus(DatabaseState.UNAVAILABLE, str(error)))
            else:
                self._tell(DatabaseStatus(DatabaseState.OK))
                return database
            self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, _MAX_RETRY_S)
        return None

    def _look(self, database: Database) -> None:
        try:
            database.ping()
        except DatabaseUnavailableError as error:
            self._tell(DatabaseStatus(DatabaseState.UNAVAILABLE, str(error)))
        else:
            self._tell(DatabaseStatus(DatabaseState.OK))

    def _tell(self, status: DatabaseStatus) -> None:
        if status.state is not self._status.state:
            log.info("database_state", state=status.state.value, reason=status.reason)
        self._status = status
