"""The WebSocket of a live stream: pictures in, answers out. See docs/API.md."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from pose_analyzer import wire
from pose_analyzer.api.dependencies import ExercisesDep, ManagerDep, SettingsDep
from pose_analyzer.errors import UnknownNameError, UnknownStreamError
from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.live_stream import MAX_UNSENT, LiveStream
from pose_analyzer.stream_manager import StreamManager
from pose_analyzer.stream_types import Encoding

CLOSE_TOO_BIG: Final = 1009
CLOSE_UNKNOWN_STREAM: Final = 4404
CLOSE_SLOW_READER: Final = 4408
CLOSE_FLOOD: Final = 4429
SLOW_READER_S: Final = 10.0
"""For so long an answer may stay unread."""
MAX_WAITING: Final = 64
"""Messages that wait for a slow reader: `MAX_UNSENT` answers, and what else is told."""
MAX_TEXT_CHARS: Final = 65_536
MAX_MESSAGES_HZ: Final = 480.0
MAX_MESSAGES_AT_ONCE: Final = 960
# The close frame holds 125 bytes, two of them for the code.
_MAX_REASON_BYTES: Final = 123

log = structlog.get_logger()

router = APIRouter(tags=["streams"])


@router.websocket("/stream/{stream_id}", name="stream")
async def stream(
    websocket: WebSocket,
    stream_id: str,
    manager: ManagerDep,
    exercises: ExercisesDep,
    settings: SettingsDep,
) -> None:
    """Analyse the pictures a client sends."""
    offered = websocket.scope.get("subprotocols", [])
    chosen = next((name for name in offered if name in _ENCODINGS), None)
    await websocket.accept(subprotocol=chosen)
    connection = Connection(websocket, _ENCODINGS[chosen or wire.JSON_SUBPROTOCOL])
    try:
        live = manager.attach(stream_id, connection)
    except UnknownStreamError as error:
        connection.close(CLOSE_UNKNOWN_STREAM, str(error))
        await connection.send_all()
        return
    reader = Reader(connection, live, manager, exercises, settings.stream_max_frame_bytes)
    receiving = asyncio.create_task(reader.receive_all(websocket))
    sending = asyncio.create_task(connection.send_all(lambda: manager.drained(stream_id)))
    watching = asyncio.create_task(connection.watch())
    tasks = (receiving, sending, watching)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done() and connection.closing:
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        manager.detach(stream_id, connection)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if watching.done() and not watching.cancelled():
        await connection.end(CLOSE_SLOW_READER, f"answers were not read for {SLOW_READER_S:.0f} s")
    for task in tasks:
        if not task.cancelled():
            task.result()


class Connection:
    """Implements `live_stream.Sink`: a short queue in front of one WebSocket."""

    def __init__(self, websocket: WebSocket, encoding: Encoding) -> None:
        self.encoding = encoding
        self._websocket = websocket
        self._unsent: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._close: tuple[int, str] | None = None
        self._sending_since_s: float | None = None

    @property
    def n_unsent(self) -> int:
        """Messages the client has not taken yet."""
        return len(self._unsent)

    @property
    def closing(self) -> bool:
        """No more messages are taken."""
        return self._close is not None

    def put(self, message: bytes) -> None:
        """Send this when possible."""
        if self._close is not None:
            return
        if len(self._unsent) >= MAX_WAITING:
            # Answers are held back before; a client that asks and never reads must not fill memory.
            self.close(CLOSE_SLOW_READER, f"{MAX_WAITING} messages were not read")
            return
        self._unsent.append(message)
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Send what is left, then close; only the first call counts."""
        if self._close is None:
            self._close = code, reason
            self._wake.set()

    async def send_all(self, on_drained: Callable[[], None] | None = None) -> None:
        """Send until closed, or until the client is gone."""
        try:
            while not (self._close and not self._unsent):
                await self._wake.wait()
                self._wake.clear()
                while self._unsent:
                    self._sending_since_s = time.monotonic()
                    await self._send(self._unsent[0])
                    self._sending_since_s = None
                    self._unsent.popleft()
                    if on_drained is not None and len(self._unsent) == MAX_UNSENT - 1:
                        on_drained()
        except (WebSocketDisconnect, RuntimeError):
            # The client is gone; whoever receives will notice, too.
            return
        await self.end(*self._close)

    async def watch(self) -> None:
        """Return once a message has not been taken for `SLOW_READER_S`.

        A timeout around each of thousands of messages a second would cost more than sending them.
        """
        while True:
            await asyncio.sleep(SLOW_READER_S / 4.0)
            since_s = self._sending_since_s
            if since_s is not None and time.monotonic() - since_s > SLOW_READER_S:
                return

    async def _send(self, message: bytes) -> None:
        if self.encoding is Encoding.JSON:
            await self._websocket.send_text(message.decode())
        else:
            await self._websocket.send_bytes(message)

    async def end(self, code: int, reason: str) -> None:
        """Close the connection, if it is open."""
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        short = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        try:
            async with asyncio.timeout(SLOW_READER_S):
                await self._websocket.close(code, short)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            log.debug("client_left_before_close", code=code)


class Reader:
    """What a client sends -> pictures and commands for its stream."""

    def __init__(
        self,
        connection: Connection,
        live: LiveStream,
        manager: StreamManager,
        exercises: dict[str, Exercise],
        max_frame_bytes: int,
    ) -> None:
        self._connection = connection
        self._live = live
        self._manager = manager
        self._exercises = exercises
        self._max_frame_bytes = max_frame_bytes
        self._captured_s: float | None = None
        self._limit = RateLimit(MAX_MESSAGES_HZ, MAX_MESSAGES_AT_ONCE)

    async def receive_all(self, websocket: WebSocket) -> None:
        """Take messages until the client leaves or is sent away."""
        while not self._connection.closing:
            message = await websocket.receive()
            # Sent away meanwhile, perhaps for another connection, whose pictures count now.
            if message["type"] == "websocket.disconnect" or self._connection.closing:
                return
            picture = message.get("bytes")
            if picture is not None:
                self._on_picture(picture)
            else:
                self._on_text(message["text"])

    def _on_picture(self, picture: bytes) -> None:
        captured_s, self._captured_s = self._captured_s, None
        if not self._within_rate():
            return
        if len(picture) > self._max_frame_bytes:
            reason = f"a picture may have {self._max_frame_bytes} bytes, this has {len(picture)}"
            self._connection.close(CLOSE_TOO_BIG, reason)
        elif self._live.options.source is not None:
            self._refuse("unexpected-frame", "This stream reads its own source; send no pictures.")
        elif not self._live.ended:
            self._manager.offer(self._live, picture, captured_s)

    def _on_text(self, text: str) -> None:
        if len(text) > MAX_TEXT_CHARS:
            if self._within_rate():
                detail = f"A text may have {MAX_TEXT_CHARS} characters, this one has {len(text)}."
                self._refuse("unknown-message", detail)
            return
        try:
            message = wire.decode_client_message(text)
        except msgspec.DecodeError as error:
            if self._within_rate():
                self._refuse("unknown-message", f"{error}. docs/API.md lists what is understood.")
            return
        if isinstance(message, wire.FrameHeader):
            # Free of charge in front of a picture, which counts itself.
            if self._captured_s is None or self._within_rate():
                self._captured_s = message.captured_s
        elif self._within_rate() and not self._live.ended:
            self._obey(message)

    def _obey(self, message: wire.ClientMessage) -> None:
        stream_id = self._live.stream_id
        match message:
            case wire.Pause():
                self._manager.pause(stream_id)
            case wire.Resume():
                self._manager.resume(stream_id)
            case wire.ChangeExercise(exercise=name):
                try:
                    select_exercises(self._exercises, name)
                except UnknownNameError as error:
                    self._refuse("unknown-exercise", str(error))
                else:
                    self._manager.change_exercise(stream_id, name)
            case wire.Ping(data=data):
                time_s = time.monotonic() - self._live.started_s
                self._live.tell(wire.Pong(data=data, time_s=time_s))
            case wire.FrameHeader():
                raise AssertionError("handled before")

    def _refuse(self, code: str, detail: str) -> None:
        self._live.tell(wire.Error(code=code, detail=detail))

    def _within_rate(self) -> bool:
        if self._limit.allows(time.monotonic()):
            return True
        self._connection.close(CLOSE_FLOOD, f"more than {MAX_MESSAGES_HZ:.0f} messages a second")
        return False


class RateLimit:
    """Leaky bucket (ITU-T I.371, generic cell rate algorithm)."""

    def __init__(self, rate_hz: float, n_at_once: int) -> None:
        self._interval_s = 1.0 / rate_hz
        self._tolerance_s = n_at_once / rate_hz
        self._due_s = float("-inf")

    def allows(self, now_s: float) -> bool:
        """Whether one more is within the rate; if so it is counted."""
        due_s = max(self._due_s, now_s)
        if due_s - now_s > self._tolerance_s:
            return False
        self._due_s = due_s + self._interval_s
        return True


_ENCODINGS: Final = {
    wire.JSON_SUBPROTOCOL: Encoding.JSON,
    wire.MSGPACK_SUBPROTOCOL: Encoding.MSGPACK,
}
