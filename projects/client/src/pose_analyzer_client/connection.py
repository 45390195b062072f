"""One WebSocket connection to a stream, and what its end means."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)
from websockets.typing import Subprotocol

from pose_analyzer_client import wire
from pose_analyzer_client.errors import (
    FrameTooLargeError,
    ProtocolViolationError,
    ServiceUnreachableError,
    SlowReaderError,
    StreamClosedError,
    StreamEndedError,
    StreamTakenOverError,
    TooManyMessagesError,
    UndecodableFramesError,
)
from pose_analyzer_client.options import ClientOptions

NO_SUCH_STREAM: Final = 4404
_ABNORMAL: Final = 1006
_MAX_ANSWER_BYTES: Final = 16 << 20
_CLOSE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Closure:
    """How the other side ended a connection."""

    code: int
    """1006: it broke without a word."""
    reason: str

    @classmethod
    def of(cls, error: ConnectionClosed) -> "Closure":
        """What the other side said; what this side says to it is not a reason."""
        if error.rcvd is None:
            return cls(_ABNORMAL, "the connection broke")
        return cls(error.rcvd.code, error.rcvd.reason)

    def failure(self, stream_id: str) -> StreamClosedError | None:
        """The error this is, or None where connecting again may help."""
        failure = _FAILURES.get(self.code)
        return None if failure is None else failure(stream_id, self.reason)


_FAILURES: Final[dict[int, Callable[[str, str], StreamClosedError]]] = {
    1000: lambda stream_id, _: StreamEndedError(stream_id),
    1002: lambda _, reason: ProtocolViolationError(f"closed with 1002 {reason}"),
    1003: lambda _, reason: ProtocolViolationError(f"closed with 1003 {reason}"),
    1007: lambda _, __: UndecodableFramesError(),
    1008: lambda _, reason: ProtocolViolationError(f"closed with 1008 {reason}"),
    1009: lambda _, reason: FrameTooLargeError(reason),
    4408: lambda _, __: SlowReaderError(),
    4409: lambda stream_id, _: StreamTakenOverError(stream_id),
    4429: lambda _, __: TooManyMessagesError(),
}
"""Close codes after which connecting again would not help."""


class NoSuchStreamError(Exception):
    """The service does not know the stream (any longer)."""


async def open_connection(
    url: str, stream_id: str, options: ClientOptions
) -> tuple[ClientConnection, wire.Ready]:
    """Connect to a stream and read the service's first message.

    Raises
    ------
    ServiceUnreachableError
        Nothing answers; trying again may help.
    NoSuchStreamError
        The service does not know the stream.
    StreamClosedError
        The service told that trying again will not help.
    """
    try:
        async with asyncio.timeout(options.connect_timeout_s):
            websocket = await connect(
                url,
                subprotocols=[Subprotocol(wire.SUBPROTOCOLS[options.encoding])],
                compression=None,  # pictures are compressed, answers small
                max_size=_MAX_ANSWER_BYTES,
                open_timeout=None,
                close_timeout=_CLOSE_TIMEOUT_S,
            )
            try:
                return websocket, await _first_message(websocket, stream_id)
            except BaseException:
                websocket.transport.abort()
                raise
    except InvalidStatus as error:
        status = error.response.status_code
        if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise NoSuchStreamError from error
        raise ServiceUnreachableError(url, f"HTTP status {status}") from error
    except (InvalidHandshake, InvalidMessage, OSError) as error:  # TimeoutError is an OSError
        raise ServiceUnreachableError(url, str(error) or "it does not answer in time") from error


async def _first_message(websocket: ClientConnection, stream_id: str) -> wire.Ready:
    try:
        message = read(await websocket.recv())
    except ConnectionClosed as error:
        closure = Closure.of(error)
        if closure.code == NO_SUCH_STREAM:
            raise NoSuchStreamError from error
        failure = closure.failure(stream_id)
        if failure is not None:
            raise failure from error
        raise ServiceUnreachableError(stream_id, closure.reason) from error
    if not isinstance(message, wire.Ready):
        raise ProtocolViolationError(f"its first message is not ready but {message}")
    return message


def read(data: str | bytes) -> wire.ServerMessage | None:
    """Read a message of the service; None for one of a type that newer services send.

    Raises
    ------
    ProtocolViolationError
        It is not one this client knows.
    """
    try:
        return wire.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolViolationError(str(error)) from error
