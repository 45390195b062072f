"""One live stream: its newest frame, its clock, what was dropped, who listens."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

import structlog

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.ports import StreamRecording
from pose_analyzer.sampling import sampling_slot
from pose_analyzer.stream_clock import StreamClock
from pose_analyzer.stream_types import (
    DropCause,
    Encoding,
    FrameContent,
    StreamFrame,
    StreamOptions,
    StreamState,
)
from pose_analyzer.wire import State, encode

log = structlog.get_logger()

MAX_UNSENT: Final = 8
"""Answers a client has not read; with more, its frames wait and become stale."""
MAX_UNANALYSED: Final = 3
"""Frames of one stream between detector and answer."""


@runtime_checkable
class Sink(Protocol):
    """Where answers go; must never block."""

    @property
    def encoding(self) -> Encoding:
        """How its messages are written."""
        ...

    @property
    def n_unsent(self) -> int:
        """Messages its reader has not taken yet."""
        ...

    def put(self, message: bytes) -> None:
        """Send this when possible."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Send what is left, then close the connection."""
        ...


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A recent answer, for those who ask later."""

    frame_index: int
    message: bytes
    encoding: Encoding


@dataclass(slots=True, eq=False)
class LiveStream:
    """State of one stream; only the event loop's thread touches it."""

    stream_id: str
    options: StreamOptions
    started_s: float
    """By the service's monotonic clock, like `served_s` and `silent_since_s`."""
    lossless: bool
    """Frames wait for their turn instead of being replaced: a file read by the service."""
    n_results_kept: int
    recording: StreamRecording | None = None
    """Where what it shows is kept; None: it is not."""
    paused: bool = False
    shed: bool = False
    ended: bool = False
    served_s: float = 0.0
    silent_since_s: float | None = None
    """Since when nobody has been connected; None while somebody is."""
    sink: Sink | None = None
    next_index: int = 0
    n_answered: int = 0
    n_detecting: int = 0
    """Frames in the detector."""
    n_analysing: int = 0
    """Frames between detector and answer."""
    n_undecodable_in_row: int = 0
    waiting: deque[StreamFrame] = field(default_factory=deque)
    dropped_since: Counter[DropCause] = field(default_factory=Counter)
    """Since the last answer."""
    dropped: Counter[DropCause] = field(default_factory=Counter)
    results: deque[KeptResult] = field(init=False)
    clock: StreamClock = field(default_factory=StreamClock)
    source_fps: float = field(init=False)
    """Average rate of what comes: as the client says, or as the file does."""
    exercise: str = ""
    """The one being counted now."""
    reason: str = ""
    """Why it is in its state, as last told."""
    problem: str | None = None
    """What is wrong with the source the service reads."""
    on_taken: Callable[[], None] | None = None
    """Called when a waiting frame has left; a file's reader then has room for another."""
    _accepted_s: float = float("-inf")
    _sampling_slot: int | None = None

    def __post_init__(self) -> None:
        self.results = deque(maxlen=self.n_results_kept)
        self.exercise = self.options.exercise
        self.source_fps = self.options.fps

    @property
    def state(self) -> StreamState:
        """What the stream is doing."""
        if self.ended:
            return StreamState.ENDED
        if self.shed:
            return StreamState.SHED
        return StreamState.PAUSED if self.paused else StreamState.ACTIVE

    @property
    def encoding(self) -> Encoding:
        """How answers are written now."""
        return Encoding.JSON if self.sink is None else self.sink.encoding

    @property
    def session_id(self) -> UUID | None:
        """Under which it is kept; None: it is not."""
        return None if self.recording is None else self.recording.session_id

    @property
    def unanswered(self) -> bool:
        """Whether any of its frames is on its way."""
        return bool(self.waiting or self.n_detecting or self.n_analysing)

    def next_frame(
        self, content: FrameContent, captured_s: float | None, received_s: float
    ) -> StreamFrame | DropCause:
        """Number and time a picture that arrived; or why it will not be analysed."""
        index = self.next_index
        self.next_index += 1
        if self.state is not StreamState.ACTIVE and not self.lossless:
            return DropCause.PAUSED
        self.clock = self.clock.stamp(captured_s, received_s)
        time_s = self.clock.time_s
        if not time_s > self._accepted_s:
            return DropCause.STALE
        if self.options.sample_fps is not None:
            slot = sampling_slot(time_s, self.options.sample_fps, self.source_fps)
            if slot == self._sampling_slot:
                return DropCause.UNSAMPLED
            self._sampling_slot = slot
        self._accepted_s = time_s
        return StreamFrame(self.stream_id, index, time_s, received_s, content, roi=self.options.roi)

    def can_be_served(self, max_in_flight: int) -> bool:
        """Whether the detector may take its newest frame now."""
        return (
            bool(self.waiting)
            and self.state is StreamState.ACTIVE
            and self.n_detecting < max_in_flight
            and self.n_detecting + self.n_analysing < max_in_flight + MAX_UNANALYSED
            and (self.sink is None or self.sink.n_unsent < MAX_UNSENT)
        )

    def take(self) -> StreamFrame:
        """Remove the frame whose turn it is."""
        frame = self.waiting.popleft()
        if self.on_taken is not None:
            self.on_taken()
        return frame

    def drop(self, cause: DropCause) -> None:
        """Count a frame that will get no answer."""
        self.dropped[cause] += 1
        self.dropped_since[cause] += 1

    def tell(self, message: Any) -> None:  # noqa: ANN401 - one of wire.ServerMessage
        """Send a message to whoever listens."""
        if self.sink is not None:
            self.sink.put(encode(message, self.sink.encoding))

    def tell_state(self, reason: str) -> None:
        """Say what the stream is doing now, and why."""
        self.reason = reason
        self.tell(State(state=self.state, reason=reason))


async def end_recording(recording: StreamRecording, last: "Future[bytes] | None") -> None:
    """Close a recording behind the frames that are still with the analysis.

    Parameters
    ----------
    recording
        Of a stream that has ended.
    last
        The repetitions not yet told, as `ports.LiveAnalysis.end` gives them.
    """
    told = b""
    if last is not None:
        try:
            told = await asyncio.wrap_future(last)
        except BackendFailedError as error:
            log.warning("last_repetitions_lost", reason=error.reason)
    recording.close(told)
