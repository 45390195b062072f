"""Analysing one chunk after the other: the work of `chunk_worker`."""

import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from pose_analyzer.artifact_keys import chunk_key
from pose_analyzer.errors import (
    DatabaseUnavailableError,
    ModelUnavailableError,
    UnknownNameError,
    UnreadableSourceError,
)
from pose_analyzer.storage.chunk_claims import (
    ClaimedChunk,
    claim_chunk,
    complete_chunk,
    fail_chunk,
    release_chunk,
    renew_chunk,
)
from pose_analyzer.storage.models import DeepMode
from pose_analyzer.upload_errors import ArtifactMissingError
from pose_analyzer.video_jobs.job_metrics import WorkerMetrics
from pose_analyzer.video_jobs.work_loop import AbandonedError, reported
from pose_analyzer.video_jobs.workplace import Workplace

ChunkAnalysis = Callable[[ClaimedChunk, Path, Callable[[], None]], bytes]
"""Looks for people in a chunk of the video at a path and gives what it found, as it is stored.

Calls its last argument with every frame.
"""

# Another attempt would end the same way.
_HOPELESS = (UnreadableSourceError, ArtifactMissingError, UnknownNameError)

log = structlog.get_logger()


class ChunkDuty:
    """Claims chunks, has them analysed, stores what was found, reports; see `work_loop.Duty`."""

    def __init__(
        self,
        place: Workplace,
        modes: Iterable[DeepMode],
        analyse: ChunkAnalysis,
        metrics: WorkerMetrics,
    ) -> None:
        self._place = place
        self._modes = tuple(modes)
        self._analyse = analyse
        self._metrics = metrics

    @property
    def lease_s(self) -> float:
        """For how long one renewal lasts."""
        return self._place.policy.lease_s

    def claim(self) -> ClaimedChunk | None:
        """Take the next chunk."""
        with self._place.database.session() as session:
            return claim_chunk(session, uuid.uuid4(), self._modes, self._place.policy)

    def renew(self, claimed: ClaimedChunk) -> bool:
        """Say that the work goes on."""
        with self._place.database.session() as session:
            return renew_chunk(session, claimed, self._place.policy)

    def release(self, claimed: ClaimedChunk) -> None:
        """Give it back unfinished."""
        self._metrics.ended("abandoned")
        with self._place.database.session() as session:
            release_chunk(session, claimed)

    def perform(self, claimed: ClaimedChunk, check: Callable[[], None]) -> None:
        """Analyse a chunk and report how it went.

        Raises
        ------
        AbandonedError
            It is not to be finished.
        ModelUnavailableError
            This worker cannot do such work at all; the chunk has been given back.
        DatabaseUnavailableError
            The report could not be made in time; somebody else does the chunk again.
        """
        began_s = time.monotonic()
        log.info("chunk_begun", job_id=str(claimed.job_id), chunk=claimed.chunk_index)
        try:
            path = self._place.copies.path(claimed.video_key)
            found = self._analyse(claimed, path, check)
            key = chunk_key(claimed.session_id, claimed.job_id, claimed.chunk_index)
            # The file before the row: a row never names what is not there.
            self._place.store.put(key, found)
        except (AbandonedError, DatabaseUnavailableError):
            raise
        except ModelUnavailableError:
            self.release(claimed)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was is told in the job and the log
            self._fail(claimed, error)
            return
        elapsed_s = time.monotonic() - began_s
        if self._report(lambda: self._complete(claimed, key, elapsed_s)):
            self._metrics.completed(elapsed_s)
            log.info(
                "chunk_completed",
                job_id=str(claimed.job_id),
                chunk=claimed.chunk_index,
                elapsed_s=round(elapsed_s, 3),
            )

    def _complete(self, claimed: ClaimedChunk, key: str, elapsed_s: float) -> bool:
        with self._place.database.session() as session:
            return complete_chunk(session, claimed, key, round(1000.0 * elapsed_s))

    def _fail(self, claimed: ClaimedChunk, error: Exception) -> None:
        final = isinstance(error, _HOPELESS)
        log.error(
            "chunk_failed",
            job_id=str(claimed.job_id),
            chunk=claimed.chunk_index,
            attempt=claimed.attempt,
            exc_info=error,
        )

        def report() -> bool:
            with self._place.database.session() as session:
                reason = str(error) or type(error).__name__
                return fail_chunk(session, claimed, reason, self._place.policy, final=final)

        if self._report(report):
            self._metrics.ended("failed" if final else "retried")

    def _report(self, report: Callable[[], bool]) -> bool:
        return reported(report, self._place.report_patience_s)
