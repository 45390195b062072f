"""Sessions of live streams where the service runs: no way there and back, for a few streams."""

from collections.abc import Sequence
from concurrent.futures import Future

from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_types import NO_CHOICE, FormChoice
from pose_analyzer.live_analysis.session import LiveSession
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import Pose


class LocalAnalysis:
    """Sessions in the caller's thread, which waits; see `ports.LiveAnalysis`.

    Parameters
    ----------
    exercises
        All there are.
    library
        What form is judged by; None: it is not.
    """

    def __init__(self, exercises: tuple[Exercise, ...], library: FormLibrary | None = None) -> None:
        self._library = library
        self._exercises = {exercise.name: exercise for exercise in exercises}
        self._sessions: dict[str, LiveSession] = {}

    @property
    def n_streams(self) -> int:
        """How many streams live here."""
        return len(self._sessions)

    def open(
        self,
        stream_id: str,
        exercise: str,
        form: FormChoice = NO_CHOICE,
        *,
        with_rows: bool = False,
    ) -> None:
        """Begin a session; `with_rows`: its answers carry rows and finished repetitions.

        Raises
        ------
        UnknownNameError
            There is no such exercise, reference of it, or language.
        InvalidReferenceError
            A reference file is invalid.
        """
        selected = select_exercises(self._exercises, exercise)
        session = LiveSession(selected, self._library, form, with_rows=with_rows)
        self._sessions[stream_id] = session

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
        self._sessions[stream_id].change_exercises(selected)

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        """Follow everybody one frame further, at once.

        Returns
        -------
        Future
            Done. `BackendFailedError` if the frame is not newer than the one before.

        Raises
        ------
        KeyError
            There is no such session.
        """
        answer: Future[AnalysedFrame] = Future()
        session = self._sessions[stream_id]
        try:
            answer.set_result(session.analyse(frame_index, time_s, poses, encoding))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the answer
            answer.set_exception(error)
        return answer

    def send(self) -> None:
        """Nothing is held back."""

    def rehearse(self, stream_id: str) -> None:
        """Nothing: it would keep the detector's threads from Python's lock."""

    def has_room(self, stream_id: str) -> bool:  # noqa: ARG002 - nothing waits here
        """Whether the analysis keeps up: it does, the caller waits for it."""
        return True

    def end(self, stream_id: str) -> "Future[bytes] | None":
        """Forget a session; the repetitions not yet told, if rows were wanted."""
        session = self._sessions.pop(stream_id, None)
        if session is None or not session.with_rows:
            return None
        last: Future[bytes] = Future()
        last.set_result(session.finish())
        return last

    def close(self) -> None:
        """Forget everything."""
        self._sessions.clear()
