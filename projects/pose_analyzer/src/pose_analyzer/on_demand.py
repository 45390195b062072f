"""Things that are costly to make: made off the event loop when first asked for, then shared."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import anyio
from anyio import to_thread

from pose_analyzer.errors import BackendFailedError, ModelUnavailableError

RETRY_AFTER_S: Final = 10.0
"""How long something that could not be made is refused without trying again."""

T = TypeVar("T")


@dataclass(slots=True)
class _Slot(Generic[T]):
    """One thing, once it is there, or why it last could not be had."""

    loading: anyio.Lock = field(default_factory=anyio.Lock)
    made: T | None = None
    failure: ModelUnavailableError | BackendFailedError | None = None
    failed_at_s: float = 0.0
    """By the monotonic clock."""


class OnDemand(Generic[T]):
    """Makes one thing per name. Different names do not wait for another.

    Parameters
    ----------
    make
        Called in a thread with the name.
    """

    def __init__(self, make: Callable[[str], T]) -> None:
        self._make = make
        self._slots: dict[str, _Slot[T]] = {}

    @property
    def made(self) -> tuple[T, ...]:
        """What is there by now."""
        return tuple(slot.made for slot in tuple(self._slots.values()) if slot.made is not None)

    async def get(self, name: str) -> T:
        """Return the thing of that name, made if need be.

        Raises
        ------
        ModelUnavailableError, BackendFailedError
            It cannot be made; tried again only after `RETRY_AFTER_S`.
        """
        slot = self._slots.setdefault(name, _Slot())
        async with slot.loading:
            if slot.made is None:
                slot.made = await self._load(name, slot)
            return slot.made

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()

    async def _load(self, name: str, slot: _Slot[T]) -> T:
        if slot.failure is not None and time.monotonic() < slot.failed_at_s + RETRY_AFTER_S:
            # Each failed attempt may cost a download's timeouts. The traceback would grow.
            raise slot.failure.with_traceback(None)
        try:
            made = await to_thread.run_sync(self._make, name)
        except (ModelUnavailableError, BackendFailedError) as error:
            slot.failure, slot.failed_at_s = error, time.monotonic()
            raise
        slot.failure = None
        return made
