"""What a recording shows, kept whole: rows, repetitions, and the session in figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.orm import Session

from pose_analyzer.errors import UnknownSessionError
from pose_analyzer.frame_rows import Rows
from pose_analyzer.session_records import RepetitionRecord
from pose_analyzer.storage.models import ExerciseSession, PoseFrame, RepetitionRow
from pose_analyzer.storage.session_writer import append_rows, insert_repetition, microseconds

_BLOCK_ROWS: Final = 8_192


@dataclass(frozen=True, slots=True)
class StoredAnalysis:
    """A recording, but for its rows."""

    started_at: datetime
    """Time of day of its second 0."""
    ended_at: datetime
    detector: str
    exercise: str | None
    n_frames: int
    score: float | None
    """0..100 over all repetitions."""
    repetitions: Sequence[RepetitionRecord]


def store_session_analysis(
    session: Session, session_id: UUID, analysis: StoredAnalysis, people: Iterable[Rows]
) -> None:
    """Keep an analysis in place of what the session held before; the caller commits.

    So it may be repeated after any failure.

    Raises
    ------
    UnknownSessionError
        There is no such session.
    """
    row = session.get(ExerciseSession, session_id, with_for_update=True)
    if row is None:
        raise UnknownSessionError(session_id)
    started_us = microseconds(analysis.started_at)
    session.execute(delete(PoseFrame).where(PoseFrame.session_id == session_id))
    session.execute(delete(RepetitionRow).where(RepetitionRow.session_id == session_id))
    for rows in people:
        blocks = (rows[at : at + _BLOCK_ROWS] for at in range(0, len(rows), _BLOCK_ROWS))
        append_rows(session, session_id, started_us, blocks)
    for repetition in analysis.repetitions:
        insert_repetition(session, session_id, started_us, repetition)
    row.started_at = analysis.started_at
    row.ended_at = analysis.ended_at
    row.detector = analysis.detector
    row.exercise = analysis.exercise
    row.n_frames = analysis.n_frames
    row.n_repetitions = len(analysis.repetitions)
    row.score = analysis.score
