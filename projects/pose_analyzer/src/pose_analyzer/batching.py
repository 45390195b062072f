"""When waiting frames become a batch, and whose turn it is. Pure."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Flush at once when the device is idle, collect otherwise."""

    window_s: float = 0.05
    """Nobody's frame waits longer than this for a batch to fill."""

    def is_due(self, n_waiting: int, oldest_wait_s: float, n_idle: int, room: int) -> bool:
        """Whether a batch should be begun now.

        Parameters
        ----------
        n_waiting
            Streams whose newest frame could be taken.
        oldest_wait_s
            How long the first of them has waited.
        n_idle
            Batches the device would begin at once.
        room
            Largest batch that may be lined up behind those in progress; 0: none.
        """
        if n_waiting == 0:
            return False
        if n_idle > 0:
            return True
        return room > 0 and (n_waiting >= room or oldest_wait_s >= self.window_s)


@runtime_checkable
class Served(Protocol):
    """Something that takes turns."""

    @property
    def served_s(self) -> float:
        """When it last had its turn; lower goes first."""
        ...


ServedT = TypeVar("ServedT", bound=Served)


def next_turns(waiting: Iterable[ServedT], n: int) -> list[ServedT]:
    """Return the `n` who have waited longest for a turn: fair shares, also under overload."""
    return heapq.nsmallest(n, waiting, key=_served_s)


def _served_s(one: Served) -> float:
    return one.served_s
