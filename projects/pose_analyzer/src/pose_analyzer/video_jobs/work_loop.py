"""What every worker does all day: wait, claim, work, report."""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

import structlog

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.video_jobs.heartbeat import Heartbeat

ClaimT = TypeVar("ClaimT")

_FIRST_RETRY_S: Final = 0.2
_LAST_RETRY_S: Final = 5.0

log = structlog.get_logger()


class AbandonedError(Exception):
    """The work in hand is not to be finished: the claim is lost, or the worker stops."""


@runtime_checkable
class Duty(Protocol[ClaimT]):
    """One kind of work: how it is claimed, done and given back."""

    @property
    def lease_s(self) -> float:
        """For how long one renewal lasts."""
        ...

    def claim(self) -> ClaimT | None:
        """Take something to do; None if there is nothing now."""
        ...

    def renew(self, claimed: ClaimT) -> bool:
        """Say that the work goes on; False if it is no longer ours."""
        ...

    def perform(self, claimed: ClaimT, check: Callable[[], None]) -> None:
        """Do it and report how it went.

        Parameters
        ----------
        check
            To be called often; raises `AbandonedError` once the work is not to be finished.
        """
        ...

    def release(self, claimed: ClaimT) -> None:
        """Give it back unfinished."""
        ...


@runtime_checkable
class Waker(Protocol):
    """Ends a wait when there may be something to do."""

    def wait(self, timeout_s: float) -> None:
        """Return when woken, or after the time given."""
        ...


class WorkLoop(Generic[ClaimT]):
    """Claims and performs until it is told to stop.

    Parameters
    ----------
    duty
        What to do.
    waker
        Tells when something may have come.
    poll_s
        Looks again after so long at the latest: a lease may have run out, a pause ended.
    grace_s
        For so long work in hand may go on after `stop`; then it is given back.
    idle_s
        Ends by itself after so long without work; None: never.
    """

    def __init__(
        self,
        duty: Duty[ClaimT],
        waker: Waker,
        *,
        poll_s: float = 5.0,
        grace_s: float = 20.0,
        idle_s: float | None = None,
    ) -> None:
        self._duty = duty
        self._waker = waker
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._idle_s = idle_s
        self._stop_at_s: float | None = None

    def stop(self) -> None:
        """Take nothing new; safe to call from a signal handler."""
        if self._stop_at_s is None:
            self._stop_at_s = time.monotonic() + self._grace_s

    def run(self) -> int:
        """Work until stopped or idle for too long; how much was done."""
        n_done, busy_s, retry_s = 0, time.monotonic(), _FIRST_RETRY_S
        while self._stop_at_s is None:
            try:
                claimed = self._duty.claim()
                retry_s = _FIRST_RETRY_S
            except DatabaseUnavailableError as error:
                log.warning("database_away", reason=str(error), retry_s=retry_s)
                self._sleep(retry_s)
                retry_s = min(2.0 * retry_s, _LAST_RETRY_S)
                continue
            if claimed is not None:
                self._perform(claimed)
                n_done, busy_s = n_done + 1, time.monotonic()
                continue
            if self._idle_s is not None and time.monotonic() - busy_s > self._idle_s:
                break
            self._waker.wait(self._poll_s)
        return n_done

    def _perform(self, claimed: ClaimT) -> None:
        with Heartbeat(lambda: self._duty.renew(claimed), self._duty.lease_s) as heartbeat:

            def check() -> None:
                overtime = self._stop_at_s is not None and time.monotonic() > self._stop_at_s
                if heartbeat.lost or overtime:
                    raise AbandonedError

            try:
                self._duty.perform(claimed, check)
            except AbandonedError:
                log.info("work_abandoned", lost=heartbeat.lost)
                if not heartbeat.lost:
                    self._release(claimed)
            except DatabaseUnavailableError as error:
                log.warning("work_not_reported", reason=error.reason)

    def _release(self, claimed: ClaimT) -> None:
        try:
            self._duty.release(claimed)
        except DatabaseUnavailableError as error:
            # Its lease runs out.
            log.warning("work_not_released", reason=error.reason)

    def _sleep(self, seconds: float) -> None:
        # In short steps, so that a stop is noticed.
        give_up_s = time.monotonic() + seconds
        while self._stop_at_s is None and time.monotonic() < give_up_s:
            threading.Event().wait(min(0.1, seconds))


def reported(report: Callable[[], bool], patience_s: float) -> bool:
    """Report how work went, again if the database is away for a moment.

    Raises
    ------
    DatabaseUnavailableError
        It stayed away for longer than `patience_s`; by then the work is somebody else's.
    """
    began_s, retry_s = time.monotonic(), _FIRST_RETRY_S
    while True:
        try:
            return report()
        except DatabaseUnavailableError:
            if time.monotonic() - began_s > patience_s:
                raise
            time.sleep(retry_s)
            retry_s = min(2.0 * retry_s, _LAST_RETRY_S)
