"""A stream that outlives its connections."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pose_analyzer_client import wire
from pose_analyzer_client.addresses import ServiceAddress
from pose_analyzer_client.capture_clock import CaptureClock
from pose_analyzer_client.connection import Closure, NoSuchStreamError, open_connection, read
from pose_analyzer_client.controls import Controls
from pose_analyzer_client.errors import (
    ConnectionLostError,
    FrameRefusedError,
    NoCapacityError,
    PoseAnalyzerClientError,
    ProtocolViolationError,
    RequestRefusedError,
    ServiceUnreachableError,
    StreamEndedError,
    StreamTakenOverError,
)
from pose_analyzer_client.events import (
    ConnectionInterrupted,
    ConnectionResumed,
    Event,
    OnEvent,
    ServiceComplaint,
    StateChanged,
    StreamRestarted,
)
from pose_analyzer_client.ledger import Ledger, Outcome
from pose_analyzer_client.options import ClientOptions, StreamRequest
from pose_analyzer_client.rest import RestClient
from pose_analyzer_client.results import Names, Result
from pose_analyzer_client.signals import Signal
from pose_analyzer_client.statistics import Tally

ACTIVE: Final = "active"
_N_UNREAD_RESULTS: Final = 256
_NOTHING_TO_DELETE: Final = (ConnectionLostError, StreamEndedError, StreamTakenOverError)


class Session:
    """One stream of a service; connects again by itself when a connection breaks.

    Parameters
    ----------
    rest, address
        The service.
    request
        What is asked of it.
    options
        How to behave.
    tally
        Where to count.
    on_event
        Told what happens beside the answers.
    """

    def __init__(
        self,
        rest: RestClient,
        address: ServiceAddress,
        request: StreamRequest,
        options: ClientOptions,
        tally: Tally,
        on_event: OnEvent | None,
    ) -> None:
        self._rest = rest
        self._address = address
        self._request = request
        self._options = options
        self._tally = tally
        self._on_event = on_event
        self._changed = Signal()
        self._ledger = Ledger(options.answer_timeout_s, tally, self._changed.notify)
        self._controls = Controls(self._send_text, options.connect_timeout_s)
        self._clock = CaptureClock()
        self._sending = asyncio.Lock()
        self._websocket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self.next_frame = 0
        """Number the next picture will get."""
        self._paused_here = False
        self.started: wire.StreamStarted
        """What the service told of the stream."""
        self.names: Names
        self.state = ACTIVE
        self.state_reason = ""
        self.unread: deque[Result] = deque(maxlen=_N_UNREAD_RESULTS)
        """Answers to frames that were not sent from here, oldest first."""

    async def open(self) -> None:
        """Start the stream and connect to it.

        Raises
        ------
        ServiceUnreachableError, RequestRefusedError, StreamClosedError
            It cannot be; nothing is left open.
        """
        await self._start(self._options.capacity_wait_s)
        try:
            websocket, ready = await self._connect()
        except NoSuchStreamError as error:
            raise ProtocolViolationError("it does not know the stream it has started") from error
        except PoseAnalyzerClientError:
            await self._delete()
            raise
        self._take(websocket, ready)
        self._reader = asyncio.create_task(self._run(websocket))
        self._reader.add_done_callback(self._on_reader_done)

    async def aclose(self) -> None:
        """End the stream, so that the service need not keep it, and the connection."""
        websocket, reader = self._websocket, self._reader
        if reader is None:
            return
        self._on_event = None  # what follows is the caller's own doing
        if not isinstance(self._failure, _NOTHING_TO_DELETE):
            await self._delete()
        if websocket is not None:
            await websocket.close()
        reader.cancel()
        await asyncio.wait([reader])

    def check(self) -> None:
        """Raise what ended the stream, if it has ended."""
        if self._failure is not None:
            raise self._failure

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until `holds` answers something true.

        Raises
        ------
        StreamClosedError
            The stream is over, and `holds` answers nothing true.
        """
        await self._changed.until(lambda: self._failure is not None or holds())
        if self._failure is not None and not holds():
            raise self._failure

    async def until_active(self) -> None:
        """Wait until frames sent now would be analysed."""
        await self.until(self._is_active)

    async def until_room(self, n_frames: int) -> None:
        """Wait until frames would be analysed, and fewer than so many are on their way."""
        await self.until(lambda: self._is_active() and self._ledger.n_on_their_way < n_frames)

    def stamp(self, captured_s: float) -> float | None:
        """Capture time for the next frame to be sent; None if it is not newer than the last."""
        return self._clock.stamp(captured_s, time.monotonic())

    async def send(self, picture: bytes, captured_s: float) -> "asyncio.Future[Outcome]":
        """Send a picture as soon as there is a connection; the future tells its outcome.

        Raises
        ------
        StreamClosedError
            The stream is over.
        """
        # A picture is sent whole or not at all, or the frames would be miscounted.
        return await asyncio.shield(asyncio.create_task(self._send(picture, captured_s)))

    async def pause(self) -> None:
        """Let the service drop frames, see `PoseAnalyzerClient.pause`."""
        await self._controls.order({"type": "pause"})
        self._paused_here = True

    async def resume(self) -> None:
        """Let the service analyse again."""
        await self._controls.order({"type": "resume"})
        self._paused_here = False

    async def change_exercise(self, exercise: str) -> None:
        """Count another exercise from zero."""
        await self._controls.order({"type": "exercise", "exercise": exercise})
        self._request = replace(self._request, exercise=exercise)

    async def ping(self) -> float:
        """Seconds to the service and back."""
        return await self._controls.ping()

    def _is_active(self) -> bool:
        return self._websocket is not None and self.state == ACTIVE

    async def _send(self, picture: bytes, captured_s: float) -> "asyncio.Future[Outcome]":
        async with self._sending:
            await self.until(lambda: self._websocket)
            websocket = self._websocket
            assert websocket is not None  # noqa: S101 - `until` returned
            outcome = self._ledger.add(self.next_frame)
            self.next_frame += 1
            with suppress(ConnectionClosed):  # the reader learns of it too, and counts the loss
                await websocket.send(wire.encode({"type": "frame", "captured_s": captured_s}))
                await websocket.send(picture)
            return outcome

    async def _send_text(self, text: str) -> None:
        async with self._sending:
            await self.until(lambda: self._websocket)
            with suppress(ConnectionClosed):
                if self._websocket is not None:
                    await self._websocket.send(text)

    async def _start(self, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        while True:
            try:
                self.started = await self._rest.start_stream(self._request)
                break
            except NoCapacityError as error:
                if loop.time() + error.retry_after_s > until_s:
                    raise
                await self._options.reconnect.sleep(error.retry_after_s)
        self.names = Names(self.started.keypoint_names, self.started.angle_names)

    async def _delete(self) -> None:
        with suppress(ServiceUnreachableError, RequestRefusedError):
            await self._rest.delete(self.started.stream_id)

    async def _connect(self) -> tuple[ClientConnection, wire.Ready]:
        url = self._address.websocket(self.started.ws_url)
        return await open_connection(url, self.started.stream_id, self._options)

    def _take(self, websocket: ClientConnection, ready: wire.Ready) -> None:
        self.next_frame = ready.next_frame
        self.state = ready.state
        self._websocket = websocket
        self._changed.notify()

    async def _run(self, websocket: ClientConnection) -> None:
        """Read until the stream is over; ends with the exception that says why."""
        while True:
            try:
                closure = await self._read(websocket)
            finally:
                self._websocket = None
                websocket.transport.abort()
            self._controls.interrupt()
            self._ledger.suspend()
            failure = closure.failure(self.started.stream_id)
            if failure is not None:
                raise failure
            self._tell(ConnectionInterrupted(f"{closure.code} {closure.reason}".rstrip()))
            websocket = await self._reconnect(closure.reason)

    async def _read(self, websocket: ClientConnection) -> Closure:
        try:
            while True:
                self._on_message(read(await websocket.recv()))
        except ConnectionClosed as error:
            return Closure.of(error)

    async def _reconnect(self, reason: str) -> ClientConnection:
        policy, n_attempts = self._options.reconnect, 0
        until_s = policy.clock() + policy.give_up_after_s
        for delay_s in policy.delays_s():
            await policy.sleep(delay_s)
            if policy.clock() > until_s:
                break
            n_attempts += 1
            try:
                return await self._continue()
            except ServiceUnreachableError as error:
                reason = error.reason
            except NoCapacityError as error:
                reason = error.reason
                await policy.sleep(error.retry_after_s)
        raise ConnectionLostError(self.started.stream_id, n_attempts, reason)

    async def _continue(self) -> ClientConnection:
        """Connect to the same stream, or to a new one if the service has forgotten it."""
        old = self.started.stream_id
        try:
            websocket, ready = await self._connect()
        except NoSuchStreamError:
            await self._start(0.0)
            try:
                websocket, ready = await self._connect()
            except NoSuchStreamError as error:
                raise ServiceUnreachableError(
                    self._address.http, "it forgets streams at once"
                ) from error
        self._tally.n_reconnects += 1
        if self.started.stream_id == old:
            n_lost = self._ledger.lose_all(ready.next_frame)
            event: Event = ConnectionResumed(old, n_lost)
        else:
            # What the old stream had received, nobody will be told of.
            n_lost = self._ledger.lose_all(0)
            self._tally.n_restarts += 1
            event = StreamRestarted(old, self.started.stream_id, n_lost)
            if self._paused_here:
                await websocket.send(wire.encode({"type": "pause"}))
        self._take(websocket, ready)
        self._tell(event)
        return websocket

    def _on_message(self, message: wire.ServerMessage | None) -> None:
        match message:
            case wire.Result():
                result = self._ledger.answer(message, self.names)
                if result.round_trip_s != result.round_trip_s:
                    self.unread.append(result)
                    self._changed.notify()
            case wire.State():
                self.state, self.state_reason = message.state, message.reason
                if message.state != ACTIVE:
                    self._ledger.release_places()
                self._changed.notify()
                self._tell(StateChanged(message.state, message.reason))
            case wire.Error():
                self._on_complaint(message)
            case wire.Pong():
                self._controls.on_pong(message.data)
            case _:
                pass

    def _on_complaint(self, message: wire.Error) -> None:
        if message.frame is not None:
            self._ledger.refuse(FrameRefusedError(message.frame, message.code, message.detail))
        self._controls.on_complaint(message)
        self._tell(ServiceComplaint(message.code, message.detail, message.frame))

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _on_reader_done(self, reader: "asyncio.Task[None]") -> None:
        failure = None if reader.cancelled() else reader.exception()
        if failure is None or not isinstance(failure, Exception):
            failure = StreamEndedError(self.started.stream_id)
        self._failure = failure
        self._ledger.close(failure)
        self._controls.interrupt()
        self._changed.notify()
