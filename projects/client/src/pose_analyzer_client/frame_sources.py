"""Frames of any kind of iterable, each with the time at which it was taken."""

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from pose_analyzer_client.images import Picture

Frames = (
    AsyncIterable[Picture]
    | AsyncIterable[tuple[float, Picture]]
    | Iterable[Picture]
    | Iterable[tuple[float, Picture]]
)
"""Images, or pairs of capture time in seconds (on any steadily running clock) and image."""

_END: Final = object()
_EARLY_RATIO: Final = 0.25  # a frame this share of its period early still counts as on time


@dataclass(frozen=True, slots=True, eq=False)
class TimedFrame:
    """One frame of the caller."""

    captured_s: float
    image: Any
    """Something of `Picture`, unless the caller erred."""


async def timed_frames(frames: Frames) -> AsyncIterator[TimedFrame]:
    """Frames in the caller's order; a frame without time was taken now."""
    items = frames if isinstance(frames, AsyncIterable) else _off_the_loop(frames)
    async for item in items:
        if isinstance(item, tuple):
            captured_s, image = item
            yield TimedFrame(float(captured_s), image)
        else:
            yield TimedFrame(time.monotonic(), item)


async def _off_the_loop(frames: Iterable[Any]) -> AsyncIterator[Any]:
    """Iterate in one thread of its own: cameras block, and some are bound to a thread."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="pose-frames")
    try:
        iterator = await loop.run_in_executor(thread, iter, frames)
        while (item := await loop.run_in_executor(thread, next, iterator, _END)) is not _END:
            yield item
    finally:
        thread.shutdown(wait=False)


class Sampler:
    """Leaves frames out, by their times: the first one of each period of a grid is taken.

    Parameters
    ----------
    sample_fps
        Rate of the grid; None takes all.
    source_fps
        Expected rate of the frames. Their times jitter, so one that is a quarter of its own period
        early counts as on time.
    """

    def __init__(self, sample_fps: float | None, source_fps: float) -> None:
        self._sample_fps = sample_fps
        self._early = _EARLY_RATIO * min(sample_fps / source_fps, 1.0) if sample_fps else 0.0
        self._origin_s: float | None = None
        self._last_slot: int | None = None

    def takes(self, captured_s: float) -> bool:
        """Whether this frame is to be sent."""
        if self._sample_fps is None:
            return True
        if self._origin_s is None:
            self._origin_s = captured_s
        slot = math.floor((captured_s - self._origin_s) * self._sample_fps + self._early)
        taken, self._last_slot = slot != self._last_slot, slot
        return taken
