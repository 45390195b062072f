"""What the routes about athletes take and answer."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints

from pose_analyzer.api.schemas import Answer
from pose_analyzer.exercises import Exercise
from pose_analyzer.storage.models import Athlete
from pose_analyzer.storage.trends import MeanOf, WeekOfExercise

# Printable, so that nobody's name breaks a table or a log.
Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"
    ),
]


class NewAthlete(BaseModel):
    """Body of ``POST /athletes`` and ``PATCH /athletes/{athlete_id}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name


class AthleteInfo(Answer):
    """Somebody whose sessions belong together."""

    athlete_id: UUID
    name: str
    created_at: datetime
    n_sessions: int

    @classmethod
    def of(cls, athlete: Athlete, n_sessions: int) -> "AthleteInfo":
        """Put a row into words."""
        return cls(
            athlete_id=athlete.athlete_id,
            name=athlete.name,
            created_at=athlete.created_at,
            n_sessions=n_sessions,
        )


class AthleteList(Answer):
    """Answer of ``GET /athletes``."""

    athletes: list[AthleteInfo]
    """By name."""
    n_total: int
    """Of all pages."""


class Mean(Answer):
    """A mean, and of how many repetitions it is."""

    mean: float
    n_repetitions: int

    @classmethod
    def of(cls, found: MeanOf) -> "Mean":
        """Copy."""
        return cls(mean=found.mean, n_repetitions=found.n_repetitions)


class WeekInfo(Answer):
    """What an athlete did of one exercise in one week."""

    week: datetime
    """Its Monday, 00:00 UTC."""
    exercise: str
    n_sessions: int
    n_repetitions: int
    score: Mean | None
    """0..100; null if no repetition could be scored."""
    range_deg: dict[str, Mean]
    """Range of motion of the exercise's main angles, where they were trusted."""
    asymmetry_deg: dict[str, Mean]
    """How far the ranges of left and right lie apart, by joint, where both were trusted."""

    @classmethod
    def of(cls, found: WeekOfExercise, exercise: Exercise | None) -> "WeekInfo":
        """Leave out angles that nobody looks at in this exercise; none of an unknown one."""
        main = None if exercise is None else exercise.main_angles
        return cls(
            week=found.week,
            exercise=found.exercise,
            n_sessions=found.n_sessions,
            n_repetitions=found.n_repetitions,
            score=None if found.score is None else Mean.of(found.score),
            range_deg={
                angle: Mean.of(mean)
                for angle, mean in found.range_deg.items()
                if main is None or angle.removeprefix("left_").removeprefix("right_") in main
            },
            asymmetry_deg={
                joint: Mean.of(mean)
                for joint, mean in found.asymmetry_deg.items()
                if main is None or joint in main
            },
        )


class Trends(Answer):
    """Answer of ``GET /athletes/{athlete_id}/trends``."""

    athlete_id: UUID
    weeks: list[WeekInfo]
    """In order of time; weeks without repetitions are left out."""
