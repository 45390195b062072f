"""What the table of frames has beyond its columns: TimescaleDB's partitions, or an index.

The only place that knows the difference. Whichever it is, `pose_frame_minutes` answers the same
question with the same columns: each person's minute in figures.
"""

from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

FRAMES: Final = "pose_frames"
MINUTES: Final = "pose_frame_minutes"
TIME_INDEX: Final = "ix_pose_frames_time_brin"

# In the order of the column `angles`. Written out: a migration is not to change with the code.
_ANGLES: Final = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "trunk_inclination",
    "neck_inclination",
)

_TIMESCALE_MINUTE: Final = "time_bucket(INTERVAL '1 minute', time)"
_PLAIN_MINUTE: Final = "date_bin(INTERVAL '1 minute', time, TIMESTAMPTZ '2000-01-01 00:00:00Z')"


class TimeSeriesSupport(StrEnum):
    """What the server offers for tables that grow with time."""

    PLAIN = "plain"
    HYPERTABLE = "hypertable"
    """TimescaleDB under its Apache licence: partitions only."""
    FULL = "full"
    """TimescaleDB with compression, retention and continuous aggregates."""


def installed_support(connection: Connection) -> TimeSeriesSupport:
    """See what the server offers; install the extension where that is possible."""
    if not _is_installed(connection) and _is_loaded(connection):
        try:
            with connection.begin_nested():
                connection.execute(text("CREATE EXTENSION timescaledb"))
        except DBAPIError:
            # This role may not; scripts/setup_databases.sh does it as the server's administrator.
            return TimeSeriesSupport.PLAIN
    if not _is_installed(connection):
        return TimeSeriesSupport.PLAIN
    licence = connection.scalar(text("SELECT current_setting('timescaledb.license', true)"))
    return TimeSeriesSupport.HYPERTABLE if licence == "apache" else TimeSeriesSupport.FULL


def prepare_frames(connection: Connection) -> TimeSeriesSupport:
    """Prepare the empty table of frames as well as this server can; tells what that is."""
    support = installed_support(connection)
    for statement in preparation(support):
        connection.execute(text(statement))
    return support


def release_frames(connection: Connection) -> None:
    """Remove what the table of frames could not be dropped with."""
    is_aggregate = connection.scalar(
        text("SELECT to_regclass('timescaledb_information.continuous_aggregates') IS NOT NULL")
    ) and connection.scalar(
        text(
            "SELECT EXISTS (SELECT 1 FROM timescaledb_information.continuous_aggregates "
            "WHERE view_name = :name)"
        ),
        {"name": MINUTES},
    )
    connection.execute(text(f"DROP {'MATERIALIZED VIEW' if is_aggregate else 'VIEW'} {MINUTES}"))


def preparation(support: TimeSeriesSupport) -> tuple[str, ...]:
    """Statements that prepare an empty table of frames, in order."""
    if support is TimeSeriesSupport.PLAIN:
        # Rows come in the order of time, for which a block range index is a thousandth as large.
        index = f"CREATE INDEX {TIME_INDEX} ON {FRAMES} USING brin (time)"
        return (index, _plain_minutes())
    # An index on time alone would only cost: every question names a session, and partitions are
    # by time already.
    hypertable = (
        f"SELECT create_hypertable('{FRAMES}', 'time', "
        "chunk_time_interval => INTERVAL '1 day', create_default_indexes => false)"
    )
    if support is TimeSeriesSupport.HYPERTABLE:
        return (hypertable, _plain_minutes())
    return (
        hypertable,
        f"ALTER TABLE {FRAMES} SET (timescaledb.compress, "
        "timescaledb.compress_segmentby = 'session_id', timescaledb.compress_orderby = 'time')",
        f"SELECT add_compression_policy('{FRAMES}', INTERVAL '7 days')",
        f"SELECT add_retention_policy('{FRAMES}', INTERVAL '730 days')",
        # Without data, since with them it could not be made within a transaction; the minutes not
        # yet stored are computed when they are asked for.
        f"CREATE MATERIALIZED VIEW {MINUTES} "
        "WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS "
        f"{minutes_query(_TIMESCALE_MINUTE)} WITH NO DATA",
        # It forgets nothing when frames are dropped: what is refreshed ends before they are.
        f"SELECT add_continuous_aggregate_policy('{MINUTES}', "
        "start_offset => INTERVAL '700 days', end_offset => INTERVAL '1 minute', "
        "schedule_interval => INTERVAL '1 minute')",
    )


def minutes_query(bucket: str) -> str:
    """Every person's minutes; NaN, which stands for an unknown angle, counts in no mean.

    Parameters
    ----------
    bucket
        Expression of the minute a row's `time` is in.
    """
    means = ", ".join(
        f"avg(NULLIF(angles[{number}], 'NaN'::real)) AS {name}_deg"
        for number, name in enumerate(_ANGLES, 1)
    )
    return (
        f"SELECT session_id, track_id, {bucket} AS minute, count(*) AS n_frames, "  # noqa: S608
        "avg(confidence) AS confidence, avg(score) AS score, max(n_repetitions) AS n_repetitions, "
        f"{means} FROM {FRAMES} GROUP BY session_id, track_id, minute"
    )


def _plain_minutes() -> str:
    return f"CREATE VIEW {MINUTES} AS {minutes_query(_PLAIN_MINUTE)}"


def _is_installed(connection: Connection) -> bool:
    found = connection.execute(text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"))
    return found.first() is not None


def _is_loaded(connection: Connection) -> bool:
    """Whether the extension is there and its library loaded; without, installing it would fail.

    False also for roles that may not read that setting.
    """
    found = connection.execute(
        text(
            "SELECT 1 FROM pg_available_extensions, pg_settings WHERE "
            "pg_available_extensions.name = 'timescaledb' AND "
            "pg_settings.name = 'shared_preload_libraries' AND setting LIKE '%timescaledb%'"
        )
    )
    return found.first() is not None
