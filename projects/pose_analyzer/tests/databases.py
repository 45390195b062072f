"""A real PostgreSQL server for tests, and a fresh database of it for each test that asks."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from pydantic import SecretStr
from sqlalchemy.engine import URL

from pose_analyzer.db_connector import Database, open_database
from pose_analyzer.storage.embedded import EmbeddedConfig, EmbeddedServer
from pose_analyzer.storage.urls import url_of
from pose_analyzer.storage_settings import StorageSettings

TEMPLATE = "prepared"
PATIENCE_S = 120.0
"""Longer than anything takes on the slowest machine that is busy with other things."""


@dataclass(frozen=True)
class DatabaseServer:
    """A running server with a database that has all tables, of which copies are made."""

    server: EmbeddedServer
    numbers: Iterator[int]

    def url(self, database: str) -> URL:
        return url_of(self.server.address).set(database=database)

    def execute(self, statement: str) -> None:
        address = self.server.address
        connection = psycopg2.connect(
            host=address.socket_dir, port=address.port, user=address.user, dbname="postgres"
        )
        try:
            connection.autocommit = True
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def new_database(self, template: str = TEMPLATE) -> URL:
        name = f"test_{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def end_connections(self, url: URL) -> None:
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "  # noqa: S608
            f"WHERE datname = '{url.database}'"
        )

    def drop(self, url: URL) -> None:
        self.execute(f"DROP DATABASE {url.database} WITH (FORCE)")


def settings_for(url: URL, data_dir: Path) -> StorageSettings:
    text = url.render_as_string(hide_password=False)
    return StorageSettings(database_url=SecretStr(text), data_dir=data_dir)


def running_server(folder: Path) -> Iterator[DatabaseServer]:
    server = EmbeddedServer(folder, EmbeddedConfig(durable=False))
    server.start()
    try:
        started = DatabaseServer(server, itertools.count())
        started.execute(f"CREATE DATABASE {TEMPLATE}")
        prepared: Database = open_database(settings_for(started.url(TEMPLATE), folder))
        prepared.close()
        yield started
    finally:
        server.close()


def eventually(what: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.02)
