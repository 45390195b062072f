"""Tables made by the migrations are those of the models, and they can be undone step by step."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL

from pose_analyzer.errors import SchemaVersionError
from pose_analyzer.storage import schema
from pose_analyzer.storage.models import Base
from pose_analyzer.storage.timescale import TIME_INDEX

SECRET = "s3cret"  # noqa: S105
CHECKOUT = Path(__file__).resolve().parents[3]

# Everything about a schema that its tables' use can depend on.
CATALOGUE = """
SELECT format('%s.%s %s %s %s %s', table_name, column_name, udt_name, is_nullable, column_default,
              is_identity)
FROM information_schema.columns WHERE table_schema = 'public' AND table_name = ANY(:tables)
UNION ALL
SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid::regclass::text = ANY(:tables)
UNION ALL
SELECT indexdef FROM pg_indexes WHERE tablename = ANY(:tables) AND indexname <> :added
ORDER BY 1
"""


@pytest.fixture
def empty(database_server):
    """URL of a database without tables."""
    url = database_server.new_database(template="template0")
    yield url
    database_server.drop(url)


@pytest.fixture
def engine(empty):
    engine = create_engine(empty)
    yield engine
    engine.dispose()


def from_command_line(url: URL) -> subprocess.Popen[str]:
    database_url = url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=CHECKOUT,
        env=os.environ | {"DATABASE_URL": database_url},
        stderr=subprocess.PIPE,
        text=True,
    )


def relations(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(
            connection.scalars(
                text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            )
        )


def catalogue(engine: Engine) -> list[str]:
    names = sorted(Base.metadata.tables)
    with engine.connect() as connection:
        found = connection.scalars(text(CATALOGUE), {"tables": names, "added": TIME_INDEX})
        return list(found)


def test_migrations_make_what_the_models_say(engine, database_server):
    schema.bring_up_to_date(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_object": schema.is_in_models,
            },
        )
        assert compare_metadata(context, Base.metadata) == []
    other = create_engine(database_server.new_database(template="template0"))
    Base.metadata.create_all(other)
    assert catalogue(engine) == catalogue(other)
    other.dispose()
    database_server.drop(other.url)


def test_every_step_can_be_undone_and_done_again(engine):
    def run(step: Callable[[Config, str], None], revision: str) -> set[str]:
        with engine.begin() as connection:
            step(schema.alembic_config(connection), revision)
        return {name for name in relations(engine) if not name.startswith("alembic_version")}

    complete = run(command.upgrade, "head")
    assert set(Base.metadata.tables) <= complete
    without_jobs = run(command.downgrade, "-1")
    assert {"sessions", "pose_frames", "pose_frame_minutes"} <= without_jobs
    assert not any(name.startswith("video") for name in without_jobs)
    assert run(command.upgrade, "head") == complete
    assert run(command.downgrade, "base") == set()
    assert run(command.upgrade, "head") == complete


def test_several_processes_may_bring_it_up_to_date_at_once(empty, engine):
    processes = [from_command_line(empty) for _ in range(2)]
    for process in processes:
        assert process.communicate() == (None, ""), "alembic upgrade head"
        assert process.returncode == 0
    schema.check_version(engine)


def test_tables_of_a_newer_program_are_left_alone(engine):
    schema.bring_up_to_date(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for check in (schema.bring_up_to_date, schema.check_version):
        with pytest.raises(SchemaVersionError, match="alembic downgrade 0002"):
            check(engine)


def test_missing_tables_are_said_to_be_missing(engine):
    with pytest.raises(SchemaVersionError, match=r"version none.*make db-upgrade"):
        schema.check_version(engine)


def test_a_wrong_address_ends_alembic_with_one_line():
    process = from_command_line(URL.create("mysql", username="me", password=SECRET, host="here"))
    _, said = process.communicate()
    assert process.returncode != 0
    assert said.startswith("Error: DATABASE_URL is wrong: it begins with mysql://")
    assert SECRET not in said
