"""What live streams leave behind, on its way to the database: a queue, one thread, a spill folder.

`put` never waits, whatever becomes of the database. Batches go to it twice a second; while it is
away they go to files, and from there, oldest first, once it is back. What is beyond the limit of
bytes is dropped, oldest first, and counted.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.frame_rows import ROW
from pose_analyzer.session_records import FrameBlock, SessionRecord, read_records, write_records
from pose_analyzer.storage import session_writer
from pose_analyzer.storage.spill import SpilledBatch, SpillFolder

CAUSES: Final = ("queue_full", "spill_full", "session_deleted", "rejected")
"""Why rows are dropped."""

SessionOpener = Callable[[], AbstractContextManager[Session]]
"""Begins a session that commits; raises `DatabaseUnavailableError`."""

# A server that hangs is a server that is away.
_LIMIT_TIME: Final = text("SET LOCAL statement_timeout = '15s'")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IngestionConfig:
    """How much waits, for how long."""

    batch_s: float = 0.5
    """So often the queue is emptied."""
    batch_records: int = 4_096
    """Or as soon as it holds so many; also the most in one transaction."""
    max_queued: int = 120_000
    """Records: a minute of 64 streams at 30 frames a second."""
    retry_s: float = 1.0
    """While the database is away, it is tried so often."""
    close_s: float = 20.0
    """So long `close` waits for what is left."""


@dataclass(frozen=True, slots=True)
class IngestionStats:
    """How things stand."""

    n_rows_written: int
    n_queued: int
    """Records in memory."""
    n_spilled_bytes: int
    n_dropped: dict[str, int]
    """Rows by cause, of `CAUSES`."""
    lag_s: float
    """Age of the oldest record that is not in the database."""


@dataclass(frozen=True, slots=True)
class _Batch:
    records: Sequence[SessionRecord]
    put_s: float

    @property
    def n_rows(self) -> int:
        return sum(map(_n_rows, self.records))


@dataclass(slots=True)
class _Told:
    """What other threads may read."""

    n_rows_written: int = 0
    n_dropped: Counter[str] = field(default_factory=Counter)
    n_spilled_bytes: int = 0
    spilled_s: float | None = None


class Ingestion:
    """Implements `ports.RecordSink`.

    Parameters
    ----------
    open_session
        How to reach the database, which may be away.
    spill
        Where batches go then; None: they wait in memory.
    config
        Limits.
    """

    def __init__(
        self,
        open_session: SessionOpener,
        spill: SpillFolder | None,
        config: IngestionConfig | None = None,
    ) -> None:
        self._open_session = open_session
        self._spill = spill
        self._config = config or IngestionConfig()
        self._queue: deque[tuple[SessionRecord, float]] = deque()
        # Records that were not dropped with the rows around them: older than all in the queue.
        self._essence: deque[tuple[SessionRecord, float]] = deque()
        # Held while records leave the queue, so that they stay in order; `put` never waits for it.
        self._taking = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._away_until_s = 0.0
        self._failed: _Batch | None = None
        self._told = _Told()
        self._tell_spilled()
        self._thread = threading.Thread(target=self._run, name="ingestion", daemon=True)
        self._thread.start()

    def put(self, record: SessionRecord) -> None:
        """Have this written soon; returns at once, from any thread."""
        queue = self._queue
        queue.append((record, time.time()))
        if len(queue) > self._config.max_queued:
            self._drop_oldest()
        elif len(queue) >= self._config.batch_records and not self._wake.is_set():
            self._wake.set()

    def stats(self) -> IngestionStats:
        """How things stand; from any thread."""
        told, failed = self._told, self._failed
        waiting_s = [told.spilled_s, None if failed is None else failed.put_s]
        for queue in (self._essence, self._queue):
            try:
                waiting_s.append(queue[0][1])
            except IndexError:
                continue
        oldest_s = min((s for s in waiting_s if s is not None), default=None)
        return IngestionStats(
            n_rows_written=told.n_rows_written,
            n_queued=self._n_queued(),
            n_spilled_bytes=told.n_spilled_bytes,
            n_dropped={cause: told.n_dropped[cause] for cause in CAUSES},
            lag_s=0.0 if oldest_s is None else max(time.time() - oldest_s, 0.0),
        )

    def close(self) -> None:
        """Write or spill what is left, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(self._config.close_s)
        if self._thread.is_alive():
            log.error("ingestion_cut_off", n_records=self._n_queued())
        elif self._spill is not None:
            self._spill.close()

    def _drop_oldest(self) -> None:
        """Make room for one, unless the writer is doing so; what is no row is kept."""
        if not self._taking.acquire(blocking=False):
            return
        try:
            oldest = self._queue.popleft()
            if isinstance(oldest[0], FrameBlock):
                self._told.n_dropped["queue_full"] += _n_rows(oldest[0])
            else:
                self._essence.append(oldest)
        finally:
            self._taking.release()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._config.batch_s)
            self._wake.clear()
            self._work()
        self._work()
        deadline_s = time.monotonic() + self._config.close_s / 2.0
        # What was spilled is safe; what is in memory is not.
        while self._spill is None and self._n_queued() and time.monotonic() < deadline_s:
            time.sleep(self._config.retry_s)
            self._work()
        if self._n_queued():
            log.error("rows_lost_at_the_end", n_records=self._n_queued())

    def _n_queued(self) -> int:
        failed = self._failed
        n_failed = 0 if failed is None else len(failed.records)
        return n_failed + len(self._essence) + len(self._queue)

    def _work(self) -> None:
        """Empty the queue, into the database or else into the spill folder."""
        if self._failed is not None and not self._retry_failed():
            return
        if self._told.n_spilled_bytes:
            # In order: a session's rows must not come before the session.
            self._replay()
            if self._told.n_spilled_bytes:
                self._spill_queue()
        while not self._told.n_spilled_bytes and (batch := self._next_batch()) is not None:
            if self._write(batch):
                continue
            if not self._spill_batch(batch):
                self._failed = batch
                return
            self._spill_queue()

    def _next_batch(self) -> _Batch | None:
        taken: list[tuple[SessionRecord, float]] = []
        with self._taking:
            for queue in (self._essence, self._queue):
                while queue and len(taken) < self._config.batch_records:
                    taken.append(queue.popleft())
        if not taken:
            return None
        return _Batch([record for record, _ in taken], taken[0][1])

    def _write(self, batch: _Batch, *, again: bool = False) -> bool:
        """Whether the batch is done with: written, or refused for good."""
        try:
            with self._open_session() as session:
                session.execute(_LIMIT_TIME)
                written = session_writer.write_records(session, batch.records, again=again)
        except DatabaseUnavailableError as error:
            self._note_absence(str(error))
            return False
        except (DataError, IntegrityError):
            log.exception("rows_rejected", n_rows=batch.n_rows)
            self._told.n_dropped["rejected"] += batch.n_rows
        except SQLAlchemyError as error:
            # Such as tables that are missing: somebody may put it right.
            self._note_absence(str(error))
            return False
        else:
            self._note_presence()
            self._told.n_rows_written += written.n_rows
            self._told.n_dropped["session_deleted"] += written.n_orphaned
        return True

    def _note_absence(self, reason: str) -> None:
        if not self._away_until_s:
            log.warning("rows_wait_for_database", reason=reason)
        self._away_until_s = time.monotonic() + self._config.retry_s

    def _note_presence(self) -> None:
        if self._away_until_s:
            log.info("database_takes_rows", n_spilled_bytes=self._told.n_spilled_bytes)
        self._away_until_s = 0.0

    def _retry_failed(self) -> bool:
        if self._failed is None or not self._is_due():
            return False
        if not self._write(self._failed, again=True):
            return False
        self._failed = None
        return True

    def _spill_queue(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not self._spill_batch(batch):
                # Nobody has tried to store it: it need not stay one batch.
                with self._taking:
                    self._queue.extendleft((one, batch.put_s) for one in reversed(batch.records))
                return

    def _spill_batch(self, batch: _Batch) -> bool:
        """Whether it is in a file now; if not, memory has to do."""
        if self._spill is None:
            return False
        data = write_records(batch.records)
        try:
            n_dropped = self._spill.append(SpilledBatch(data, batch.n_rows, batch.put_s))
        except OSError as error:
            log.warning("rows_not_spilled", n_rows=batch.n_rows, reason=str(error))
            return False
        self._told.n_dropped["spill_full"] += n_dropped
        self._tell_spilled()
        return True

    def _replay(self) -> None:
        """Write what was spilled, a segment at a time, until it is done or fails."""
        if self._spill is None or not self._is_due():
            return
        while self._told.n_spilled_bytes:
            for spilled in self._spill.oldest():
                batch = self._read(spilled)
                if batch is not None and not self._write(batch, again=True):
                    return
            self._spill.forget_oldest()
            self._tell_spilled()
            if len(self._queue) > self._config.max_queued // 2:
                self._spill_queue()
            if self._closing:
                return

    def _is_due(self) -> bool:
        """Whether the database is to be tried now, if it was away."""
        return self._closing or time.monotonic() >= self._away_until_s

    def _read(self, spilled: SpilledBatch) -> _Batch | None:
        try:
            return _Batch(read_records(spilled.data), spilled.put_s)
        except msgspec.DecodeError:
            # Another version of this program wrote it.
            log.exception("rows_rejected", n_rows=spilled.n_rows)
            self._told.n_dropped["rejected"] += spilled.n_rows
            return None

    def _tell_spilled(self) -> None:
        if self._spill is not None:
            self._told.n_spilled_bytes = self._spill.n_bytes
            self._told.spilled_s = self._spill.oldest_s


def essence_of(data: bytes) -> bytes:
    """What of a spilled batch must outlive its rows: sessions and repetitions."""
    try:
        records = read_records(data)
    except msgspec.DecodeError:
        return b""
    kept = [record for record in records if not isinstance(record, FrameBlock)]
    return write_records(kept) if kept else b""


def _n_rows(record: SessionRecord) -> int:
    return len(record.rows) // ROW.itemsize if isinstance(record, FrameBlock) else 0
