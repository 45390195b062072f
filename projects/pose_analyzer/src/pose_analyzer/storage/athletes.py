"""Athletes: entered, renamed, listed, deleted.

Every function works within the transaction of the session it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from pose_analyzer.errors import UnknownAthleteError
from pose_analyzer.storage.models import Athlete, ExerciseSession, PoseFrame


@dataclass(frozen=True, slots=True)
class AthletePage:
    """Some of the athletes, by name."""

    athletes: Sequence[tuple[Athlete, int]]
    """Each with the number of their sessions."""
    n_total: int
    """Of all pages."""


def add_athlete(session: Session, name: str) -> Athlete:
    """Enter somebody; two may have the same name."""
    athlete = Athlete(name=name)
    session.add(athlete)
    session.flush()
    session.refresh(athlete)
    return athlete


def list_athletes(session: Session, limit: int, offset: int = 0) -> AthletePage:
    """Athletes in the order of their names."""
    n_sessions = func.count(ExerciseSession.session_id)
    query = (
        select(Athlete, n_sessions)
        .outerjoin(ExerciseSession, ExerciseSession.athlete_id == Athlete.athlete_id)
        .group_by(Athlete.athlete_id)
        .order_by(Athlete.name, Athlete.athlete_id)
    )
    page = session.execute(query.limit(limit).offset(offset))
    n_total = session.scalar(select(func.count()).select_from(Athlete))
    return AthletePage([(athlete, n) for athlete, n in page], n_total or 0)


def get_athlete(session: Session, athlete_id: UUID) -> tuple[Athlete, int]:
    """One athlete, and the number of their sessions.

    Raises
    ------
    UnknownAthleteError
        There is none.
    """
    found = session.get(Athlete, athlete_id)
    if found is None:
        raise UnknownAthleteError(athlete_id)
    return found, len(session_ids_of(session, athlete_id))


def rename_athlete(session: Session, athlete_id: UUID, name: str) -> tuple[Athlete, int]:
    """Give somebody another name; raises as `get_athlete`."""
    found = get_athlete(session, athlete_id)
    found[0].name = name
    return found


def session_ids_of(session: Session, athlete_id: UUID) -> Sequence[UUID]:
    """Sessions of an athlete."""
    return session.scalars(
        select(ExerciseSession.session_id).where(ExerciseSession.athlete_id == athlete_id)
    ).all()


def delete_athlete_rows(session: Session, athlete_id: UUID) -> Sequence[UUID]:
    """Delete an athlete, and everything in the database that belongs to their sessions.

    Returns
    -------
    sequence of UUID
        The sessions that were deleted.

    Raises
    ------
    UnknownAthleteError
        There is none.
    """
    # No session can be added while the athlete is held.
    found = session.get(Athlete, athlete_id, with_for_update=True)
    if found is None:
        raise UnknownAthleteError(athlete_id)
    sessions = session_ids_of(session, athlete_id)
    session.execute(delete(Athlete).where(Athlete.athlete_id == athlete_id))
    session.execute(delete(PoseFrame).where(PoseFrame.session_id.in_(sessions)))
    return sessions
