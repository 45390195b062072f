"""Streams of frames through a session: live ones drop, recorded ones wait."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from pose_analyzer_client.errors import DisorderedFrameError, FrameLostError, UnansweredFrameError
from pose_analyzer_client.frame_sources import Frames, Sampler, TimedFrame, timed_frames
from pose_analyzer_client.ledger import Outcome
from pose_analyzer_client.results import Result
from pose_analyzer_client.session import Session
from pose_analyzer_client.signals import Signal
from pose_analyzer_client.statistics import Tally

Results = AsyncGenerator[Result, None]


@dataclass(frozen=True, slots=True)
class Way:
    """What frames go through."""

    session: Session
    encode: Callable[[Any], Awaitable[bytes]]
    sampler: Sampler
    tally: Tally


async def ask(session: Session, picture: bytes, captured_s: float) -> Outcome:
    """Send one picture and wait for what becomes of it; send it again if it did not arrive."""
    stamped_s = session.stamp(captured_s)
    if stamped_s is None:
        return DisorderedFrameError(session.next_frame, captured_s)
    while True:
        outcome = await (await session.send(picture, stamped_s))
        if not isinstance(outcome, FrameLostError) or outcome.received:
            return outcome


async def recorded_results(way: Way, frames: Frames, *, keep_images: bool) -> Results:
    """Answers to all frames, one after the other.

    The service keeps only the newest frame of a stream, so one frame is on its way at a time;
    the next is encoded meanwhile.
    """
    prepared = _encoded(way, frames)

    async def advance() -> tuple[TimedFrame, bytes] | None:
        return await anext(prepared, None)

    upcoming = asyncio.create_task(advance())
    try:
        while (item := await upcoming) is not None:
            upcoming = asyncio.create_task(advance())
            frame, picture = item
            await way.session.until_active()
            result = _result(await ask(way.session, picture, frame.captured_s))
            if result is not None:
                yield replace(result, image=frame.image) if keep_images else result
    finally:
        await _stop(upcoming)
        await prepared.aclose()


async def live_results(way: Way, frames: Frames, window: int, *, keep_images: bool) -> Results:
    """Answers in order; while `window` frames are on their way, the newest one waits.

    Answers that the caller does not fetch keep their place, so a slow caller gets fewer answers,
    but new ones.
    """
    newest: deque[TimedFrame] = deque(maxlen=1)
    sent: deque[tuple[TimedFrame, asyncio.Future[Outcome]]] = deque()
    changed = Signal()

    async def feed() -> None:
        async for frame in _sampled(way, frames):
            way.tally.n_skipped += len(newest)
            newest.append(frame)
            changed.notify()

    async def post(feeding: asyncio.Task[None]) -> None:
        while True:
            await changed.until(lambda: sum(future.done() for _, future in sent) < window)
            await way.session.until_room(window)
            await changed.until(lambda: newest or feeding.done())
            if not newest:
                return
            frame = newest.pop()
            picture = await way.encode(frame.image)
            stamped_s = way.session.stamp(frame.captured_s)
            if stamped_s is None:
                way.tally.n_skipped += 1
                continue
            sent.append((frame, await way.session.send(picture, stamped_s)))
            changed.notify()

    async with (
        _running(feed(), changed) as feeding,
        _running(post(feeding), changed) as posting,
    ):
        while True:
            await changed.until(lambda: sent or posting.done())
            if not sent:
                posting.result()
                feeding.result()
                return
            frame, future = sent[0]
            result = _result(await future)
            sent.popleft()
            changed.notify()
            if result is not None:
                yield replace(result, image=frame.image) if keep_images else result


async def _sampled(way: Way, frames: Frames) -> AsyncIterator[TimedFrame]:
    async for frame in timed_frames(frames):
        if way.sampler.takes(frame.captured_s):
            yield frame
        else:
            way.tally.n_unsampled += 1


async def _encoded(way: Way, frames: Frames) -> AsyncGenerator[tuple[TimedFrame, bytes], None]:
    async for frame in _sampled(way, frames):
        yield frame, await way.encode(frame.image)


def _result(outcome: Outcome) -> Result | None:
    """The answer, or None where only this frame has none.

    Raises
    ------
    Exception
        There will be no more answers.
    """
    if isinstance(outcome, Result):
        return outcome
    if isinstance(outcome, UnansweredFrameError):
        return None
    raise outcome


@asynccontextmanager
async def _running(
    work: Coroutine[Any, Any, None], changed: Signal
) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: changed.notify())
    try:
        yield task
    finally:
        await _stop(task)


async def _stop(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
