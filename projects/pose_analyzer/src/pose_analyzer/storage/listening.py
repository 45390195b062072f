"""Wakes a worker when a transaction elsewhere has told that there is something to do."""

import contextlib
import select
import time
from typing import Final

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, oddly named

from pose_analyzer.storage.database import Database
from pose_analyzer.storage.leases import CHANNEL

_RECONNECT_S: Final = 1.0


class Listener:
    """Waits for NOTIFY on a connection of its own; without one it waits for the time given."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._tried_s = float("-inf")

    def wait(self, timeout_s: float) -> None:
        """Return when told, or after the time given.

        What was told while nobody waited counts; several such notices count as one.
        """
        connection = self._connected()
        if connection is None:
            time.sleep(min(timeout_s, _RECONNECT_S))
            return
        try:
            connection.poll()
            if not connection.notifies:
                select.select([connection], [], [], timeout_s)
                connection.poll()
            connection.notifies.clear()
        except psycopg2.Error:
            self.close()

    def close(self) -> None:
        """Stop listening."""
        if self._connection is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def _connected(self) -> Connection | None:
        if self._connection is None and time.monotonic() - self._tried_s > _RECONNECT_S:
            self._tried_s = time.monotonic()
            with contextlib.suppress(psycopg2.Error):
                connection = self._database.connect()
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(f"LISTEN {CHANNEL}")
                self._connection = connection
        return self._connection
