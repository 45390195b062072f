"""A detector and an analysis whose answers tests give themselves, and a clock that obeys."""

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.form_types import NO_CHOICE, FormChoice
from pose_analyzer.stream_types import (
    AnalysedFrame,
    DropCause,
    Encoding,
    FrameFailure,
    FrameOutcome,
    FramePoses,
    StreamFrame,
    StreamOptions,
    StreamState,
)
from pose_analyzer.types import Pose


class FakeClock:
    """Monotonic seconds that stand still until told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakePipeline:
    """Implements `ports.FramePipeline`; batches wait in `batches` until `finish`."""

    name = "fake"

    def __init__(
        self, max_batch: int = 4, n_stages: int = 1, per_stream: int = 1, device: str = "cpu"
    ) -> None:
        self.device = device
        self.max_batch = max_batch
        self.max_in_flight_per_stream = per_stream
        self.capacity_fps = 1000.0
        self.batches: list[tuple[list[StreamFrame], Future[list[FrameOutcome]]]] = []
        self.seen: list[list[int]] = []
        self.forgotten: list[str] = []
        self.closed = False
        self._n_stages = n_stages
        self._listeners: list[Callable[[], None]] = []

    def n_idle(self) -> int:
        return max(self._n_stages - len(self.batches), 0)

    def on_idle(self, call: Callable[[], None]) -> None:
        self._listeners.append(call)

    def submit(self, frames: Sequence[StreamFrame]) -> "Future[list[FrameOutcome]]":
        assert 1 <= len(frames) <= self.max_batch
        future: Future[list[FrameOutcome]] = Future()
        self.batches.append((list(frames), future))
        self.seen.append([frame.index for frame in frames])
        return future

    def finish(self, failure: FrameFailure | None = None, *, broken: bool = False) -> None:
        """Answer the oldest batch: people in every frame, a failure in each, or break down."""
        frames, future = self.batches.pop(0)
        if broken:
            future.set_exception(BackendFailedError(self.name, "out of order"))
        else:
            future.set_result([failure or found() for _ in frames])
        for call in self._listeners:
            call()

    def limit_batch(self, n_frames: int) -> None:
        self.max_batch = n_frames

    def frames_per_second(self) -> float:
        return self.capacity_fps

    def forget(self, stream_id: str) -> None:
        self.forgotten.append(stream_id)

    def close(self) -> None:
        self.closed = True


class FakeAnalysis:
    """Implements `ports.LiveAnalysis`; answers at once, unless `held`."""

    def __init__(self) -> None:
        self.open_streams: dict[str, str] = {}
        self.times_s: dict[str, list[float]] = {}
        self.held = False
        self.full: set[str] = set()
        self.n_sends = 0
        self.rehearsed: list[str] = []
        self.pending: list[Future[AnalysedFrame]] = []
        self.last: dict[str, Future[bytes]] = {}
        """Answers to `end` for streams with rows; tests resolve them."""
        self.closed = False

    def open(
        self,
        stream_id: str,
        exercise: str,
        form: FormChoice = NO_CHOICE,
        *,
        with_rows: bool = False,
    ) -> None:
        self.open_streams[stream_id] = exercise
        if with_rows:
            self.last[stream_id] = Future()

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        self.open_streams[stream_id] = exercise

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        self.times_s.setdefault(stream_id, []).append(time_s)
        future: Future[AnalysedFrame] = Future()
        if self.held:
            self.pending.append(future)
        else:
            people = b"[]" if encoding is Encoding.JSON else b"\x90"
            future.set_result(AnalysedFrame(people, 0, 0, 0.0))
        return future

    def send(self) -> None:
        self.n_sends += 1

    def rehearse(self, stream_id: str) -> None:
        self.rehearsed.append(stream_id)

    def has_room(self, stream_id: str) -> bool:
        return stream_id not in self.full

    def end(self, stream_id: str) -> "Future[bytes] | None":
        del self.open_streams[stream_id]
        return self.last.get(stream_id)

    def close(self) -> None:
        self.closed = True


class FakeRecording:
    """Implements `ports.StreamRecording`; keeps what it is told."""

    def __init__(self) -> None:
        self.session_id = uuid.uuid4()
        self.frames: list[int] = []
        self.closed_with: bytes | None = None

    def add(self, frame: StreamFrame, analysed: AnalysedFrame) -> None:
        assert self.closed_with is None
        self.frames.append(frame.index)

    def close(self, last: bytes) -> None:
        assert self.closed_with is None
        self.closed_with = last


class FakeRecorder:
    """Implements `ports.StreamRecorder`."""

    def __init__(self) -> None:
        self.recordings: list[FakeRecording] = []

    def begin(self, stream_id: str, options: StreamOptions, detector: str) -> FakeRecording:
        self.recordings.append(FakeRecording())
        return self.recordings[-1]


class FakeSink:
    """Implements `live_stream.Sink`; keeps what it is given."""

    encoding = Encoding.JSON

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.n_unsent = 0

    def put(self, message: bytes) -> None:
        self.messages.append(message)

    def close(self, code: int, reason: str) -> None:
        self.closed = code, reason


class CountingMetrics:
    """Implements `ports.StreamMetrics`."""

    def __init__(self) -> None:
        self.n_answered = 0
        self.drops: list[DropCause] = []
        self.batch_sizes: list[int] = []
        self.by_state: dict[StreamState, int] = {}
        self.actions: list[str] = []

    def answered(self, stages_s: dict[str, float], total_s: float, n_new_repetitions: int) -> None:
        self.n_answered += 1

    def dropped(self, cause: DropCause) -> None:
        self.drops.append(cause)

    def batch(self, n_frames: int) -> None:
        self.batch_sizes.append(n_frames)

    def streams(self, by_state: dict[StreamState, int]) -> None:
        self.by_state = dict(by_state)

    def governed(self, action: str) -> None:
        self.actions.append(action)

    def gpu_memory(self, used_bytes: int, total_bytes: int) -> None:
        pass


def found() -> FramePoses:
    """Answer of a detector that saw nobody."""
    return FramePoses([], 640, 480, 0.001, 0.002, 0.001)
