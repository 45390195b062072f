"""From a source's thread to the event loop: the frames a service reads itself."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from pose_analyzer.concurrent_stream_processor import ConcurrentStreamProcessor
from pose_analyzer.live_stream import LiveStream
from pose_analyzer.stream_types import FrameContent
from pose_analyzer.wire import Error

READ_AHEAD_FRAMES: Final = 24
"""Frames of a file read ahead of the detector."""

log = structlog.get_logger()


class SourceFeed:
    """Implements `ports.FrameReceiver` for one stream; made on the event loop's thread."""

    def __init__(self, stream: LiveStream, processor: ConcurrentStreamProcessor) -> None:
        self._stream = stream
        self._processor = processor
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(READ_AHEAD_FRAMES)
        self.ended = False
        """No more frames will come."""
        stream.on_taken = self._room.release

    def on_rate(self, fps: float) -> None:
        """Sample as a recording of this rate is sampled."""
        self._call(partial(setattr, self._stream, "source_fps", fps))

    def on_frame(self, time_s: float, content: FrameContent) -> None:
        """Next frame; for files it returns when there is room for another."""
        if self._stream.lossless:
            self._room.acquire()
        self._call(partial(self._offer, time_s, content))

    def on_problem(self, problem: str | None) -> None:
        """Say what is wrong; None: all is well again."""
        self._call(partial(self._set_problem, problem))

    def on_end(self, problem: str | None) -> None:
        """No more frames; with the reason if that is a failure."""
        self._call(partial(self._end, problem))

    def _call(self, action: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:
            # The loop has been closed while the source was still delivering.
            log.debug("source_outlived_service", stream_id=self._stream.stream_id)

    def _offer(self, time_s: float, content: FrameContent) -> None:
        if not self._stream.ended:
            self._processor.offer(self._stream, content, time_s)
        else:
            self._room.release()

    def _set_problem(self, problem: str | None) -> None:
        self._stream.problem = problem
        if problem is None:
            self._stream.tell_state("the source is back")
        else:
            self._stream.tell(Error(code="source-lost", detail=problem))

    def _end(self, problem: str | None) -> None:
        self._stream.problem = problem
        self.ended = True
