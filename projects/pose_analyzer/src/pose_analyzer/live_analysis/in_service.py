"""Sessions of live streams in one thread of this process: enough for a few streams."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.live_analysis.session import LiveSession
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import Pose

MAX_BACKLOG: Final = 16
"""Frames not answered, from which on streams' frames wait and become stale."""


class LocalAnalysis:
    """Sessions in one thread of this process; see `ports.LiveAnalysis`.

    Parameters
    ----------
    exercises
        All there are.
    """

    def __init__(self, exercises: tuple[Exercise, ...]) -> None:
        self._exercises = {exercise.name: exercise for exercise in exercises}
        self._sessions: dict[str, LiveSession] = {}
        self._thread = ThreadPoolExecutor(1, "analysis")
        self._n_asked = 0
        self._n_answered = 0

    def open(self, stream_id: str, exercise: str) -> None:
        """Begin a session.

        Raises
        ------
        UnknownNameError
            There is no such exercise.
        """
        self._sessions[stream_id] = LiveSession(select_exercises(self._exercises, exercise))

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        """Count another exercise from the next frame on; the people stay who they are.

        Raises
        ------
        UnknownNameError
            There is no such exercise.
        KeyError
            There is no such session.
        """
        selected = select_exercises(self._exercises, exercise)
        self._thread.submit(self._sessions[stream_id].change_exercises, selected)

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        """Follow everybody one frame further.

        Returns
        -------
        Future
            `BackendFailedError` if the frame is not newer than the one before.

        Raises
        ------
        KeyError
            There is no such session.
        """
        session = self._sessions[stream_id]
        self._n_asked += 1
        future = self._thread.submit(session.analyse, frame_index, time_s, poses, encoding)
        future.add_done_callback(self._count_answer)
        return future

    def send(self) -> None:
        """Nothing is held back."""

    def has_room(self, stream_id: str) -> bool:  # noqa: ARG002 - one thread for all
        """Whether the thread keeps up."""
        return self._n_asked - self._n_answered < MAX_BACKLOG

    def end(self, stream_id: str) -> None:
        """Forget a session; frames on their way are still answered."""
        self._sessions.pop(stream_id, None)

    def _count_answer(self, _: "Future[AnalysedFrame]") -> None:
        self._n_answered += 1

    def close(self) -> None:
        """Finish what is in progress."""
        self._thread.shutdown()
