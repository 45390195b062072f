"""Frames decoded ahead of who needs them."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Final

from pose_analyzer.types import Frame

_QUEUE_FRAMES: Final = 4
# A source that does not answer is left to its (daemon) thread after so long.
_STOP_S: Final = 5.0


class Prefetcher:
    """Decodes in a thread of its own, a few frames ahead.

    Parameters
    ----------
    frames
        Read in that thread only.
    n_ahead
        At most so many frames wait.
    """

    def __init__(self, frames: Iterator[Frame], n_ahead: int = _QUEUE_FRAMES) -> None:
        self._frames = frames
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(n_ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def __enter__(self) -> Iterator[Frame]:
        self._thread.start()
        return iter(self._next, None)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        give_up_s = time.monotonic() + _STOP_S
        # The decoder may wait for a place in the queue, or for a source that delivers nothing.
        while self._thread.is_alive() and time.monotonic() < give_up_s:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for frame in self._frames:
                self._queue.put(frame)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            last = error
        self._queue.put(last)

    def _next(self) -> Frame | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item
