"""The first streams where the service runs, the others in processes."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from pose_analyzer.live_analysis.in_processes import ProcessAnalysis
from pose_analyzer.live_analysis.in_service import LocalAnalysis
from pose_analyzer.ports import LiveAnalysis
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import Pose

N_HERE: Final = 1
"""A person's step costs the service's thread a millisecond: 3% of it at 30 frames/s."""


class FirstHereAnalysis:
    """Spares a lone stream the way to a process and back; see `ports.LiveAnalysis`.

    A stream stays where it began.

    Parameters
    ----------
    here
        For the first `N_HERE` streams.
    processes
        For all others.
    """

    def __init__(self, here: LocalAnalysis, processes: ProcessAnalysis) -> None:
        self._here = here
        self._processes = processes
        self._homes: dict[str, LiveAnalysis] = {}

    def open(self, stream_id: str, exercise: str) -> None:
        """Begin a session; raises as `LocalAnalysis.open` does."""
        home = self._homes.get(stream_id)
        if home is None:
            home = self._here if self._here.n_streams < N_HERE else self._processes
        home.open(stream_id, exercise)
        self._homes[stream_id] = home

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        """Count another exercise; raises as `LocalAnalysis.change_exercise` does."""
        self._homes[stream_id].change_exercise(stream_id, exercise)

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        """Follow everybody one frame further; as the analysis where the stream lives."""
        return self._homes[stream_id].analyse(stream_id, frame_index, time_s, poses, encoding)

    def send(self) -> None:
        """Pass on what was asked."""
        self._processes.send()

    def has_room(self, stream_id: str) -> bool:
        """Whether the analysis where the stream lives keeps up."""
        return self._homes[stream_id].has_room(stream_id)

    def end(self, stream_id: str) -> None:
        """Forget a session."""
        home = self._homes.pop(stream_id, None)
        if home is not None:
            home.end(stream_id)

    def close(self) -> None:
        """Finish what is in progress and end the processes."""
        self._here.close()
        self._processes.close()
