"""What is remembered about memory and speed: how many frames fit, how many a second."""

import threading
from collections.abc import Callable
from typing import Final

import torch

GROW_AFTER_S: Final = 30.0
"""After so long without trouble twice as many frames are tried again."""
_RATE_WEIGHT: Final = 0.1
# nvJPEG's, cuDNN's and cuBLAS' errors reach Python as texts.
_OUT_OF_MEMORY_TEXTS: Final = ("out of memory", "alloc_failed", "failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that GPU memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY_TEXTS)


class BatchLimit:
    """How many frames a batch may have; thread-safe.

    Parameters
    ----------
    configured
        Never more than this.
    clock
        Monotonic seconds.
    """

    def __init__(self, configured: int, clock: Callable[[], float]) -> None:
        self._ceiling = configured
        self._configured = configured
        self._fits = configured
        self._changed_s = clock()
        self._clock = clock
        self._lock = threading.Lock()

    def current(self) -> int:
        """Most frames at present."""
        with self._lock:
            now_s = self._clock()
            if self._fits < self._configured and now_s >= self._changed_s + GROW_AFTER_S:
                self._fits = min(2 * self._fits, self._configured)
                self._changed_s = now_s
            return min(self._fits, self._ceiling)

    def impose(self, n_frames: int) -> None:
        """Never more than so many until told otherwise."""
        with self._lock:
            self._ceiling = max(1, min(n_frames, self._configured))

    def halve(self, n_frames: int) -> int:
        """Take note that `n_frames` did not fit.

        Returns
        -------
        int
            Most frames from now on.
        """
        with self._lock:
            self._fits = max(1, min(self._fits, n_frames) // 2)
            self._changed_s = self._clock()
            return min(self._fits, self._ceiling)


class Throughput:
    """Frames a second at full load.

    Only batches that followed close upon another, and were not much smaller than they could have
    been, say something about full load.
    """

    def __init__(self) -> None:
        self._frames_per_s = 0.0
        self._n_frames = 1
        self._ended_s = 0.0

    @property
    def frames_per_s(self) -> float:
        """0 before anything is known."""
        return self._frames_per_s

    def set(self, frames_per_s: float, n_frames: int) -> None:
        """Begin with what batches of `n_frames` were measured to give."""
        self._frames_per_s, self._n_frames = frames_per_s, n_frames

    def add(self, n_frames: int, max_batch: int, began_s: float, ended_s: float) -> None:
        """Learn from a batch; batches come in order."""
        followed_close = began_s < self._ended_s < ended_s
        busy_s, self._ended_s = ended_s - self._ended_s, ended_s
        if not followed_close or 2 * n_frames < min(self._n_frames, max_batch):
            return
        self._frames_per_s += _RATE_WEIGHT * (n_frames / busy_s - self._frames_per_s)
