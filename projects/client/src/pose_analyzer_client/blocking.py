"""The client for scripts without an event loop."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, TypeVar

from pose_analyzer_client.client import DEFAULT_ADDRESS, PoseAnalyzerClient
from pose_analyzer_client.events import OnEvent
from pose_analyzer_client.frame_sources import Frames
from pose_analyzer_client.images import Picture
from pose_analyzer_client.options import ClientOptions, StreamOptions
from pose_analyzer_client.results import Detection, Result, ResultPage
from pose_analyzer_client.statistics import Statistics
from pose_analyzer_client.uploads import OnProgress, VideoOptions
from pose_analyzer_client.wire import StreamInfo, Video

Answer = TypeVar("Answer")


class BlockingPoseAnalyzerClient:
    """`PoseAnalyzerClient` with calls that wait; its event loop runs in a thread of its own.

    A context manager. Parameters and errors are those of `PoseAnalyzerClient`; `on_event` is called
    in that thread.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        exercise: str = "auto",
        detector: str | None = None,
        *,
        stream: StreamOptions | None = None,
        options: ClientOptions | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._client = PoseAnalyzerClient(
            address, exercise, detector, stream=stream, options=options, on_event=on_event
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: Thread | None = None

    def __enter__(self) -> "BlockingPoseAnalyzerClient":  # noqa: PYI034 - beartype
        running = Event()

        async def live() -> None:
            self._loop = asyncio.get_running_loop()
            running.set()
            await self._stop.wait()

        self._thread = Thread(target=asyncio.run, args=(live(),), name="pose-client", daemon=True)
        self._thread.start()
        running.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the stream, close all connections and end the thread."""
        if self._loop is None or self._thread is None:
            return
        try:
            self._wait(self._client.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    def start(self) -> str:
        """Start the stream; see `PoseAnalyzerClient.start`."""
        return self._wait(self._client.start())

    def detect(self, frame: Picture, captured_s: float | None = None) -> Result:
        """Have one frame analysed; see `PoseAnalyzerClient.detect_async`."""
        return self._wait(self._client.detect_async(frame, captured_s))

    def stream(
        self, frames: Frames, *, drop: bool = True, keep_images: bool = False
    ) -> Generator[Result, None, None]:
        """Answers to frames; see `PoseAnalyzerClient.stream`.

        The frames are iterated in another thread than the caller's.
        """
        yield from self._iterate(self._client.stream(frames, drop=drop, keep_images=keep_images))

    def watch(self) -> Generator[Result, None, None]:
        """Answers of a stream the service reads; see `PoseAnalyzerClient.watch`."""
        yield from self._iterate(self._client.watch())

    def pause(self) -> None:
        """See `PoseAnalyzerClient.pause`."""
        self._wait(self._client.pause())

    def resume(self) -> None:
        """See `PoseAnalyzerClient.resume`."""
        self._wait(self._client.resume())

    def change_exercise(self, exercise: str) -> None:
        """See `PoseAnalyzerClient.change_exercise`."""
        self._wait(self._client.change_exercise(exercise))

    def ping(self) -> float:
        """See `PoseAnalyzerClient.ping`."""
        return self._wait(self._client.ping())

    def detect_image(self, image: str | Path | bytes) -> Detection:
        """See `PoseAnalyzerClient.detect_image`."""
        return self._wait(self._client.detect_image(image))

    def upload_video(
        self,
        path: str | Path,
        video: VideoOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Video:
        """See `PoseAnalyzerClient.upload_video`."""
        return self._wait(self._client.upload_video(path, video, on_progress=on_progress))

    def results(self, since: int = -1, limit: int = 100) -> ResultPage:
        """See `PoseAnalyzerClient.results`."""
        return self._wait(self._client.results(since, limit))

    def streams(self) -> tuple[StreamInfo, ...]:
        """See `PoseAnalyzerClient.streams`."""
        return self._wait(self._client.streams())

    def delete(self) -> None:
        """See `PoseAnalyzerClient.delete`."""
        self._wait(self._client.delete())

    @property
    def state(self) -> str:
        """See `PoseAnalyzerClient.state`."""
        return self._client.state

    @property
    def statistics(self) -> Statistics:
        """See `PoseAnalyzerClient.statistics`."""
        return self._client.statistics

    def _iterate(self, answers: AsyncGenerator[Result, None]) -> Generator[Result, None, None]:
        waiting: asyncio.Task[Any] | None = None

        async def following() -> Result | None:
            nonlocal waiting
            waiting = asyncio.current_task()
            return await anext(answers, None)

        async def finish() -> None:
            if waiting is not None and not waiting.done():  # Ctrl-C met the caller while it waited
                waiting.cancel()
                await asyncio.wait([waiting])
            await answers.aclose()

        try:
            while (result := self._wait(following())) is not None:
                yield result
        finally:
            self._wait(finish())

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        if self._loop is None:
            work.close()
            raise RuntimeError("use the client inside its `with` block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reaches the caller's thread only
            raise
