"""The table of frames, plain and as TimescaleDB has it.

These tests run without TimescaleDB, whose statements are checked for what PostgreSQL itself can
tell: that they parse, that its functions are called as they are documented, and that the query
behind the continuous aggregate gives the plain view's rows.
"""

import math
import re
import tempfile
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from pose_analyzer.skeletons import ANGLE_NAMES
from pose_analyzer.storage.models import PoseFrame
from pose_analyzer.storage.timescale import (
    FRAMES,
    MINUTES,
    TIME_INDEX,
    TimeSeriesSupport,
    installed_support,
    minutes_query,
    preparation,
    prepare_frames,
    release_frames,
)

# Parameters as in TimescaleDB's ddl_api.sql.
STAND_IN = """
CREATE TABLE hypertables (main_table text, time_column text, step interval, indexes boolean);
CREATE FUNCTION create_hypertable(
    main_table regclass, time_column_name name, chunk_time_interval anyelement = NULL::bigint,
    create_default_indexes boolean = true
) RETURNS void LANGUAGE sql AS
$$ INSERT INTO hypertables VALUES ($1::text, $2::text, $3::text::interval, $4) $$;
"""

BEGIN = datetime(2030, 1, 1, 12, 0, 30, tzinfo=UTC)
MINUTES_IN_ORDER = f"SELECT * FROM {MINUTES} ORDER BY minute"  # noqa: S608
SESSION = uuid.uuid4()


def frame(number: int, time_s: float, knee_deg: float) -> PoseFrame:
    angles = [math.nan] * len(ANGLE_NAMES)
    angles[ANGLE_NAMES.index("left_knee")] = knee_deg
    return PoseFrame(
        time=BEGIN + timedelta(seconds=time_s),
        session_id=SESSION,
        track_id=1,
        frame_index=number,
        time_s=time_s,
        keypoints=[0.0] * 51,
        confidence=0.5,
        angles=angles,
        n_repetitions=number,
        score=80.0,
    )


@pytest.fixture
def filled(database):
    with database.session() as session:
        for number, (time_s, knee_deg) in enumerate(
            [(0.0, 100.0), (10.0, math.nan), (29.0, 120.0), (30.0, 90.0)]
        ):
            session.add(frame(number, time_s, knee_deg))
    return database


def test_minutes_leave_out_what_is_not_known(filled):
    with filled.session() as session:
        first, second = session.execute(text(MINUTES_IN_ORDER))
    assert (first.n_frames, second.n_frames) == (3, 1)
    assert (first.left_knee_deg, second.left_knee_deg) == (110.0, 90.0)
    assert first.right_knee_deg is None
    assert (first.n_repetitions, second.n_repetitions) == (2, 3)
    assert first.score == 80.0
    assert second.minute == BEGIN + timedelta(seconds=30)
    assert {f"{name}_deg" for name in ANGLE_NAMES} <= set(first._fields)


def test_plain_server_gets_an_index_of_block_ranges(database):
    assert not database.has_timescaledb
    with database.session() as session:
        definition = session.scalar(
            text("SELECT indexdef FROM pg_indexes WHERE indexname = :name"), {"name": TIME_INDEX}
        )
    assert "USING brin" in definition


def test_frames_can_be_released_and_prepared_again(database):
    with database.session() as session:
        release_frames(session.connection())
        session.execute(text(f"DROP INDEX {TIME_INDEX}"))
        assert prepare_frames(session.connection()) is TimeSeriesSupport.PLAIN


def test_aggregate_gives_what_the_view_gives(filled):
    with filled.session() as session:
        # time_bucket as TimescaleDB defines it for intervals shorter than a month.
        session.execute(
            text(
                "CREATE FUNCTION time_bucket(interval, timestamptz) RETURNS timestamptz "
                "LANGUAGE sql IMMUTABLE AS "
                "$$ SELECT date_bin($1, $2, TIMESTAMPTZ '2000-01-03 00:00:00Z') $$"
            )
        )
        (aggregate,) = [
            statement
            for statement in preparation(TimeSeriesSupport.FULL)
            if statement.startswith("CREATE MATERIALIZED VIEW")
        ]
        query = aggregate.partition(" AS ")[2].removesuffix(" WITH NO DATA")
        assert query == minutes_query("time_bucket(INTERVAL '1 minute', time)")
        stored = session.execute(text(f"{query} ORDER BY minute")).all()
        viewed = session.execute(text(MINUTES_IN_ORDER)).all()
    assert stored == viewed


@pytest.mark.parametrize("support", TimeSeriesSupport)
def test_statements_parse(database, support):
    with database.session() as session:
        for number, statement in enumerate(preparation(support)):
            # What a function does is parsed when it is made, but looked up when it is called.
            done = re.sub("^SELECT", "PERFORM", statement)
            session.execute(
                text(
                    f"CREATE FUNCTION parsed_{number}() RETURNS void LANGUAGE plpgsql AS "
                    f"$body$ BEGIN {done}; END $body$"
                )
            )


def test_full_support_has_every_part():
    statements = " ".join(preparation(TimeSeriesSupport.FULL))
    for part in (
        f"create_hypertable('{FRAMES}', 'time'",
        "timescaledb.compress_segmentby = 'session_id'",
        "add_compression_policy",
        "add_retention_policy",
        "timescaledb.continuous",
        "add_continuous_aggregate_policy",
    ):
        assert part in statements
    apache = " ".join(preparation(TimeSeriesSupport.HYPERTABLE))
    assert "create_hypertable" in apache
    assert "compress" not in apache
    assert f"CREATE VIEW {MINUTES}" in apache


@pytest.fixture
def stand_in():
    """Folder of an extension that has the name and one of the functions of TimescaleDB."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        files = Path(folder) / "extension"
        files.mkdir(mode=0o755)
        (files / "timescaledb.control").write_text("default_version = '1'\n")
        (files / "timescaledb--1.sql").write_text(STAND_IN)
        yield folder


def test_licence_decides_what_an_installed_extension_is_used_for(database, stand_in):
    with database.session() as session:
        connection = session.connection()
        session.execute(text(f"SET extension_control_path = '{stand_in}'"))
        session.execute(text("CREATE EXTENSION timescaledb"))
        assert installed_support(connection) is TimeSeriesSupport.FULL
        release_frames(connection)
        session.execute(text("SET timescaledb.license = 'apache'"))
        assert prepare_frames(connection) is TimeSeriesSupport.HYPERTABLE
        (made,) = session.execute(text("SELECT * FROM hypertables")).all()
        assert made == (FRAMES, "time", timedelta(days=1), False)
    assert database.has_timescaledb


def test_an_extension_whose_library_is_not_loaded_is_not_touched(database, stand_in):
    with database.session() as session:
        session.execute(text(f"SET extension_control_path = '{stand_in}'"))
        assert session.scalar(
            text("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'")
        )
        assert installed_support(session.connection()) is TimeSeriesSupport.PLAIN
    assert not database.has_timescaledb
