"""A service that speaks the protocol and analyses nothing; scripted by tests."""

import asyncio
import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

ANGLE_NAMES = tuple(f"angle_{n}" for n in range(12))
KEYPOINT_NAMES = tuple(f"point_{n}" for n in range(17))
MSGPACK = "pose.v1.msgpack"
JSON = "pose.v1.json"


def person(**changes: Any) -> dict[str, Any]:
    """One person; what is not known is NaN, which JSON writes as null."""
    angles = {
        "values_deg": [float(n) for n in range(11)] + [math.nan],
        "sd_deg": [1.5] * 11 + [math.nan],
        "trusted": [True] * 11 + [False],
    }
    return {
        "track_id": 1,
        "detected": True,
        "score": 0.9,
        "box_px": (1.0, 2.0, 3.0, 4.0),
        "keypoints_px": [(math.nan, math.nan)] + [(float(n), n + 0.5) for n in range(1, 17)],
        "keypoints_sd_px": [math.nan] + [2.0] * 16,
        "confidences": [0.0] + [0.8] * 16,
        "flags": [1] + [0] * 16,
        "angles": angles,
        "angles_3d": None,
        "view": "side",
        "yaw_deg": math.nan,
        "exercise": None,
        "phase": "unknown",
        "progress": math.nan,
        "n_repetitions": 0,
        "last_repetition": None,
    } | changes


def result(frame: int, **changes: Any) -> dict[str, Any]:
    """The answer to one frame."""
    return {
        "type": "result",
        "frame": frame,
        "captured_s": frame / 10,
        "received_s": 0.5,
        "answered_s": 0.6,
        "width_px": 64,
        "height_px": 48,
        "people": [person()],
        "timing": {"queue_s": 0.0, "decode_s": 0.1, "infer_s": 0.2, "postprocess_s": 0.3},
        "dropped": {},
    } | changes


@dataclass(eq=False)
class FakeStream:
    """What the service remembers of one stream."""

    stream_id: str
    next_frame: int = 0
    exercise: str = "auto"
    state: str = "active"
    n_connections: int = 0
    connection: ServerConnection | None = None
    pictures: list[bytes] = field(default_factory=list)
    captured_s: list[float | None] = field(default_factory=list)
    dropped: int = 0
    """Since the last answer."""


class FakeService:
    """HTTP on one port, WebSockets on another, as a service behind a proxy would have it."""

    def __init__(self) -> None:
        self.streams: dict[str, FakeStream] = {}
        self.starts: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, bytes]] = []
        self.replies: deque[tuple[int, dict[str, str], bytes]] = deque()
        """Given to the next requests instead of the usual ones."""
        self.unheard: set[int] = set()
        """Frames at which the connection breaks before they arrive; each once."""
        self.broken: set[int] = set()
        """Frames at which the connection breaks before they are answered; each once."""
        self.silent: set[int] = set()
        """Frames dropped without a word."""
        self.gate = asyncio.Event()
        """Answers wait for it."""
        self.gate.set()
        self.refuses_connections = False
        self.person: dict[str, Any] = person()
        self.n_unanswered = self.max_unanswered = 0

    @property
    def stream(self) -> FakeStream:
        """The latest stream."""
        return list(self.streams.values())[-1]

    async def __aenter__(self):
        self._http = await asyncio.start_server(self._on_http, "127.0.0.1", 0)
        self._ws = await serve(
            self._on_connection,
            "127.0.0.1",
            0,
            subprotocols=[MSGPACK, JSON],
            process_request=self._on_handshake,
            max_size=1 << 20,
        )
        self.address = f"ws://127.0.0.1:{self._http.sockets[0].getsockname()[1]}"
        self._ws_address = f"ws://127.0.0.1:{self._ws.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        self._ws.close()
        self._http.close()
        await self._ws.wait_closed()

    async def tell(self, message: dict[str, Any]) -> None:
        """Send a message to whoever is connected to the latest stream."""
        connection = self.stream.connection
        assert connection is not None
        await _send(connection, message)

    async def close(self, code: int) -> None:
        """Close the connection of the latest stream."""
        assert self.stream.connection is not None
        await self.stream.connection.close(code)

    def _on_handshake(self, connection: ServerConnection, request: Any) -> Any:
        if self.refuses_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not now\n")
        return None

    async def _on_connection(self, connection: ServerConnection) -> None:
        stream = self.streams.get(connection.request.path.rpartition("/")[2])
        if stream is None:
            await connection.close(4404, "no such stream")
            return
        stream.n_connections += 1
        stream.connection = connection
        ready = {
            "type": "ready",
            "stream_id": stream.stream_id,
            "next_frame": stream.next_frame,
            "resumed": stream.n_connections > 1,
            "exercise": stream.exercise,
            "detector": "fake",
            "device": "cpu",
            "state": stream.state,
        }
        await _send(connection, ready)
        waiting: asyncio.Queue[int] = asyncio.Queue()
        answering = asyncio.create_task(self._answer_all(stream, connection, waiting))
        captured_s = None
        with suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, str):
                    control = msgspec.json.decode(message)
                    captured_s = control.get("captured_s", captured_s)
                    await self._obey(stream, connection, control)
                elif stream.next_frame in self.unheard:
                    self.unheard.remove(stream.next_frame)
                    connection.transport.abort()
                else:
                    await self._take(stream, connection, message, captured_s, waiting)
                    captured_s = None
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)

    async def _take(self, stream, connection, picture, captured_s, waiting) -> None:
        number = stream.next_frame
        stream.next_frame += 1
        stream.pictures.append(picture)
        stream.captured_s.append(captured_s)
        if number in self.broken:
            self.broken.remove(number)
            connection.transport.abort()
        elif number in self.silent or stream.state != "active":
            stream.dropped += 1
        elif picture == b"broken":
            error = {"code": "undecodable-frame", "detail": "not an image", "frame": number}
            await _send(connection, {"type": "error"} | error)
        else:
            self.n_unanswered += 1
            self.max_unanswered = max(self.max_unanswered, self.n_unanswered)
            waiting.put_nowait(number)

    async def _answer_all(self, stream, connection, waiting) -> None:
        with suppress(ConnectionClosed):
            while True:
                number = await waiting.get()
                await self.gate.wait()
                self.n_unanswered -= 1
                dropped = {"stale": stream.dropped} if stream.dropped else {}
                stream.dropped = 0
                await _send(connection, result(number, people=[self.person], dropped=dropped))

    async def _obey(self, stream, connection, control: dict[str, Any]) -> None:
        match control:
            case {"type": "pause"}:
                await self._change_state(stream, connection, "paused")
            case {"type": "resume"}:
                await self._change_state(stream, connection, "active")
            case {"type": "exercise", "exercise": "chess"}:
                error = {"code": "unknown-exercise", "detail": "Unknown exercise 'chess'."}
                await _send(connection, {"type": "error"} | error)
            case {"type": "exercise", "exercise": "thunder"}:
                connection.transport.abort()
            case {"type": "exercise", "exercise": name}:
                stream.exercise = name
            case {"type": "ping", "data": data}:
                await _send(connection, {"type": "pong", "data": data, "time_s": 1.0})

    async def _change_state(self, stream, connection, state: str) -> None:
        stream.state = state
        await _send(connection, {"type": "state", "state": state, "reason": "by the client"})

    async def _on_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        length = next(
            (
                int(line.partition(":")[2])
                for line in head.splitlines()
                if line.lower().startswith("content-length:")
            ),
            0,
        )
        body = await reader.readexactly(length)
        self.requests.append((method, path, body))
        if self.replies:
            status, headers, content = self.replies.popleft()
        else:
            status, content = self._reply(method, path, body)
            headers = {}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(content)}", "", ""]
        writer.write("\r\n".join(lines).encode() + content)
        await writer.drain()
        writer.close()

    def _reply(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        name = path.partition("?")[0]
        match method, name.split("/")[1:]:
            case "POST", ["stream", "start"]:
                return 201, self._start(msgspec.json.decode(body))
            case "GET", ["stream", _, "results"]:
                page = {"results": [result(3), result(4)], "next": 4}
                return 200, msgspec.json.encode(page)
            case "GET", ["streams"]:
                return 200, msgspec.json.encode({"streams": [_info(s) for s in self._all()]})
            case "DELETE", ["stream", stream_id]:
                self.streams.pop(stream_id, None)
                return 204, b""
            case "POST", ["detect"]:
                return 200, msgspec.json.encode(_detection())
        return 404, b""

    def _all(self) -> list[FakeStream]:
        return list(self.streams.values())

    def _start(self, wanted: dict[str, Any]) -> bytes:
        self.starts.append(wanted)
        stream = FakeStream(f"s{len(self.starts)}", exercise=wanted["exercise"])
        self.streams[stream.stream_id] = stream
        return msgspec.json.encode(
            {
                "stream_id": stream.stream_id,
                "ws_url": f"{self._ws_address}/stream/{stream.stream_id}",
                "detector": "fake",
                "device": "cpu",
                "exercise": stream.exercise,
                "keypoint_names": KEYPOINT_NAMES,
                "angle_names": ANGLE_NAMES,
            }
        )


async def _send(connection: ServerConnection, message: dict[str, Any]) -> None:
    if connection.subprotocol == MSGPACK:
        await connection.send(msgspec.msgpack.encode(message))
    else:
        await connection.send(msgspec.json.encode(message).decode())


def _info(stream: FakeStream) -> dict[str, Any]:
    return {
        "stream_id": stream.stream_id,
        "state": stream.state,
        "connected": True,
        "exercise": stream.exercise,
        "detector": "fake",
        "source": None,
        "priority": 0,
        "n_frames": stream.next_frame,
        "n_answered": 0,
        "dropped": {},
    }


def _detection() -> dict[str, Any]:
    point = {"name": "nose", "x_px": 1.0, "y_px": 2.0, "confidence": 0.5}
    angle = {"name": "left_knee", "value_deg": None, "sd_deg": None, "trusted": False}
    body = {
        "score": 0.5,
        "box_px": (0, 0, 1, 1),
        "keypoints": [point],
        "angles": [angle],
        "angles_3d": None,
    }
    size = {"width_px": 64, "height_px": 48}
    return {"detector": "fake", "device": "cpu", "people": [body]} | size
