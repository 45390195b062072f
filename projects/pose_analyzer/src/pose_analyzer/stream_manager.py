"""Every live stream of the service: started, resumed, fed by its source, ended."""

import asyncio
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from pose_analyzer.admission import AdmissionConfig, Load, Refused, admit
from pose_analyzer.concurrent_stream_processor import ConcurrentStreamProcessor
from pose_analyzer.errors import NoCapacityError, UnknownStreamError
from pose_analyzer.live_stream import LiveStream, Sink, end_recording
from pose_analyzer.on_demand import OnDemand
from pose_analyzer.ports import (
    FramePipeline,
    FrameReceiver,
    LiveAnalysis,
    SourceReader,
    StreamMetrics,
    StreamRecorder,
)
from pose_analyzer.source_feed import SourceFeed
from pose_analyzer.stream_types import DropCause, StreamOptions, StreamState
from pose_analyzer.vram_governor import VramReading
from pose_analyzer.wire import Ready

CLOSE_ENDED: Final = 1000
CLOSE_SHUTDOWN: Final = 1001
CLOSE_TAKEN_OVER: Final = 4409
HOUSEKEEPING_S: Final = 0.2

log = structlog.get_logger()

PipelineFactory = Callable[[str], FramePipeline]
"""Makes the detector of a model such as ``yolo11n-pose``."""
MemoryReader = Callable[[str], VramReading | None]
"""How full the GPU behind a device such as ``cuda:0`` is; None where there is none."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source the service reads itself."""

    open: Callable[[FrameReceiver, str], SourceReader]
    """Makes the reader; the text is the device whose memory the frames may stay in."""
    lossless: bool
    """A file: every frame counts. A camera: only the newest does."""


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """Limits of the service."""

    admission: AdmissionConfig
    grace_s: float = 30.0
    """For so long a stream outlives its connection."""
    n_results_kept: int = 300


@dataclass(slots=True, eq=False)
class _Entry:
    stream: LiveStream
    processor: ConcurrentStreamProcessor
    feed: SourceFeed | None = None
    reader: SourceReader | None = None
    connected_before: bool = False
    shed_reason: str = ""


class StreamManager:
    """Streams by id. All methods belong to the event loop's thread.

    Parameters
    ----------
    make_pipeline
        Called in a thread when a model is first asked for.
    analysis
        Follows the people of all streams.
    metrics
        Is told what happens.
    config
        Limits.
    read_memory
        For admission; may block for milliseconds, called in a thread.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        make_pipeline: PipelineFactory,
        analysis: LiveAnalysis,
        metrics: StreamMetrics,
        config: ManagerConfig,
        read_memory: MemoryReader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipelines = OnDemand(make_pipeline)
        self._processors: dict[str, ConcurrentStreamProcessor] = {}
        self._analysis = analysis
        self._metrics = metrics
        self._config = config
        self._read_memory = read_memory
        self._recorder: StreamRecorder | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._closing = False
        self.n_ended = 0
        """Streams that have ended so far."""

    @property
    def streams(self) -> tuple[LiveStream, ...]:
        """All streams, oldest first."""
        return tuple(entry.stream for entry in self._entries.values())

    @property
    def pipelines(self) -> tuple[FramePipeline, ...]:
        """Detectors in memory."""
        return self._pipelines.made

    def get(self, stream_id: str) -> LiveStream:
        """Return the stream of that id.

        Raises
        ------
        UnknownStreamError
            There is none.
        """
        return self._entry(stream_id).stream

    def pipeline_of(self, stream_id: str) -> FramePipeline:
        """Detector of a stream."""
        return self._entry(stream_id).processor.pipeline

    def record_with(self, recorder: StreamRecorder) -> None:
        """Have what streams show kept, of those that start from now on."""
        self._recorder = recorder

    async def start(self, options: StreamOptions, source: Source | None = None) -> LiveStream:
        """Begin a stream.

        Raises
        ------
        NoCapacityError
            It would not get its share, or the service is ending.
        UnknownNameError, ModelUnavailableError, BackendFailedError
            Its detector or exercise cannot be had.
        """
        pipeline = await self._pipelines.get(options.detector)
        memory = await asyncio.to_thread(self._read_memory, pipeline.device)
        # No pause between admission and registration: a hundred clients may ask at once.
        self._admit(pipeline, options, memory)
        processor = self._processors.get(options.detector)
        if processor is None:
            processor = ConcurrentStreamProcessor(
                pipeline, self._analysis, self._metrics, self._clock
            )
            self._processors[options.detector] = processor
        now_s = self._clock()
        stream = LiveStream(
            stream_id=secrets.token_urlsafe(16),
            options=options,
            started_s=now_s,
            lossless=source is not None and source.lossless,
            n_results_kept=self._config.n_results_kept,
            silent_since_s=now_s,
        )
        self._analysis.open(
            stream.stream_id,
            options.exercise,
            options.form,
            with_rows=self._recorder is not None,
        )
        if self._recorder is not None:
            stream.recording = self._recorder.begin(stream.stream_id, options, pipeline.name)
        entry = _Entry(stream, processor)
        self._entries[stream.stream_id] = entry
        if source is not None:
            entry.feed = SourceFeed(stream, processor)
            entry.reader = source.open(entry.feed, pipeline.device)
            entry.reader.start()
        log.info("stream_started", stream_id=stream.stream_id, detector=pipeline.name)
        self._count_streams()
        return stream

    def attach(self, stream_id: str, sink: Sink) -> LiveStream:
        """Have a stream's answers sent here from now on; an earlier listener is sent away.

        Raises
        ------
        UnknownStreamError
            There is no such stream.
        """
        entry = self._entry(stream_id)
        stream = entry.stream
        if stream.sink is not None:
            stream.sink.close(CLOSE_TAKEN_OVER, "another connection took the stream over")
        resumed, entry.connected_before = entry.connected_before, True
        stream.sink, stream.silent_since_s = sink, None
        stream.clock = stream.clock.reconnected()
        stream.tell(
            Ready(
                stream_id=stream_id,
                next_frame=stream.next_index,
                resumed=resumed,
                exercise=stream.exercise,
                detector=entry.processor.pipeline.name,
                device=entry.processor.pipeline.device,
                state=stream.state,
            )
        )
        if stream.problem is not None:
            stream.tell_state(stream.problem)
        elif stream.state is not StreamState.ACTIVE:
            stream.tell_state(stream.reason)
        if stream.ended:
            sink.close(CLOSE_ENDED, "the stream has ended")
        # The earlier listener may have kept its stream back by not reading.
        entry.processor.pump()
        return stream

    def detach(self, stream_id: str, sink: Sink) -> None:
        """Take note that a connection is gone; its stream waits for another one."""
        entry = self._entries.get(stream_id)
        if entry is not None and entry.stream.sink is sink:
            entry.stream.sink = None
            entry.stream.silent_since_s = self._clock()
            entry.processor.pump()

    def offer(self, stream: LiveStream, content: bytes, captured_s: float | None) -> None:
        """Take a picture a client sent."""
        self._entry(stream.stream_id).processor.offer(stream, content, captured_s)

    def drained(self, stream_id: str) -> None:
        """Take note that a client has read its answers."""
        entry = self._entries.get(stream_id)
        if entry is not None and entry.stream.waiting:
            entry.processor.pump()

    def pause(self, stream_id: str) -> LiveStream:
        """Stop analysing a stream until `resume`."""
        return self._set_paused(stream_id, "paused by the client", paused=True)

    def resume(self, stream_id: str) -> LiveStream:
        """Undo `pause`; a stream that was shed stays so until there is memory."""
        return self._set_paused(stream_id, "resumed by the client", paused=False)

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        """Count another exercise from now on, which the caller has checked to exist."""
        stream = self.get(stream_id)
        self._analysis.change_exercise(stream_id, exercise)
        stream.exercise = exercise

    def end(self, stream_id: str, reason: str, code: int = CLOSE_ENDED) -> None:
        """End a stream and forget it.

        Raises
        ------
        UnknownStreamError
            There is no such stream.
        """
        entry = self._entry(stream_id)
        self._finish(entry, reason, code)
        del self._entries[stream_id]
        self._count_streams()

    def shed(self, stream_ids: Sequence[str], reason: str) -> None:
        """Stop analysing these streams for lack of memory, and tell their clients.

        Those that have ended since they were chosen are passed over, here and in `unshed`.
        """
        for entry in self._going_on(stream_ids):
            entry.stream.shed, entry.shed_reason = True, reason
            self._after_change(entry, reason)

    def unshed(self, stream_ids: Sequence[str], reason: str) -> None:
        """Analyse these streams again, and tell their clients."""
        for entry in self._going_on(stream_ids):
            entry.stream.shed = False
            self._after_change(entry, reason)

    def keep_house(self) -> None:
        """End what is over: streams left alone, files read to their end."""
        now_s = self._clock()
        for entry in tuple(self._entries.values()):
            stream = entry.stream
            source_ended = entry.feed is not None and entry.feed.ended
            if source_ended and not stream.ended and not stream.unanswered:
                self._finish(entry, stream.problem or "the source has ended", CLOSE_ENDED)
            silent_s = 0.0 if stream.silent_since_s is None else now_s - stream.silent_since_s
            fed_by_client = stream.options.source is None
            if silent_s > self._config.grace_s and (fed_by_client or stream.ended):
                self.end(stream.stream_id, "nobody was connected")
        self._count_streams()

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self.keep_house()

    def end_all(self) -> None:
        """Let no stream begin any more, and end those there are."""
        self._closing = True
        for stream_id in tuple(self._entries):
            self.end(stream_id, "the service is shutting down", CLOSE_SHUTDOWN)

    async def close(self) -> None:
        """End all streams and free the detectors."""
        self.end_all()
        for pipeline in self._pipelines.made:
            await asyncio.to_thread(pipeline.close)
        self._pipelines.clear()
        await asyncio.to_thread(self._analysis.close)
        await asyncio.gather(*self._ending)

    def _entry(self, stream_id: str) -> _Entry:
        entry = self._entries.get(stream_id)
        if entry is None:
            raise UnknownStreamError(stream_id)
        return entry

    def _going_on(self, stream_ids: Sequence[str]) -> list[_Entry]:
        entries = (self._entries.get(stream_id) for stream_id in stream_ids)
        return [entry for entry in entries if entry is not None and not entry.stream.ended]

    def _admit(
        self, pipeline: FramePipeline, options: StreamOptions, memory: VramReading | None
    ) -> None:
        if self._closing:
            raise NoCapacityError("The service is shutting down.", 10.0)
        alive = [stream for stream in self.streams if not stream.ended]
        decision = admit(
            self._config.admission,
            Load(
                n_streams=len(alive),
                expected_fps_total=math.fsum(stream.options.expected_fps for stream in alive),
                capacity_fps=pipeline.frames_per_second(),
                vram_used_bytes=None if memory is None else memory.used_bytes,
                vram_total_bytes=None if memory is None else memory.total_bytes,
                n_shed=sum(stream.shed for stream in alive),
            ),
            options.expected_fps,
        )
        if isinstance(decision, Refused):
            self._metrics.governed("refuse")
            raise NoCapacityError(decision.reason, decision.retry_after_s)

    def _set_paused(self, stream_id: str, reason: str, *, paused: bool) -> LiveStream:
        entry = self._entry(stream_id)
        if not entry.stream.ended:
            entry.stream.paused = paused
            self._after_change(entry, reason)
        return entry.stream

    def _after_change(self, entry: _Entry, reason: str) -> None:
        stream = entry.stream
        if stream.state is not StreamState.ACTIVE and not stream.lossless:
            entry.processor.discard_waiting(stream, DropCause.PAUSED)
        if stream.shed and reason != entry.shed_reason:
            reason = f"{reason}; {entry.shed_reason}"
        stream.tell_state(reason)
        entry.processor.pump()
        self._count_streams()

    def _finish(self, entry: _Entry, reason: str, code: int) -> None:
        stream = entry.stream
        if stream.ended:
            return
        stream.ended = True
        self.n_ended += 1
        stream.tell_state(reason)
        if stream.sink is not None:
            stream.sink.close(code, reason)
        else:
            # A file's results may be fetched for a while after its end.
            stream.silent_since_s = self._clock()
        entry.processor.discard_waiting(stream, DropCause.PAUSED)
        if entry.reader is not None:
            # It may have to wait for a decoder to come back.
            threading.Thread(target=entry.reader.close, name="source-end", daemon=True).start()
        last = self._analysis.end(stream.stream_id)
        if stream.recording is not None:
            task = asyncio.create_task(end_recording(stream.recording, last))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        entry.processor.pipeline.forget(stream.stream_id)
        log.info(
            "stream_ended",
            stream_id=stream.stream_id,
            reason=reason,
            n_answered=stream.n_answered,
            n_dropped=sum(stream.dropped.values()),
        )

    def _count_streams(self) -> None:
        self._metrics.streams(Counter(stream.state for stream in self.streams))
