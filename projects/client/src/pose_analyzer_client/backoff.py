"""How long to wait between attempts to connect again."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

_system_random: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class ReconnectPolicy:
    """Exponential backoff with full jitter, so that clients do not come back all at once.

    Each wait is drawn evenly from 0 to a bound that doubles until `max_delay_s`: Brooker 2015,
    "Exponential Backoff And Jitter", AWS Architecture Blog.
    """

    first_delay_s: float = 0.2
    """Bound of the first wait."""
    max_delay_s: float = 3.0
    max_attempts: int = 30
    """0 does not try at all."""
    give_up_after_s: float = 60.0
    """No attempt begins later than this after the break."""
    random: Callable[[], float] = _system_random.random
    """Evenly distributed numbers from 0 to 1."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        if not 0 < self.first_delay_s <= self.max_delay_s:
            raise ValueError("0 < first_delay_s <= max_delay_s must hold")
        if self.max_attempts < 0 or self.give_up_after_s < 0:
            raise ValueError("max_attempts and give_up_after_s must not be negative")

    def delays_s(self) -> Iterator[float]:
        """One wait before each attempt, `max_attempts` of them."""
        bound_s = self.first_delay_s
        for _ in range(self.max_attempts):
            yield self.random() * bound_s
            bound_s = min(2 * bound_s, self.max_delay_s)
