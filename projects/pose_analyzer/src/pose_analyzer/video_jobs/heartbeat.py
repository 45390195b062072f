"""Says, while work goes on, that its worker is alive."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from pose_analyzer.errors import DatabaseUnavailableError

_BEATS_PER_LEASE: Final = 3.0

log = structlog.get_logger()


class Heartbeat:
    """Renews a lease from a thread of its own, until it is left or the lease is lost.

    Parameters
    ----------
    renew
        Says that the work goes on; False if it is no longer ours.
    lease_s
        For how long one renewal lasts.
    """

    def __init__(self, renew: Callable[[], bool], lease_s: float) -> None:
        self._renew = renew
        self._lease_s = lease_s
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the work has been cancelled or belongs to another worker by now."""
        return self._lost.is_set()

    def __enter__(self) -> "Heartbeat":  # noqa: PYI034 - Self is more than beartype checks
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        renewed_s = time.monotonic()
        while not self._over.wait(self._lease_s / _BEATS_PER_LEASE):
            try:
                if not self._renew():
                    self._lost.set()
                    return
                renewed_s = time.monotonic()
            except DatabaseUnavailableError as error:
                # The database is away for a moment; the lease still stands.
                log.warning("heartbeat_failed", reason=str(error))
                if time.monotonic() - renewed_s > self._lease_s:
                    self._lost.set()
                    return
