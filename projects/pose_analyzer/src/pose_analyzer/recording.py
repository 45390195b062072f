"""Sessions that are kept: what live streams and analysed recordings leave in the database."""

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import numpy as np
from jaxtyping import Float
from msgspec import structs

from pose_analyzer.db_connector import Database
from pose_analyzer.exercises import AUTO
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.frame_rows import Rows, rows_of
from pose_analyzer.ports import RecordSink
from pose_analyzer.session_records import (
    FrameBlock,
    RepetitionDone,
    RepetitionRecord,
    SessionBegan,
    SessionClosed,
    SessionOpened,
    read_repetitions,
)
from pose_analyzer.session_tally import SessionTally
from pose_analyzer.storage.session_analysis import StoredAnalysis, store_session_analysis
from pose_analyzer.stream_types import AnalysedFrame, StreamFrame, StreamOptions
from pose_analyzer.types import PersonAnalysis, VideoAnalysis

_US_PER_S: Final = 1_000_000


class SessionRecorder:
    """Implements `ports.StreamRecorder`.

    Parameters
    ----------
    sink
        Where records go.
    clock
        Monotonic seconds, those of `StreamFrame.received_s`.
    time_of_day
        UNIX time.
    """

    def __init__(
        self,
        sink: RecordSink,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._time_of_day = time_of_day

    def begin(self, stream_id: str, options: StreamOptions, detector: str) -> "LiveRecording":
        """Begin a session for a stream that starts now."""
        opened = SessionOpened(
            session_id=uuid.uuid4(),
            stream_id=stream_id,
            athlete_id=options.athlete_id,
            source_name=options.source,
            exercise=None if options.exercise == AUTO else options.exercise,
            detector=detector,
            started_at=_date(self._now_us()),
        )
        self._sink.put(opened)
        return LiveRecording(opened, self._sink, self._now_us, self._clock)

    def _now_us(self) -> int:
        return round(self._time_of_day() * _US_PER_S)


class LiveRecording:
    """Implements `ports.StreamRecording`; for the event loop's thread.

    The session's time of day is that of its first frame; further frames keep the spacing they
    have on the stream's clock, which is exact where a client states when it took them.
    """

    def __init__(
        self,
        opened: SessionOpened,
        sink: RecordSink,
        now_us: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self.session_id = opened.session_id
        self._opened = opened
        self._sink = sink
        self._now_us = now_us
        self._clock = clock
        self._started_us: int | None = None
        self._n_frames = 0
        self._tally = SessionTally()

    def add(self, frame: StreamFrame, analysed: AnalysedFrame) -> None:
        """Keep what one frame showed."""
        started_us = self._started_us
        if started_us is None:
            started_us = self._begin(frame)
        self._n_frames += 1
        if analysed.rows:
            self._sink.put(FrameBlock(self.session_id, started_us, analysed.rows))
        if analysed.repetitions:
            self._add_repetitions(started_us, analysed.repetitions)

    def close(self, last: bytes) -> None:
        """No more frames; with the repetitions not yet told."""
        if self._started_us is not None:
            self._add_repetitions(self._started_us, last)
        summary = self._tally.summary()
        self._sink.put(
            SessionClosed(
                session_id=self.session_id,
                ended_at=_date(self._now_us()),
                n_frames=self._n_frames,
                n_repetitions=summary.n_repetitions,
                exercise=summary.exercise or self._opened.exercise,
                score=summary.score,
                withdrawn=self._tally.withdrawn(),
            )
        )

    def _begin(self, first: StreamFrame) -> int:
        ago_s = self._clock() - first.received_s + first.time_s
        self._started_us = self._now_us() - round(ago_s * _US_PER_S)
        self._sink.put(SessionBegan(self.session_id, _date(self._started_us)))
        return self._started_us

    def _add_repetitions(self, started_us: int, told: bytes) -> None:
        for repetition in read_repetitions(told):
            numbered = structs.replace(repetition, number=self._tally.numbered(repetition))
            self._sink.put(RepetitionDone(self.session_id, started_us, numbered))


def store_analysis(
    database: Database,
    session_id: UUID,
    analysis: VideoAnalysis,
    forms: Sequence[FormUpdate],
    started_at: datetime,
) -> None:
    """Keep what a recording shows, in place of what was kept of it before; all of it or nothing.

    Parameters
    ----------
    database
        An open one.
    session_id
        A session that is there.
    analysis
        The whole recording.
    forms
        What was said of its repetitions.
    started_at
        Time of day of the recording's second 0, with a time zone.

    Raises
    ------
    UnknownSessionError
        There is no such session.
    DatabaseUnavailableError
        The database is away; nothing was stored.
    """
    judged = {(one.track_id, one.exercise, one.repetition): one for one in forms}
    repetitions = {
        person.track_id: [
            RepetitionRecord.of(
                person.track_id, one, judged.get((person.track_id, one.exercise, one.number))
            )
            for one in person.repetitions
        ]
        for person in analysis.people
    }
    tally = SessionTally()
    for record in (one for found in repetitions.values() for one in found):
        tally.numbered(record)
    summary = tally.summary()
    blocks = (_recorded_rows(one, repetitions[one.track_id]) for one in analysis.people)
    ends_s = [float(one.time_s[-1]) for one in analysis.people if len(one.time_s)]
    stored = StoredAnalysis(
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=_duration_s(analysis, max(ends_s, default=0.0))),
        detector=analysis.detector,
        exercise=summary.exercise
        or (None if analysis.exercise_requested == AUTO else analysis.exercise_requested),
        n_frames=analysis.n_frames,
        score=summary.score,
        repetitions=[one for found in repetitions.values() for one in found],
    )
    with database.session() as session:
        store_session_analysis(session, session_id, stored, blocks)


def _duration_s(analysis: VideoAnalysis, seen_s: float) -> float:
    duration_s = analysis.source.duration_s
    return duration_s if np.isfinite(duration_s) else seen_s


def _recorded_rows(person: PersonAnalysis, repetitions: Sequence[RepetitionRecord]) -> Rows:
    """Rows with the score of the latest repetition that was over."""
    scores: Float[np.ndarray, "repetitions+1"] = np.array(
        [np.nan, *(np.nan if one.score is None else one.score for one in repetitions)]
    )
    ends_s = np.array([one.end_s for one in repetitions])
    return rows_of(person, scores[np.searchsorted(ends_s, person.time_s, side="right")])


def _date(us: int) -> datetime:
    return datetime.fromtimestamp(us // _US_PER_S, UTC) + timedelta(microseconds=us % _US_PER_S)
