"""A well-behaved client of a live stream, for checks: sends at a rate and keeps what comes back."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pose_analyzer.wire import Ready, Result, ServerMessage
from streams.records import back_and_forth

_decoder = msgspec.json.Decoder(ServerMessage)

T = TypeVar("T")


class Camera:
    """One connection to one stream.

    Parameters
    ----------
    connection
        Just opened.
    ready
        Its first message.
    """

    def __init__(self, connection: ClientConnection, ready: Ready) -> None:
        self.connection = connection
        self.ready = ready
        self.messages: list[ServerMessage] = []
        self.n_sent = 0
        self._news = asyncio.Event()
        self._tasks = [asyncio.create_task(self._listen())]

    @property
    def results(self) -> list[Result]:
        """Answers so far."""
        return [message for message in self.messages if isinstance(message, Result)]

    @property
    def close_code(self) -> int | None:
        """With which the connection was closed; None while it is open."""
        return self.connection.close_code

    def film(self, pictures: Sequence[bytes], fps: float) -> None:
        """Send pictures from now on, back and forth, at this rate."""
        order = (pictures[number] for number in back_and_forth(len(pictures)))
        self._tasks.append(asyncio.create_task(self._send(order, fps)))

    async def wait_for(self, look: Callable[["Camera"], T | None], within_s: float) -> T:
        """What `look` finds once it is something, after every message anew.

        Raises
        ------
        TimeoutError
            It found nothing for so long.
        """
        async with asyncio.timeout(within_s):
            while True:
                self._news.clear()
                found = look(self)
                if found:
                    return found
                await self._news.wait()

    async def wait_for_close(self, within_s: float) -> int | None:
        """Close code, once the connection is closed."""
        async with asyncio.timeout(within_s):
            await self.connection.wait_closed()
        return self.close_code

    async def lose(self) -> None:
        """Break the connection without a word, as a dead network does."""
        self.connection.transport.abort()
        await self.leave()

    async def leave(self) -> None:
        """Stop sending and close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.connection.close()

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self.connection:
                self.messages.append(_decoder.decode(text))
                self._news.set()
        self._news.set()

    async def _send(self, pictures: Iterator[bytes], fps: float) -> None:
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            for number, picture in enumerate(pictures):
                await asyncio.sleep(max(0.0, began_s + number / fps - time.monotonic()))
                await self.connection.send(picture)
                self.n_sent += 1


async def open_camera(url: str) -> Camera:
    """Connect and take the first message.

    Raises
    ------
    websockets.exceptions.ConnectionClosed
        The service does not want it; its close code says why.
    """
    connection = await connect(url, compression=None, max_size=None, proxy=None, close_timeout=1.0)
    ready = _decoder.decode(await connection.recv())
    if not isinstance(ready, Ready):
        raise TypeError(f"the service began with {ready}")
    return Camera(connection, ready)


async def break_off_mid_picture(camera: Camera) -> None:
    """Begin to send a picture of 100,000 bytes, and vanish after a half (RFC 6455, 5.2)."""
    header = bytes([0x82, 0x80 | 127]) + (100_000).to_bytes(8) + bytes(4)
    camera.connection.transport.write(header + bytes(50_000))
    await asyncio.sleep(0.1)
    await camera.lose()
