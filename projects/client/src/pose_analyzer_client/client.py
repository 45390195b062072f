"""The asynchronous client."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType

from pose_analyzer_client.addresses import ServiceAddress
from pose_analyzer_client.errors import StreamEndedError, StreamPausedError
from pose_analyzer_client.events import OnEvent
from pose_analyzer_client.frame_sources import Frames, Sampler
from pose_analyzer_client.images import Picture, encode_image
from pose_analyzer_client.options import ClientOptions, StreamOptions, StreamRequest
from pose_analyzer_client.rest import RestClient
from pose_analyzer_client.results import Detection, Result, ResultPage
from pose_analyzer_client.session import ACTIVE, Session
from pose_analyzer_client.statistics import Statistics, Tally
from pose_analyzer_client.streaming import Way, ask, live_results, recorded_results
from pose_analyzer_client.uploads import OnProgress, VideoOptions, VideoUpload
from pose_analyzer_client.wire import StreamInfo, Video

DEFAULT_ADDRESS = "ws://localhost:8001"
AUTO = "auto"


class PoseAnalyzerClient:
    """One stream of frames through a pose analyzer, and the service's single requests.

    An asynchronous context manager. The stream is started by the first call that needs it, or by
    `start`; when the context is left it is deleted. All errors derive from
    `PoseAnalyzerClientError`.

    Parameters
    ----------
    address
        The service's; ws, wss, http and https are accepted and mean the same service.
    exercise
        What to count: ``auto`` or the name of an exercise.
    detector
        Name of a detector; None leaves it to the service.
    stream
        More of what is asked of the service.
    options
        How the client behaves.
    on_event
        Called on the event loop when the stream's state changes, its connection breaks and comes
        back, or something sent could not be used. What it raises ends the stream.

    Raises
    ------
    InvalidAddressError
        Not an address.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        exercise: str = AUTO,
        detector: str | None = None,
        *,
        stream: StreamOptions | None = None,
        options: ClientOptions | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._address = ServiceAddress.parse(address)
        self._request = StreamRequest(exercise, detector, stream or StreamOptions())
        self._options = options or ClientOptions()
        self._on_event = on_event
        self._tally = Tally()
        self._rest = RestClient(self._address, self._options)
        self._session: Session | None = None
        self._starting = asyncio.Lock()
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> "PoseAnalyzerClient":  # noqa: PYI034 - beartype
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Delete the stream and close all connections."""
        try:
            if self._session is not None:
                await self._session.aclose()
        finally:
            await self._rest.aclose()

    async def start(self) -> str:
        """Start the stream and connect to it, unless that has been done.

        Returns
        -------
        str
            Its stream_id.

        Raises
        ------
        ServiceUnreachableError
            Nothing answers at the address.
        NoCapacityError
            The service has no room, also after `ClientOptions.capacity_wait_s`.
        RequestRefusedError
            The service does not know the exercise or the detector, or refuses the source.
        """
        return (await self._opened()).started.stream_id

    async def detect_async(self, frame: Picture, captured_s: float | None = None) -> Result:
        """Have one frame analysed as the next one of the stream, and wait for its answer.

        Calls at the same time wait for each other, since the service keeps only the newest frame
        of a stream.

        Parameters
        ----------
        frame
            An array, a PIL image, or the bytes of a JPEG, PNG or WebP file.
        captured_s
            When it was taken, on any clock in seconds that runs steadily; by default now, by
            `time.monotonic`. Times that go back by more than a second begin another clock.

        Raises
        ------
        UnansweredFrameError
            This frame got no answer, and why; the next may.
        StreamPausedError
            The stream is paused at present.
        StreamClosedError
            The stream is over.
        UnreadableImageError
            Not an image.
        """
        session = await self._opened()
        async with self._asking:
            session.check()
            if session.state != ACTIVE:
                raise StreamPausedError(session.state, session.state_reason)
            taken_s = time.monotonic() if captured_s is None else captured_s
            outcome = await ask(session, await self._encode(frame), taken_s)
        if isinstance(outcome, Result):
            return outcome
        raise outcome

    async def stream(
        self, frames: Frames, *, drop: bool = True, keep_images: bool = False
    ) -> AsyncGenerator[Result, None]:
        """Answers to frames, in order, until the frames or the stream end.

        Parameters
        ----------
        frames
            Images, or pairs (capture time in seconds, image); an asynchronous iterable, or any
            other, which is iterated in a thread of its own.
        drop
            True, for live input: while `ClientOptions.window` frames are on their way, newer frames
            replace the one that waits. False, for recorded input: each frame is sent once the
            one before is answered.
        keep_images
            Give each answer the image it belongs to, as `Result.image`.

        Raises
        ------
        StreamClosedError
            The stream is over, other than by its end.
        UnreadableImageError
            Not an image.
        """
        session = await self._opened()
        session.check()
        stream = self._request.options
        way = Way(session, self._encode, Sampler(stream.sample_fps, stream.fps), self._tally)
        if drop:
            results = live_results(way, frames, self._options.window, keep_images=keep_images)
        else:
            results = recorded_results(way, frames, keep_images=keep_images)
        try:
            async for result in results:
                yield result
        except StreamEndedError:
            return
        finally:
            await results.aclose()

    async def watch(self) -> AsyncGenerator[Result, None]:
        """Answers of a stream whose frames the service reads by itself (`StreamOptions.source`).

        Of answers that are not fetched, the newest 256 are kept.

        Raises
        ------
        StreamClosedError
            The stream is over, other than by the end of its source.
        """
        session = await self._opened()
        while True:
            try:
                await session.until(lambda: session.unread)
            except StreamEndedError:
                return
            yield session.unread.popleft()

    async def pause(self) -> None:
        """Let the service drop frames until `resume`; counts are kept."""
        await (await self._opened()).pause()

    async def resume(self) -> None:
        """Let the service analyse frames again."""
        await (await self._opened()).resume()

    async def change_exercise(self, exercise: str) -> None:
        """Count another exercise from now on, from zero.

        Raises
        ------
        ControlRefusedError
            There is none of that name.
        ControlLostError
            The connection broke meanwhile.
        """
        await (await self._opened()).change_exercise(exercise)

    async def ping(self) -> float:
        """Seconds a message takes to the stream and back."""
        return await (await self._opened()).ping()

    async def detect_image(self, image: str | Path | bytes) -> Detection:
        """Find the people in one image file, without any stream.

        Raises
        ------
        RequestRefusedError
            The service cannot read the image.
        UnreadableImageError
            There is no such file.
        """
        content = Path(image) if isinstance(image, str) else image
        return await self._rest.detect_image(content, self._request.detector)

    async def upload_video(
        self,
        path: str | Path,
        video: VideoOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Video:
        """Send a recorded video to be analysed, without any stream.

        It goes in parts, each of which is tried again after errors that may pass. If it fails
        nevertheless, call again: parts that have arrived are not sent anew.

        Parameters
        ----------
        path
            A video file.
        video
            What is told of it, and how it is to be analysed.
        on_progress
            Called on the event loop while it is read and sent.

        Returns
        -------
        Video
            As stored; `job_id` is that of its analysis.

        Raises
        ------
        RequestRefusedError
            The service does not take it, and why: no video, too large, over quota.
        ServiceUnreachableError, StoreUnreachableError
            Service or S3 did not answer any more.
        UnreadableVideoError
            There is no such file.
        """
        told = {
            "exercise": None if self._request.exercise == AUTO else self._request.exercise,
            "detector": self._request.detector,
        }
        upload = VideoUpload(
            self._rest,
            Path(path),
            told,
            video or VideoOptions(),
            self._options.reconnect,
            on_progress,
        )
        return await upload.run()

    async def results(self, since: int = -1, limit: int = 100) -> ResultPage:
        """Recent answers of this stream after frame `since`, oldest first."""
        session = await self._opened()
        told = await self._rest.results(session.started.stream_id, since, limit)
        return ResultPage(
            tuple(Result.of(result, session.names) for result in told.results), told.next
        )

    async def streams(self) -> tuple[StreamInfo, ...]:
        """All streams of the service, oldest first."""
        return await self._rest.streams()

    async def delete(self) -> None:
        """End this stream; nothing can be sent to it any more."""
        await self._rest.delete((await self._opened()).started.stream_id)

    @property
    def state(self) -> str:
        """``active``, ``paused``, ``shed`` or ``ended``; ``active`` before the start."""
        return ACTIVE if self._session is None else self._session.state

    @property
    def statistics(self) -> Statistics:
        """What became of the frames so far."""
        return self._tally.snapshot()

    async def _opened(self) -> Session:
        async with self._starting:
            if self._session is None:
                session = Session(
                    self._rest,
                    self._address,
                    self._request,
                    self._options,
                    self._tally,
                    self._on_event,
                )
                await session.open()
                self._session = session
            return self._session

    async def _encode(self, image: Picture) -> bytes:
        options = self._options
        return await asyncio.to_thread(encode_image, image, options.color, options.jpeg_quality)
