"""Sessions of live streams in processes: for more streams than one thread of Python can follow."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_types import NO_CHOICE, FormChoice
from pose_analyzer.live_analysis import messages
from pose_analyzer.live_analysis.process_group import AnalysisProcess, ProcessGroup
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import Pose


class ProcessAnalysis:
    """Sessions in processes of their own; see `ports.LiveAnalysis`.

    A stream stays in the process that had fewest streams when it began. If a process dies, the
    frames on their way there fail, and its streams begin new sessions in its successor.

    Parameters
    ----------
    exercises
        All there are.
    n_processes
        How many; each takes about 130 MB.
    library
        What form is judged by; None: it is not.

    Raises
    ------
    BackendFailedError
        A process cannot be started.
    """

    def __init__(
        self,
        exercises: tuple[Exercise, ...],
        n_processes: int,
        library: FormLibrary | None = None,
    ) -> None:
        self._library = library
        self._exercises = {exercise.name: exercise for exercise in exercises}
        self._homes: dict[str, AnalysisProcess] = {}
        self._group = ProcessGroup(
            exercises, n_processes, None if library is None else library.folders
        )

    def receive_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have this loop, which must outlive `close`, receive the answers; call it from there."""
        self._group.receive_in(loop)

    def open(
        self,
        stream_id: str,
        exercise: str,
        form: FormChoice = NO_CHOICE,
        *,
        with_rows: bool = False,
    ) -> None:
        """Begin a session; raises as `LocalAnalysis.open` does."""
        selected = select_exercises(self._exercises, exercise)
        if self._library is not None:
            self._library.judge_config(selected, form)
        home = self._homes.get(stream_id) or min(
            self._group.processes, key=lambda process: process.n_streams
        )
        self._homes[stream_id] = home
        home.open(messages.Open(stream_id, exercise, form, with_rows))

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        """Count another exercise; raises as `LocalAnalysis.change_exercise` does."""
        select_exercises(self._exercises, exercise)
        self._homes[stream_id].change(stream_id, exercise)

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        """Follow everybody one frame further; as `LocalAnalysis.analyse`.

        Returns
        -------
        Future
            `BackendFailedError` also if the process dies.
        """
        question = messages.question(stream_id, frame_index, time_s, poses, encoding)
        return self._homes[stream_id].ask(question)

    def send(self) -> None:
        """Send what was asked."""
        for process in self._group.processes:
            process.send()

    def rehearse(self, stream_id: str) -> None:
        """Wake up what the stream's next frame needs, if its process sleeps."""
        self._homes[stream_id].rehearse(stream_id)

    def has_room(self, stream_id: str) -> bool:
        """Whether the stream's process keeps up."""
        return self._homes[stream_id].has_room

    def end(self, stream_id: str) -> "Future[bytes] | None":
        """Forget a session; frames on their way are still answered. As `LocalAnalysis.end`."""
        home = self._homes.pop(stream_id, None)
        return None if home is None else home.end(stream_id)

    def close(self) -> None:
        """Finish what is in progress and end the processes."""
        self._group.close()
