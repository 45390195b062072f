"""Courses of a session in buckets of time: mean, least and largest of each signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64
from sqlalchemy import ColumnElement, Integer, cast, func, literal, select
from sqlalchemy.orm import Session

from pose_analyzer.errors import TooMuchAskedError
from pose_analyzer.skeletons import ANGLE_INDEX, ANGLE_NAMES
from pose_analyzer.storage.models import PoseFrame
from pose_analyzer.storage.pose_rows import RowFilter
from pose_analyzer.storage.sessions import frame_conditions

SIGNALS: Final = ("score", "progress", "confidence", *ANGLE_NAMES)
"""What can be asked for; angles in degrees, where they are known and trusted."""
MAX_BUCKETS: Final = 20_000
"""Of all people together."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one signal; NaN in buckets where it is never known."""

    mean: Float[np.ndarray, "buckets"]
    least: Float[np.ndarray, "buckets"]
    largest: Float[np.ndarray, "buckets"]


@dataclass(frozen=True, slots=True)
class Course:
    """One person's, from the first to the last bucket in which they were seen."""

    track_id: int
    first_bucket: int
    """Bucket `n` begins `n` bucket lengths after the session."""
    n_frames: Int64[np.ndarray, "buckets"]
    """In which the person was followed; 0 in a gap."""
    signals: Mapping[str, Statistics]


def read_courses(
    session: Session, wanted: RowFilter, bucket_s: int, signals: Sequence[str]
) -> list[Course]:
    """Courses of each person of a session, or of the one who is wanted.

    Parameters
    ----------
    session
        Where to read.
    wanted
        Session, person, stretch of time.
    bucket_s
        Length of a bucket.
    signals
        Of `SIGNALS`.

    Raises
    ------
    UnknownSessionError
        There is no such session.
    TooMuchAskedError
        There are too many buckets.
    """
    # Computed once for all three statistics: without the offset the server would do so for each.
    rows = (
        select(
            PoseFrame.track_id,
            cast(func.floor(PoseFrame.time_s / bucket_s), Integer).label("bucket"),
            *(_value(signal).label(signal) for signal in signals),
        )
        .where(*frame_conditions(session, wanted))
        .offset(0)
        .subquery()
    )
    figures = [
        statistic(rows.c[signal])
        for signal in signals
        for statistic in (func.avg, func.min, func.max)
    ]
    query = (
        select(rows.c.track_id, rows.c.bucket, func.count(), *figures)
        .group_by(rows.c.track_id, rows.c.bucket)
        .order_by(rows.c.track_id, rows.c.bucket)
        .limit(MAX_BUCKETS + 1)
    )
    found = session.execute(query).all()
    by_person = [
        [tuple(row) for row in group] for _, group in groupby(found, key=lambda row: row[0])
    ]
    n_buckets = sum(rows[-1][1] - rows[0][1] + 1 for rows in by_person)
    if n_buckets > MAX_BUCKETS:
        raise TooMuchAskedError(
            "buckets", MAX_BUCKETS, "Ask for longer buckets, one track, or from_s and to_s."
        )
    return [_course(rows, signals) for rows in by_person]


def _value(signal: str) -> ColumnElement[Any]:
    if signal not in ANGLE_INDEX:
        column: ColumnElement[Any] = PoseFrame.__table__.c[signal]
        return column
    # The server counts from 1. To it NaN is a number, larger than all others.
    angles = PoseFrame.__table__.c.angles
    return func.nullif(angles[ANGLE_INDEX[signal] + 1], literal(float("nan")))


def _course(rows: Sequence[Sequence[Any]], signals: Sequence[str]) -> Course:
    """One person's, with the gaps filled in."""
    first = rows[0][1]
    at = np.array([row[1] - first for row in rows])
    n_frames = np.zeros(at[-1] + 1, dtype=np.int64)
    n_frames[at] = [row[2] for row in rows]
    values = np.full((len(n_frames), 3 * len(signals)), np.nan)
    values[at] = np.array([row[3:] for row in rows], dtype=np.float64).reshape(len(rows), -1)
    return Course(
        track_id=rows[0][0],
        first_bucket=first,
        n_frames=n_frames,
        signals={
            signal: Statistics(*values[:, 3 * n : 3 * n + 3].T) for n, signal in enumerate(signals)
        },
    )
