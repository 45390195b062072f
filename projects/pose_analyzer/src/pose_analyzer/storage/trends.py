"""How an athlete's repetitions change from week to week."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from pose_analyzer.storage.athletes import get_athlete


@dataclass(frozen=True, slots=True)
class MeanOf:
    """A mean, and of how many repetitions it is."""

    mean: float
    n_repetitions: int


@dataclass(frozen=True, slots=True)
class WeekOfExercise:
    """What an athlete did of one exercise in one week."""

    week: datetime
    """Its Monday, 00:00 UTC."""
    exercise: str
    n_sessions: int
    n_repetitions: int
    score: MeanOf | None
    """0..100; None if no repetition could be scored."""
    range_deg: dict[str, MeanOf]
    """Range of motion within a repetition, by angle, where it was trusted."""
    asymmetry_deg: dict[str, MeanOf]
    """How far the ranges of left and right lie apart, by joint, where both were trusted."""


_CHOSEN: Final = """
WITH chosen AS (
    SELECT repetition_id, session_id, repetitions.exercise, repetitions.score, ranges,
           date_trunc('week', repetitions.time, 'UTC') AS week
    FROM repetitions JOIN sessions USING (session_id)
    WHERE athlete_id = :athlete
      AND (cast(:since AS timestamptz) IS NULL OR repetitions.time >= :since)
      AND (cast(:exercise AS text) IS NULL OR repetitions.exercise = :exercise)
), of_angles AS (
    SELECT repetition_id, week, exercise, angle, max_deg - min_deg AS range_deg
    FROM chosen, jsonb_to_recordset(ranges)
        AS found(angle text, min_deg float8, max_deg float8, trusted boolean)
    WHERE trusted
)
"""


def _of_chosen(query: str) -> TextClause:
    return text(_CHOSEN + query)


_WEEKS: Final = _of_chosen(
    """
    SELECT week, exercise, count(DISTINCT session_id), count(*), avg(score), count(score)
    FROM chosen GROUP BY week, exercise ORDER BY week, exercise
    """
)
_RANGES: Final = _of_chosen(
    """
    SELECT week, exercise, angle, avg(range_deg), count(*)
    FROM of_angles GROUP BY week, exercise, angle ORDER BY angle
    """
)
_ASYMMETRIES: Final = _of_chosen(
    """
    SELECT week, exercise, joint, avg(abs(left_deg - right_deg)), count(*)
    FROM (
        SELECT week, exercise, regexp_replace(angle, '^(left|right)_', '') AS joint,
               max(range_deg) FILTER (WHERE starts_with(angle, 'left_')) AS left_deg,
               max(range_deg) FILTER (WHERE starts_with(angle, 'right_')) AS right_deg
        FROM of_angles GROUP BY repetition_id, week, exercise, joint
    ) AS sides
    WHERE left_deg IS NOT NULL AND right_deg IS NOT NULL
    GROUP BY week, exercise, joint ORDER BY joint
    """
)


def read_trends(
    session: Session, athlete_id: UUID, since: datetime | None = None, exercise: str | None = None
) -> list[WeekOfExercise]:
    """Each week and exercise in which there were repetitions, in order of time.

    Everybody the athlete's sessions saw is taken for the athlete.

    Raises
    ------
    UnknownAthleteError
        There is no such athlete.
    """
    get_athlete(session, athlete_id)
    asked = {"athlete": athlete_id, "since": since, "exercise": exercise}
    ranges = _by_week(session.execute(_RANGES, asked))
    asymmetries = _by_week(session.execute(_ASYMMETRIES, asked))
    return [
        WeekOfExercise(
            week=week,
            exercise=name,
            n_sessions=n_sessions,
            n_repetitions=n_repetitions,
            score=MeanOf(score, n_scored) if n_scored else None,
            range_deg=ranges[week, name],
            asymmetry_deg=asymmetries[week, name],
        )
        for week, name, n_sessions, n_repetitions, score, n_scored in session.execute(_WEEKS, asked)
    ]


def _by_week(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[datetime, str], dict[str, MeanOf]]:
    found: dict[tuple[datetime, str], dict[str, MeanOf]] = defaultdict(dict)
    for week, exercise, what, mean, n_repetitions in rows:
        found[week, exercise][what] = MeanOf(mean, n_repetitions)
    return found
