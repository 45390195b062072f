"""Control messages of one stream, and whether they were taken."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pose_analyzer_client import wire
from pose_analyzer_client.errors import ControlLostError, ControlRefusedError

_REFUSALS: Final = frozenset({"unknown-exercise", "unknown-message"})
_BROKE: Final = "the connection broke"


class Controls:
    """Sends controls one at a time.

    The service answers a ping and complains about a control, but does not confirm one. As it takes
    messages in order, a ping sent behind a control is answered once the control was looked at.

    Parameters
    ----------
    send
        Sends a text message.
    timeout_s
        For each answer.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]], timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count()
        self._pongs: dict[str, asyncio.Future[bool]] = {}
        self._refusal: wire.Error | None = None
        self._n_interruptions = 0

    async def order(self, message: dict[str, Any]) -> None:
        """Send a control and wait until the stream has taken it.

        Raises
        ------
        ControlRefusedError
            The stream did not take it.
        ControlLostError
            It is not known whether it did.
        """
        async with self._one_at_a_time:
            self._refusal = None
            n_interruptions = self._n_interruptions
            await self._send(wire.encode(message))
            await self._ask(message["type"])
            if self._n_interruptions != n_interruptions:
                raise ControlLostError(message["type"], _BROKE)
            if self._refusal is not None:
                raise ControlRefusedError(self._refusal.code, self._refusal.detail)

    async def ping(self) -> float:
        """Seconds to the service and back.

        Raises
        ------
        ControlLostError
            No answer.
        """
        return await self._ask("ping")

    async def _ask(self, kind: str) -> float:
        data = str(next(self._numbers))
        answered = self._pongs[data] = asyncio.get_running_loop().create_future()
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(wire.encode({"type": "ping", "data": data}))
                if not await answered:
                    raise ControlLostError(kind, _BROKE)
        except TimeoutError as error:
            raise ControlLostError(kind, f"no answer within {self._timeout_s:g} s") from error
        finally:
            del self._pongs[data]
        return time.monotonic() - began_s

    def on_pong(self, data: str) -> None:
        """The service answered a ping."""
        self._settle(data, answered=True)

    def on_complaint(self, message: wire.Error) -> None:
        """The service could not use something."""
        if message.code in _REFUSALS:
            self._refusal = message

    def interrupt(self) -> None:
        """The connection broke: no ping will be answered."""
        self._n_interruptions += 1
        for data in self._pongs:
            self._settle(data, answered=False)

    def _settle(self, data: str, *, answered: bool) -> None:
        pong = self._pongs.get(data)
        if pong is not None and not pong.done():
            pong.set_result(answered)
