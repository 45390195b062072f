"""Waiting for a condition."""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes tasks that wait for a condition whenever it may have changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Let every waiting task look again."""
        self._changed.set()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until `holds` answers something true."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()
