"""Routes about athletes: who they are, how they develop, and forgetting them."""

from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from pose_analyzer.api.athlete_schemas import (
    AthleteInfo,
    AthleteList,
    NewAthlete,
    Trends,
    WeekInfo,
)
from pose_analyzer.api.dependencies import ArtifactsDep, DatabaseDep, ExercisesDep
from pose_analyzer.api.session_schemas import ExerciseName
from pose_analyzer.session_deletion import delete_athlete
from pose_analyzer.storage.athletes import (
    add_athlete,
    get_athlete,
    list_athletes,
    rename_athlete,
)
from pose_analyzer.storage.trends import read_trends
from shared_utils.problems import documented_problems

_MAX_PAGE: Final = 1000
_MAX_OFFSET: Final = 2**31 - 1
_LISTED: Final = documented_problems(
    HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_NAMED: Final = documented_problems(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)

router = APIRouter(tags=["athletes"])


@router.get("/athletes", responses=_LISTED)
async def list_all(
    database: DatabaseDep,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
) -> AthleteList:
    """Athletes by name."""

    def read() -> AthleteList:
        with database.session() as session:
            page = list_athletes(session, limit, offset)
            return AthleteList(
                athletes=[AthleteInfo.of(athlete, n) for athlete, n in page.athletes],
                n_total=page.n_total,
            )

    return await to_thread.run_sync(read)


@router.post("/athletes", status_code=HTTPStatus.CREATED, responses=_LISTED)
async def enter_athlete(body: NewAthlete, database: DatabaseDep) -> AthleteInfo:
    """Enter an athlete."""

    def write() -> AthleteInfo:
        with database.session() as session:
            return AthleteInfo.of(add_athlete(session, body.name), 0)

    return await to_thread.run_sync(write)


@router.get("/athletes/{athlete_id}", responses=_NAMED)
async def show_athlete(athlete_id: UUID, database: DatabaseDep) -> AthleteInfo:
    """One athlete."""

    def read() -> AthleteInfo:
        with database.session() as session:
            return AthleteInfo.of(*get_athlete(session, athlete_id))

    return await to_thread.run_sync(read)


@router.patch("/athletes/{athlete_id}", responses=_NAMED)
async def change_athlete(athlete_id: UUID, body: NewAthlete, database: DatabaseDep) -> AthleteInfo:
    """Give an athlete another name."""

    def write() -> AthleteInfo:
        with database.session() as session:
            return AthleteInfo.of(*rename_athlete(session, athlete_id, body.name))

    return await to_thread.run_sync(write)


@router.delete("/athletes/{athlete_id}", status_code=HTTPStatus.NO_CONTENT, responses=_NAMED)
async def forget_athlete(athlete_id: UUID, database: DatabaseDep, artifacts: ArtifactsDep) -> None:
    """Delete an athlete with all their sessions, references and files."""
    await to_thread.run_sync(delete_athlete, database, artifacts, athlete_id)


@router.get("/athletes/{athlete_id}/trends", responses=_NAMED)
async def show_trends(
    athlete_id: UUID,
    database: DatabaseDep,
    exercises: ExercisesDep,
    since: Annotated[AwareDatetime | None, Query(description="From then on.")] = None,
    exercise: ExerciseName | None = None,
) -> Trends:
    """Score, range of motion, asymmetry and repetitions by week and exercise."""

    def read() -> Trends:
        with database.session() as session:
            weeks = read_trends(session, athlete_id, since, exercise)
        return Trends(
            athlete_id=athlete_id,
            weeks=[WeekInfo.of(week, exercises.get(week.exercise)) for week in weeks],
        )

    return await to_thread.run_sync(read)
