"""Which version the tables of a database are of, and how they get to this program's."""

import functools
import threading
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from pose_analyzer.errors import SchemaVersionError
from pose_analyzer.storage.timescale import TIME_INDEX

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LOCK_KEY: Final = int.from_bytes(b"pose-sql")
"""Of PostgreSQL's advisory locks, which are numbers; any that others are unlikely to take."""
_ALEMBIC: Final = threading.Lock()


def bring_up_to_date(engine: Engine) -> None:
    """Bring the tables to this program's version; several processes may do so at once.

    Raises
    ------
    SchemaVersionError
        They are of a version this program does not know.
    """
    with engine.begin() as connection:
        if _needs_upgrade(connection):
            # alembic keeps what it works on in global variables.
            with _ALEMBIC:
                command.upgrade(alembic_config(connection), "head")


def check_version(engine: Engine) -> None:
    """Refuse tables of another version.

    Raises
    ------
    SchemaVersionError
        They are of another.
    """
    with engine.connect() as connection:
        if _needs_upgrade(connection):
            raise SchemaVersionError(
                found_version(connection),
                wanted_version(),
                "Bring them up to date with `make db-upgrade`, or start the service, which does.",
            )


def found_version(connection: Connection) -> str | None:
    """Version of the tables there are; None: there are none."""
    return MigrationContext.configure(connection).get_current_revision()


@functools.cache
def wanted_version() -> str:
    """Version that this program works with."""
    (head,) = _scripts().get_heads()
    return head


def alembic_config(connection: Connection) -> Config:
    """For alembic's commands, on an open connection."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def lock_schema(connection: Connection) -> None:
    """Have other processes wait until this transaction has changed the tables."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def is_in_models(
    _thing: object,
    name: str | None,
    kind: str,
    _reflected: bool,
    _model: object,
) -> bool:
    """Whether alembic is to compare it with the models; what `timescale` adds is not in them."""
    return (kind, name) != ("index", TIME_INDEX)


def _needs_upgrade(connection: Connection) -> bool:
    found, wanted = found_version(connection), wanted_version()
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is not None and found not in known:
        raise SchemaVersionError(
            found,
            wanted,
            "A newer version of this program wrote them: use that one, or have it undo its changes "
            f"with `alembic downgrade {wanted}`.",
        )
    return found != wanted


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_MIGRATIONS))
