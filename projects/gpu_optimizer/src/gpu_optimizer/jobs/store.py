"""Jobs of the service: begun, watched, cancelled, and kept for a while after they ended."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from gpu_optimizer.errors import BusyError, UnknownJobError
from gpu_optimizer.profiling_worker import FailureReason, JobLimits, JobResult, JobRunner

_MAX_EVENTS: Final = 1000


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Job:
    """One job, from its request to its result."""

    job_id: str
    kind: str
    state: JobState = JobState.WAITING
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """The latest ones, oldest first."""
    result: JobResult | None = None
    n_events: int = 0
    _cancel: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self.result is not None


class JobStore:
    """Runs jobs through a `JobRunner` and remembers them; belongs to one event loop.

    Parameters
    ----------
    runner
        What runs them, and how many at once.
    max_unfinished
        With so many running or waiting no more are taken.
    n_kept
        Ended jobs that are remembered.
    on_end
        Told of every job that ended.
    """

    def __init__(
        self,
        runner: JobRunner,
        max_unfinished: int,
        n_kept: int,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self._runner = runner
        self._max_unfinished = max_unfinished
        self._n_kept = n_kept
        self._on_end = on_end
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def n_unfinished(self) -> int:
        """Jobs that run or wait."""
        return len(self._tasks)

    def begin(
        self,
        kind: str,
        payload: Mapping[str, Any],
        cleanup: Callable[[], None] | None = None,
        limits: JobLimits | None = None,
    ) -> Job:
        """Take a job.

        Parameters
        ----------
        kind, payload
            As `JobRunner.run`.
        cleanup
            Called when the job has ended, however.
        limits
            Instead of the runner's own.

        Raises
        ------
        BusyError
            Too many are running or waiting.
        """
        if self.n_unfinished >= self._max_unfinished:
            raise BusyError(self.n_unfinished)
        job = Job(secrets.token_urlsafe(12), kind)
        self._jobs[job.job_id] = job
        self._tasks[job.job_id] = asyncio.create_task(self._run(job, payload, cleanup, limits))
        return job

    def get(self, job_id: str) -> Job:
        """Return the job of that id.

        Raises
        ------
        UnknownJobError
            There is none, or it ended long ago.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJobError(job_id)
        return job

    async def wait(self, job: Job, timeout_s: float) -> bool:
        """Wait for the end of a job; whether it has ended."""
        task = self._tasks.get(job.job_id)
        if task is not None:
            await asyncio.wait({task}, timeout=timeout_s)
        return job.ended

    async def cancel(self, job: Job) -> None:
        """Stop a job, if it has not ended, and wait until it has."""
        job._cancel.set()  # noqa: SLF001 - the store and its jobs are one
        task = self._tasks.get(job.job_id)
        if task is not None:
            await asyncio.wait({task})

    async def follow(self, job: Job) -> AsyncIterator[Mapping[str, Any]]:
        """Events of a job, those there were and those to come, until it has ended."""
        n_seen = job.n_events - len(job.events)
        while True:
            async with job._changed:  # noqa: SLF001
                while n_seen == job.n_events and not job.ended:
                    await job._changed.wait()  # noqa: SLF001
            new = job.events[len(job.events) - (job.n_events - n_seen) :]
            n_seen = job.n_events
            for event in new:
                yield event
            if job.ended and n_seen == job.n_events:
                return

    async def close(self) -> None:
        """Stop all jobs."""
        for job_id in tuple(self._tasks):
            await self.cancel(self._jobs[job_id])

    async def _run(
        self,
        job: Job,
        payload: Mapping[str, Any],
        cleanup: Callable[[], None] | None,
        limits: JobLimits | None,
    ) -> None:
        told: list[asyncio.Task[None]] = []

        def on_event(event: Mapping[str, Any]) -> None:
            job.state = JobState.RUNNING
            job.events.append(event)
            job.n_events += 1
            del job.events[:-_MAX_EVENTS]
            told.append(asyncio.create_task(_notify(job)))

        try:
            result = await self._runner.run(
                job.kind,
                payload,
                limits=limits,
                on_event=on_event,
                cancel=job._cancel,  # noqa: SLF001
            )
        finally:
            if cleanup is not None:
                cleanup()
            del self._tasks[job.job_id]
        job.result = result
        job.state = _state_of(result)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*told, _notify(job))
        if self._on_end is not None:
            self._on_end(job)
        self._forget_old()

    def _forget_old(self) -> None:
        ended = [job_id for job_id, job in self._jobs.items() if job.ended]
        for job_id in ended[: max(len(ended) - self._n_kept, 0)]:
            del self._jobs[job_id]


async def _notify(job: Job) -> None:
    async with job._changed:  # noqa: SLF001
        job._changed.notify_all()  # noqa: SLF001


def _state_of(result: JobResult) -> JobState:
    if result.failure is None:
        return JobState.DONE
    cancelled = result.failure.reason is FailureReason.CANCELLED
    return JobState.CANCELLED if cancelled else JobState.FAILED
