"""Records of sessions into their tables: one batch, one transaction, and never twice.

A batch that had to be tried again may have been written after all, if the connection broke while
its commit was on the way. Every batch therefore holds a lock of the database's until its
transaction has ended, whichever way; who tries it again waits for that lock and then looks for one
of its rows. There is one if and only if all of them are there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy as np
from sqlalchemy import delete, func, insert, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or_ignore
from sqlalchemy.orm import Session

from pose_analyzer.frame_rows import Rows, unpack_rows
from pose_analyzer.session_records import (
    FrameBlock,
    RepetitionDone,
    RepetitionRecord,
    SessionBegan,
    SessionClosed,
    SessionOpened,
    SessionRecord,
)
from pose_analyzer.storage.models import (
    Athlete,
    ExerciseSession,
    FaultRow,
    PoseFrame,
    RepetitionRow,
    SessionKind,
)
from pose_analyzer.storage.pose_rows import copy_rows, driver_connection, encode_rows

_LOCKS: Final = 0x706F7365
"""Class of the advisory locks that batches hold."""
_US_PER_S: Final = 1_000_000
_UNIX: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    n_rows: int
    n_orphaned: int
    """Rows of sessions that are not there, because somebody deleted them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """All rows of one session in a batch."""

    session_id: UUID
    started_us: int
    rows: Rows


def write_records(
    session: Session, records: Sequence[SessionRecord], *, again: bool = False
) -> Written:
    """Write a batch of records; the caller commits.

    Parameters
    ----------
    session
        At the beginning of a transaction.
    records
        Those of one session in order.
    again
        Whether these records, exactly, have been tried before.
    """
    for record in records:
        if isinstance(record, SessionOpened):
            _open(session, record)
        elif isinstance(record, SessionBegan):
            _begin(session, record)
    blocks = list(_blocks(records))
    written = Written(0, 0)
    if blocks:
        session.execute(select(func.pg_advisory_xact_lock(_LOCKS, _lock_of(blocks[0]))))
        if again and _any_is_there(session, blocks):
            written = Written(sum(len(block.rows) for block in blocks), 0)
        else:
            written = _append(session, blocks)
    for record in records:
        if isinstance(record, RepetitionDone):
            _add_repetition(session, record)
        elif isinstance(record, SessionClosed):
            _close(session, record)
    return written


def append_rows(session: Session, session_id: UUID, started_us: int, blocks: Iterable[Rows]) -> int:
    """Append rows of one session as they come; how many."""
    n_rows = 0
    for rows in blocks:
        copy_rows(driver_connection(session), [encode_rows(session_id, started_us, rows)])
        n_rows += len(rows)
    return n_rows


def insert_repetition(
    session: Session, session_id: UUID, started_us: int, repetition: RepetitionRecord
) -> bool:
    """Add a repetition with its faults; False if it is there already."""
    row = msgspec.structs.asdict(repetition)
    del row["count"], row["faults"]
    row["ranges"] = msgspec.to_builtins(repetition.ranges)
    row["session_id"] = session_id
    row["time"] = _time(started_us, repetition.end_s)
    added = session.scalar(
        insert_or_ignore(RepetitionRow)
        .values(**row)
        .on_conflict_do_nothing(index_elements=["session_id", "track_id", "exercise", "number"])
        .returning(RepetitionRow.repetition_id)
    )
    if added is not None and repetition.faults:
        session.execute(
            insert(FaultRow),
            [
                {"repetition_id": added, **msgspec.structs.asdict(fault)}
                for fault in repetition.faults
            ],
        )
    return added is not None


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - _UNIX) // timedelta(microseconds=1)


def _time(started_us: int, time_s: float) -> datetime:
    """Time of day of a moment of a session; rounded as `pose_rows.encode_rows` does."""
    elapsed_us = int(np.rint(time_s * _US_PER_S))
    return _UNIX + timedelta(microseconds=started_us + elapsed_us)


def _blocks(records: Iterable[SessionRecord]) -> Iterator[_Block]:
    """Rows by session: those of one stream then lie together, and are found together."""
    found: dict[tuple[UUID, int], list[bytes]] = {}
    for record in records:
        if isinstance(record, FrameBlock):
            found.setdefault((record.session_id, record.started_us), []).append(record.rows)
    for (session_id, started_us), parts in sorted(found.items()):
        yield _Block(session_id, started_us, unpack_rows(b"".join(parts)))


def _lock_of(block: _Block) -> int:
    # Batches that are on their way at the same time begin with other sessions, or wait in vain for
    # each other's milliseconds.
    return int.from_bytes(block.session_id.bytes[:4], signed=True)


def _any_is_there(session: Session, blocks: Sequence[_Block]) -> bool:
    for block in blocks:
        first = block.rows[0]
        query = select(literal(1)).where(
            PoseFrame.session_id == block.session_id,
            PoseFrame.time == _time(block.started_us, float(first["time_s"])),
            PoseFrame.track_id == int(first["track_id"]),
            PoseFrame.frame_index == int(first["frame_index"]),
        )
        if session.scalar(query.limit(1)) is not None:
            return True
    return False


def _append(session: Session, blocks: Sequence[_Block]) -> Written:
    """Append rows of the sessions that are there, and count their frames.

    The sessions stay locked until the end, so that nobody deletes one whose rows are on their way.
    """
    counts = {str(block.session_id): len(np.unique(block.rows["frame_index"])) for block in blocks}
    there = set(
        session.scalars(
            text(
                "UPDATE sessions SET n_frames = n_frames + more.n "
                "FROM unnest(cast(:ids AS uuid[]), cast(:counts AS bigint[])) AS more(id, n) "
                "WHERE session_id = more.id RETURNING session_id"
            ).bindparams(ids=list(counts), counts=list(counts.values()))
        )
    )
    wanted = [block for block in blocks if block.session_id in there]
    if wanted:
        encoded = [encode_rows(one.session_id, one.started_us, one.rows) for one in wanted]
        copy_rows(driver_connection(session), encoded)
    n_rows = sum(len(block.rows) for block in wanted)
    return Written(n_rows, sum(len(block.rows) for block in blocks) - n_rows)


def _open(session: Session, record: SessionOpened) -> None:
    values: dict[str, Any] = {
        "session_id": record.session_id,
        "stream_id": record.stream_id,
        "athlete_id": record.athlete_id,
        "kind": SessionKind.LIVE,
        "source_name": record.source_name,
        "exercise": record.exercise,
        "detector": record.detector,
        "started_at": record.started_at,
        "n_frames": 0,
        "n_repetitions": 0,
    }
    if record.athlete_id is not None:
        # Who was deleted meanwhile gets no more sessions.
        known = session.get(
            Athlete, record.athlete_id, with_for_update={"read": True, "key_share": True}
        )
        if known is None:
            return
    session.execute(
        insert_or_ignore(ExerciseSession)
        .values(**values)
        .on_conflict_do_nothing(index_elements=["session_id"])
    )


def _begin(session: Session, record: SessionBegan) -> None:
    session.execute(
        update(ExerciseSession)
        .where(ExerciseSession.session_id == record.session_id)
        .values(started_at=record.started_at)
    )


def _add_repetition(session: Session, record: RepetitionDone) -> None:
    known = session.scalar(
        select(ExerciseSession.session_id)
        .where(ExerciseSession.session_id == record.session_id)
        .with_for_update(read=True, key_share=True)
    )
    if known is not None and insert_repetition(
        session, record.session_id, record.started_us, record.repetition
    ):
        session.execute(
            update(ExerciseSession)
            .where(ExerciseSession.session_id == record.session_id)
            .values(n_repetitions=ExerciseSession.n_repetitions + 1)
        )


def _close(session: Session, record: SessionClosed) -> None:
    row = RepetitionRow
    withdrawn = [
        (row.track_id == one.track_id)
        & (row.exercise == one.exercise)
        & row.number.in_(one.numbers)
        for one in record.withdrawn
    ]
    if withdrawn:
        session.execute(
            delete(row).where(row.session_id == record.session_id, or_(*withdrawn)),
            execution_options={"synchronize_session": False},
        )
    session.execute(
        update(ExerciseSession)
        .where(ExerciseSession.session_id == record.session_id)
        .values(
            ended_at=record.ended_at,
            n_frames=record.n_frames,
            n_repetitions=record.n_repetitions,
            exercise=record.exercise,
            score=record.score,
        )
    )
