"""Analysis of one live stream: poses in, the answer's people out, already encoded."""

import time
from collections.abc import Sequence

from pose_analyzer import wire
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_session import repetitions
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import PersonFrame, Pose

ANALYSIS_NAME = "analysis"


class LiveSession:
    """A stream's people. Frames must come in order.

    Parameters
    ----------
    exercises
        One: count it. Several: recognise which one it is.
    """

    def __init__(self, exercises: tuple[Exercise, ...]) -> None:
        self._analyzer = StreamAnalyzer(None, AnalysisConfig(exercises))
        self._n_repetitions: dict[int, int] = {}
        self._time_s = float("-inf")

    def change_exercises(self, exercises: tuple[Exercise, ...]) -> None:
        """Count others from the next frame on, from zero."""
        self._analyzer.change_exercises(exercises)
        self._n_repetitions.clear()

    def analyse(
        self, frame_index: int, time_s: float, poses: Sequence[Pose], encoding: Encoding
    ) -> AnalysedFrame:
        """Follow everybody one frame further.

        Raises
        ------
        BackendFailedError
            The frame is not newer than the one before; it was not looked at.
        """
        began_s = time.perf_counter()
        if not time_s > self._time_s:
            reason = f"frame {frame_index} at {time_s} s is not newer than {self._time_s} s"
            raise BackendFailedError(ANALYSIS_NAME, reason)
        self._time_s = time_s
        people = self._analyzer.observe(poses, frame_index, time_s)
        written = wire.encode([self._written(person) for person in people], encoding)
        return AnalysedFrame(
            people=written,
            n_people=len(people),
            n_new_repetitions=self._count_new(people),
            analyse_s=time.perf_counter() - began_s,
        )

    def _written(self, person: PersonFrame) -> wire.Person:
        counted = repetitions(self._analyzer.session, self._analyzer.state(person.track_id))
        return wire.Person.of(person, counted[-1] if counted else None)

    def _count_new(self, people: Sequence[PersonFrame]) -> int:
        """Repetitions that were not there in the frame before."""
        n_new = 0
        for person in people:
            n_before = self._n_repetitions.get(person.track_id, 0)
            n_new += max(person.n_repetitions - n_before, 0)
            self._n_repetitions[person.track_id] = person.n_repetitions
        if len(self._n_repetitions) > len(self._analyzer.track_ids):
            known = self._analyzer.track_ids
            self._n_repetitions = {k: n for k, n in self._n_repetitions.items() if k in known}
        return n_new
