"""Many live streams on one detector: newest-frame slots, fair batches, every drop counted.

Everything here runs on one event loop; detector and analysis answer from their own threads or
processes. A frame waits in its stream's slot until the detector has room, and a newer one takes
its place, so that no stream delays another and latency cannot grow.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import structlog

from pose_analyzer import wire
from pose_analyzer.batching import BatchPolicy, next_turns
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.live_stream import KeptResult, LiveStream
from pose_analyzer.ports import FramePipeline, LiveAnalysis, StreamMetrics
from pose_analyzer.stream_types import (
    AnalysedFrame,
    DropCause,
    Encoding,
    FrameContent,
    FrameFailure,
    FrameOutcome,
    FramePoses,
    StreamFrame,
)

MAX_UNDECODABLE_IN_ROW: Final = 100
CLOSE_UNDECODABLE: Final = 1007  # RFC 6455: data not consistent with the type of the message

log = structlog.get_logger()

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A frame that is with the analysis."""

    frame: StreamFrame
    found: FramePoses
    encoding: Encoding
    detected_s: float


class ConcurrentStreamProcessor:
    """Streams that share one detector.

    Parameters
    ----------
    pipeline
        The detector.
    analysis
        Follows the people it finds.
    metrics
        Is told what happens.
    clock
        Monotonic seconds.
    policy
        When waiting frames become a batch.
    """

    def __init__(
        self,
        pipeline: FramePipeline,
        analysis: LiveAnalysis,
        metrics: StreamMetrics,
        clock: Clock,
        policy: BatchPolicy | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._analysis = analysis
        self._metrics = metrics
        self._clock = clock
        self._policy = policy or BatchPolicy()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, LiveStream] = {}
        self._lined_up = False
        self._timer: asyncio.TimerHandle | None = None
        # What other threads have to say; the loop is woken once for all of it.
        self._inbox: deque[Callable[[], None]] = deque()
        self._woken = False
        # While a GPU works; on a CPU the detector needs it all.
        self._has_spare_time = pipeline.device != "cpu"
        pipeline.on_idle(self._tell_idle)

    def offer(
        self, stream: LiveStream, content: FrameContent, captured_s: float | None = None
    ) -> None:
        """Take a picture that arrived; it is answered, replaced by a newer one, or refused."""
        frame = stream.next_frame(content, captured_s, self._clock())
        if isinstance(frame, DropCause):
            self._drop(stream, frame)
            if stream.on_taken is not None:
                stream.on_taken()
            return
        if stream.waiting and not stream.lossless:
            stream.take()
            self._drop(stream, DropCause.STALE)
        stream.waiting.append(frame)
        self._waiting[stream.stream_id] = stream
        self.pump()

    def discard_waiting(self, stream: LiveStream, cause: DropCause) -> None:
        """Give up frames not begun yet."""
        while stream.waiting:
            stream.take()
            self._drop(stream, cause)
        self._waiting.pop(stream.stream_id, None)

    def pump(self) -> None:
        """Begin as many batches as the detector takes."""
        while self._waiting:
            n_idle = self.pipeline.n_idle()
            max_batch = self.pipeline.max_batch
            # A detector that takes single frames gains nothing from a queue but older frames.
            room = max_batch if max_batch > 1 and not self._lined_up else 0
            if n_idle == 0 and room == 0:
                return
            limit = self.pipeline.max_in_flight_per_stream
            ready = [
                stream
                for stream in self._waiting.values()
                if stream.can_be_served(limit) and self._analysis.has_room(stream.stream_id)
            ]
            now_s = self._clock()
            waits_s = [now_s - stream.waiting[0].received_s for stream in ready]
            oldest_s = max(waits_s, default=0.0)
            if not self._policy.is_due(len(ready), oldest_s, n_idle, room):
                self._wait_for_window(oldest_s, n_ready=len(ready))
                return
            self._lined_up = n_idle == 0
            self._begin(self._take(ready, max_batch, now_s))

    def _take(
        self, ready: Sequence[LiveStream], n_frames: int, now_s: float
    ) -> list[tuple[LiveStream, StreamFrame]]:
        """Frames of the next batch; more than one of a stream only if no other stream waits."""
        limit = self.pipeline.max_in_flight_per_stream
        batch: list[tuple[LiveStream, StreamFrame]] = []
        while ready and len(batch) < n_frames:
            for stream in next_turns(ready, n_frames - len(batch)):
                batch.append((stream, stream.take()))
                stream.served_s = now_s
                stream.n_detecting += 1
                if not stream.waiting:
                    del self._waiting[stream.stream_id]
            ready = [stream for stream in ready if stream.can_be_served(limit)]
        return batch

    def _begin(self, batch: list[tuple[LiveStream, StreamFrame]]) -> None:
        self._metrics.batch(len(batch))
        future = self.pipeline.submit([frame for _, frame in batch])
        future.add_done_callback(lambda done: self._post(partial(self._on_detected, batch, done)))
        stream = batch[0][0]
        if len(batch) == 1 and self._has_spare_time and stream.n_analysing == 0:
            self._analysis.rehearse(stream.stream_id)

    def _wait_for_window(self, oldest_s: float, n_ready: int) -> None:
        if self._timer is None and n_ready:
            delay_s = max(self._policy.window_s - oldest_s, 0.0)
            self._timer = self._loop.call_later(delay_s, self._on_window)

    def _on_window(self) -> None:
        self._timer = None
        self.pump()

    def _post(self, action: Callable[[], None]) -> None:
        """Have the event loop's thread do this; from any thread."""
        self._inbox.append(action)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._read_inbox)

    def _read_inbox(self) -> None:
        self._woken = False
        try:
            while self._inbox:
                self._inbox.popleft()()
        finally:
            # A defect in one action must not keep the others from being done.
            if self._inbox:
                self._woken = True
                self._loop.call_soon(self._read_inbox)

    def _tell_idle(self) -> None:
        self._post(self._on_idle)

    def _on_idle(self) -> None:
        self._lined_up = False
        self.pump()

    def _on_detected(
        self,
        batch: list[tuple[LiveStream, StreamFrame]],
        done: "Future[list[FrameOutcome]]",
    ) -> None:
        for stream, _ in batch:
            stream.n_detecting -= 1
        try:
            outcomes = done.result()
        except BackendFailedError as error:
            log.warning("detector_failed", detector=self.pipeline.name, reason=error.reason)
            outcomes = [FrameFailure(DropCause.OVERLOAD, str(error))] * len(batch)
        for (stream, frame), outcome in zip(batch, outcomes, strict=True):
            if stream.ended:
                continue
            if isinstance(outcome, FrameFailure):
                self._on_failure(stream, frame, outcome)
            else:
                self._analyse(stream, frame, outcome)
        self._analysis.send()
        self.pump()

    def _on_failure(self, stream: LiveStream, frame: StreamFrame, failure: FrameFailure) -> None:
        self._drop(stream, failure.cause)
        code = "overload"
        if failure.cause is DropCause.UNDECODABLE:
            code = "undecodable-frame"
            stream.n_undecodable_in_row += 1
        stream.tell(wire.Error(code=code, detail=failure.detail, frame=frame.index))
        if stream.n_undecodable_in_row >= MAX_UNDECODABLE_IN_ROW and stream.sink is not None:
            stream.sink.close(
                CLOSE_UNDECODABLE, f"{MAX_UNDECODABLE_IN_ROW} pictures in a row are unreadable"
            )
            stream.n_undecodable_in_row = 0

    def _analyse(self, stream: LiveStream, frame: StreamFrame, found: FramePoses) -> None:
        stream.n_undecodable_in_row = 0
        stream.n_analysing += 1
        asked = _Asked(frame, found, stream.encoding, self._clock())
        future = self._analysis.analyse(
            stream.stream_id, frame.index, frame.time_s, found.poses, asked.encoding
        )
        answer = partial(self._on_analysed, stream, asked)
        future.add_done_callback(lambda done: self._post(partial(answer, done)))

    def _on_analysed(
        self, stream: LiveStream, asked: "_Asked", done: "Future[AnalysedFrame]"
    ) -> None:
        stream.n_analysing -= 1
        try:
            analysed = done.result()
        except BackendFailedError as error:
            log.warning("analysis_failed", stream_id=stream.stream_id, reason=error.reason)
            if not stream.ended:
                failure = FrameFailure(DropCause.OVERLOAD, str(error))
                self._on_failure(stream, asked.frame, failure)
        else:
            if not stream.ended:
                self._answer(stream, asked, analysed)
            if stream.recording is not None:
                stream.recording.add(asked.frame, analysed)
        # Others may wait for the room this leaves, whatever became of it.
        if self._waiting:
            self.pump()

    def _answer(self, stream: LiveStream, asked: "_Asked", analysed: AnalysedFrame) -> None:
        frame, found, encoding = asked.frame, asked.found, asked.encoding
        now_s = self._clock()
        total_s = now_s - frame.received_s
        postprocess_s = found.postprocess_s + now_s - asked.detected_s
        busy_s = found.decode_s + found.infer_s + postprocess_s
        timing = wire.Timing(
            queue_s=max(total_s - busy_s, 0.0),
            decode_s=found.decode_s,
            infer_s=found.infer_s,
            postprocess_s=postprocess_s,
        )
        result = wire.WrittenResult(
            frame=frame.index,
            captured_s=frame.time_s,
            received_s=frame.received_s - stream.started_s,
            answered_s=now_s - stream.started_s,
            width_px=found.width_px,
            height_px=found.height_px,
            people=msgspec.Raw(analysed.people),
            timing=timing,
            dropped=wire.count_drops(stream.dropped_since),
        )
        message = wire.encode(result, encoding)
        stream.dropped_since.clear()
        stream.n_answered += 1
        stream.results.append(KeptResult(frame.index, message, encoding))
        if stream.sink is not None and stream.sink.encoding is encoding:
            stream.sink.put(message)
        self._metrics.answered(
            {
                "queue": timing.queue_s,
                "decode": timing.decode_s,
                "infer": timing.infer_s,
                "postprocess": timing.postprocess_s,
            },
            total_s,
            analysed.n_new_repetitions,
        )

    def _drop(self, stream: LiveStream, cause: DropCause) -> None:
        stream.drop(cause)
        self._metrics.dropped(cause)
