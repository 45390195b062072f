"""Sessions as they are asked for: listed, looked at, deleted.

Every function works within the transaction of the session it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from pose_analyzer.errors import UnknownSessionError
from pose_analyzer.storage.models import (
    ExerciseSession,
    FaultRow,
    PoseFrame,
    RepetitionRow,
    SessionKind,
)
from pose_analyzer.storage.pose_rows import RowFilter

_ROUNDED: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions are asked for; None: any."""

    athlete_id: UUID | None = None
    kind: SessionKind | None = None
    exercise: str | None = None
    since: datetime | None = None
    """Began then or later."""
    before: datetime | None = None
    """Began earlier."""


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some of the sessions, latest first."""

    sessions: Sequence[ExerciseSession]
    n_total: int
    """Of all pages."""


@dataclass(frozen=True, slots=True)
class TrackSpan:
    """How long somebody was seen."""

    track_id: int
    n_rows: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class SessionDetail:
    """A session with all but its frames."""

    session: ExerciseSession
    repetitions: Sequence[RepetitionRow]
    faults: dict[int, list[FaultRow]]
    """By `RepetitionRow.repetition_id`."""
    tracks: Sequence[TrackSpan]
    """Everybody, who was seen most often first."""


def list_sessions(
    session: Session, wanted: SessionFilter, limit: int, offset: int = 0
) -> SessionPage:
    """Sessions that began last, first."""
    query = _chosen(wanted)
    n_total = session.scalar(select(func.count()).select_from(query.subquery()))
    page = query.order_by(ExerciseSession.started_at.desc(), ExerciseSession.session_id)
    return SessionPage(session.scalars(page.limit(limit).offset(offset)).all(), n_total or 0)


def get_session(session: Session, session_id: UUID) -> ExerciseSession:
    """Find a session.

    Raises
    ------
    UnknownSessionError
        There is none.
    """
    found = session.get(ExerciseSession, session_id)
    if found is None:
        raise UnknownSessionError(session_id)
    return found


def describe_session(session: Session, session_id: UUID) -> SessionDetail:
    """A session with its repetitions, faults and people; raises as `get_session`."""
    found = get_session(session, session_id)
    repetitions = session.scalars(
        select(RepetitionRow)
        .where(RepetitionRow.session_id == session_id)
        .order_by(RepetitionRow.end_s, RepetitionRow.track_id)
    ).all()
    faults: dict[int, list[FaultRow]] = {}
    query = select(FaultRow).join(RepetitionRow).where(RepetitionRow.session_id == session_id)
    for fault in session.scalars(query.order_by(FaultRow.fault_id)):
        faults.setdefault(fault.repetition_id, []).append(fault)
    tracks = tracks_of_session(session, RowFilter(session_id))
    return SessionDetail(found, repetitions, faults, tracks)


def tracks_of_session(session: Session, wanted: RowFilter) -> list[TrackSpan]:
    """Everybody in these rows; who was seen most often first."""
    n_rows = func.count()
    query = (
        select(PoseFrame.track_id, n_rows, func.min(PoseFrame.time_s), func.max(PoseFrame.time_s))
        .where(*frame_conditions(session, wanted))
        .group_by(PoseFrame.track_id)
        .order_by(n_rows.desc(), PoseFrame.track_id)
    )
    return [TrackSpan(*row) for row in session.execute(query)]


def frame_conditions(session: Session, wanted: RowFilter) -> list[ColumnElement[bool]]:
    """What rows must fulfil, so that an index finds them; raises as `get_session`."""
    began = get_session(session, wanted.session_id).started_at
    conditions = [PoseFrame.session_id == wanted.session_id]
    if wanted.track_id is not None:
        conditions.append(PoseFrame.track_id == wanted.track_id)
    # Rows are found by their time of day, which is rounded.
    if wanted.from_s is not None:
        conditions.append(PoseFrame.time_s >= wanted.from_s)
        conditions.append(PoseFrame.time >= began + timedelta(seconds=wanted.from_s) - _ROUNDED)
    if wanted.to_s is not None:
        conditions.append(PoseFrame.time_s <= wanted.to_s)
        conditions.append(PoseFrame.time <= began + timedelta(seconds=wanted.to_s) + _ROUNDED)
    return conditions


def delete_session_rows(session: Session, session_id: UUID) -> None:
    """Delete a session with everything in the database that belongs to it.

    Raises
    ------
    UnknownSessionError
        There is none.
    """
    # First the session: who is about to add rows to it holds it, and is waited for.
    deleted = session.scalar(
        delete(ExerciseSession)
        .where(ExerciseSession.session_id == session_id)
        .returning(ExerciseSession.session_id)
    )
    if deleted is None:
        raise UnknownSessionError(session_id)
    session.execute(delete(PoseFrame).where(PoseFrame.session_id == session_id))


def _chosen(wanted: SessionFilter) -> Select[ExerciseSession]:
    row = ExerciseSession
    query = select(row)
    if wanted.athlete_id is not None:
        query = query.where(row.athlete_id == wanted.athlete_id)
    if wanted.kind is not None:
        query = query.where(row.kind == wanted.kind)
    if wanted.exercise is not None:
        query = query.where(row.exercise == wanted.exercise)
    if wanted.since is not None:
        query = query.where(row.started_at >= wanted.since)
    if wanted.before is not None:
        query = query.where(row.started_at < wanted.before)
    return query
