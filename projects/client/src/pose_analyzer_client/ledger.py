"""Which frames are on their way, and what became of each."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pose_analyzer_client import wire
from pose_analyzer_client.errors import (
    AnswerTimeoutError,
    FrameDroppedError,
    FrameLostError,
    UnansweredFrameError,
)
from pose_analyzer_client.results import Names, Result
from pose_analyzer_client.statistics import Tally

_HOLD_S: Final = 1.0
"""The service may drop a frame and say so only with its next answer. A frame that is unanswered
for so long no longer keeps others from being sent."""

Outcome = Result | UnansweredFrameError | Exception
"""An answer, why there is none for this frame, or why there will be no more at all."""


@dataclass(slots=True, eq=False)
class _Entry:
    sent_s: float
    outcome: "asyncio.Future[Outcome]"
    timer: asyncio.TimerHandle
    holds_place: bool = True


class Ledger:
    """Matches answers to the frames they belong to.

    The service answers in order, so an answer also says that the unanswered frames before it were
    dropped.

    Parameters
    ----------
    timeout_s
        After so long a frame is given up.
    tally
        Where to count.
    on_change
        Called whenever there may be room for another frame.
    """

    def __init__(self, timeout_s: float, tally: Tally, on_change: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._hold_s = min(_HOLD_S, timeout_s)
        self._tally = tally
        self._on_change = on_change
        self._entries: dict[int, _Entry] = {}

    @property
    def n_on_their_way(self) -> int:
        """Frames that are expected to be answered soon."""
        return sum(entry.holds_place for entry in self._entries.values())

    def add(self, number: int) -> "asyncio.Future[Outcome]":
        """Note a frame about to be sent; the future never raises."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._hold_s, self._let_go, number)
        entry = _Entry(time.monotonic(), loop.create_future(), timer)
        self._entries[number] = entry
        self._tally.n_sent += 1
        return entry.outcome

    def answer(self, told: wire.Result, names: Names) -> Result:
        """Settle the frame this answers, and those before it as dropped."""
        for number in [number for number in self._entries if number < told.frame]:
            self._settle(number, FrameDroppedError(number, tuple(told.dropped)))
        self._tally.n_answered += 1
        self._tally.dropped.update(told.dropped)
        entry = self._entries.get(told.frame)
        if entry is None:
            return Result.of(told, names)
        round_trip_s = time.monotonic() - entry.sent_s
        self._tally.round_trips_s.append(round_trip_s)
        result = Result.of(told, names, round_trip_s)
        self._settle(told.frame, result)
        return result

    def refuse(self, error: UnansweredFrameError) -> None:
        """Settle a frame the service told it cannot use."""
        self._settle(error.frame, error)

    def release_places(self) -> None:
        """Expect no answers soon: the stream was paused."""
        for entry in self._entries.values():
            entry.holds_place = False
        self._on_change()

    def suspend(self) -> None:
        """Give no frame up while there is no connection; `lose_all` or `close` follows."""
        for entry in self._entries.values():
            entry.timer.cancel()

    def lose_all(self, n_received: int) -> int:
        """Settle all frames as lost; the service has those numbered below `n_received`."""
        numbers = list(self._entries)
        self._tally.n_lost += len(numbers)
        for number in numbers:
            self._settle(number, FrameLostError(number, received=number < n_received))
        return len(numbers)

    def close(self, error: Exception) -> None:
        """Settle all frames: there will be no more answers."""
        for number in list(self._entries):
            self._settle(number, error)
        self._on_change()

    def _settle(self, number: int, outcome: Outcome) -> None:
        entry = self._entries.pop(number, None)
        if entry is None:
            return
        entry.timer.cancel()
        if not entry.outcome.done():  # whoever waited may have been cancelled
            entry.outcome.set_result(outcome)
        self._on_change()

    def _let_go(self, number: int) -> None:
        entry = self._entries[number]
        entry.holds_place = False
        rest_s = self._timeout_s - self._hold_s
        entry.timer = asyncio.get_running_loop().call_later(rest_s, self._give_up, number)
        self._on_change()

    def _give_up(self, number: int) -> None:
        self._tally.n_unanswered += 1
        self._settle(number, AnswerTimeoutError(number, self._timeout_s))
