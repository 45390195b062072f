"""Runs jobs in separate processes that may explode, hang or run out of memory; the caller lives."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.profiling_worker.jobs import JOBS
from gpu_optimizer.profiling_worker.limits import (
    FailureReason,
    JobFailure,
    JobLimits,
    JobResult,
    NetworkConfinement,
)

OnEvent = Callable[[Mapping[str, Any]], None]
"""Is told ``started`` and ``progress`` as they come."""

_WATCH_EVERY_S: Final = 0.05
_DRAIN_S: Final = 2.0
"""How long the last words of an ended process are waited for."""
_DETAIL_BYTES: Final = 4_096
_KILL_PASSES: Final = 5
"""A process may start another one while the list of all is read."""
_KEPT_VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "PATH",
    "PYTHONPATH",
    "TZ",
)
_SET_VARIABLES: Final = {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How jobs are run."""

    jobs: Mapping[str, str] = field(default_factory=lambda: JOBS)
    """Kind -> ``module:function``; the only functions a request can reach."""
    limits: JobLimits = field(default_factory=JobLimits)
    max_concurrent: int = 2
    """Further jobs wait for their turn."""
    python_path: tuple[Path, ...] = ()
    """Folders in which the child finds more modules."""


class JobRunner:
    """Runs jobs, a bounded number at a time.

    Parameters
    ----------
    config
        Read once.
    """

    def __init__(self, config: WorkerConfig | None = None) -> None:
        self._config = config or WorkerConfig()
        self._slots = asyncio.Semaphore(self._config.max_concurrent)

    async def run(
        self,
        kind: str,
        payload: Mapping[str, Any],
        *,
        limits: JobLimits | None = None,
        on_event: OnEvent | None = None,
        cancel: asyncio.Event | None = None,
    ) -> JobResult:
        """Run one job to its end, whatever that is.

        Parameters
        ----------
        kind
            Key of the table of jobs.
        payload
            What the job's function is given; must be JSON.
        limits
            Instead of those of the configuration.
        on_event
            Called in the event loop for each event.
        cancel
            Stops the job when set, also while it waits for its turn. Cancelling the calling task
            stops the job as well, and raises as usual.

        Raises
        ------
        UnknownNameError
            If there is no such kind of job.
        """
        if kind not in self._config.jobs:
            raise UnknownNameError("kind of job", kind, tuple(self._config.jobs))
        cancelled = asyncio.create_task((cancel or asyncio.Event()).wait())
        turn = asyncio.create_task(self._slots.acquire())
        try:
            await asyncio.wait({turn, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if cancelled.done():
                return _failed(FailureReason.CANCELLED, "The job was cancelled before it began.")
            request = {
                "function": self._config.jobs[kind],
                "limits": asdict(limits or self._config.limits),
                "parent_pid": os.getpid(),
                "payload": payload,
            }
            execution = _Execution(limits or self._config.limits, on_event or _ignore)
            return await execution.run(request, self._config.python_path, cancelled)
        finally:
            cancelled.cancel()
            if not turn.cancel() and not turn.cancelled():
                self._slots.release()


async def run_job(
    kind: str,
    payload: Mapping[str, Any],
    limits: JobLimits | None = None,
    on_event: OnEvent | None = None,
) -> JobResult:
    """Run a single job; see `JobRunner.run`, which also bounds how many run at once."""
    return await JobRunner().run(kind, payload, limits=limits, on_event=on_event)


class _Execution:
    """One process and those who watch it."""

    def __init__(self, limits: JobLimits, on_event: OnEvent) -> None:
        self._limits = limits
        self._on_event = on_event
        self._network: NetworkConfinement | None = None
        self._peak_memory_bytes = 0
        self._detail = b""

    async def run(
        self,
        request: Mapping[str, Any],
        python_path: tuple[Path, ...],
        cancelled: asyncio.Task[Any],
    ) -> JobResult:
        """Start the process, wait for the first end there is, and leave nothing of it behind."""
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(
            prefix="gpu-optimizer-job-", ignore_cleanup_errors=True
        ) as folder:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "gpu_optimizer.profiling_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env=_environment(folder, python_path),
                start_new_session=True,
                limit=self._limits.output_bytes,
            )
            errors = asyncio.create_task(self._keep_errors(process))
            try:
                result = await self._first_end(process, request, cancelled)
            finally:
                await _end_session(process)
                errors.cancel()
                with suppress(asyncio.CancelledError):
                    await errors
        failure = result.failure
        if failure is not None:
            detail = self._detail.decode("utf-8", "replace").strip()
            failure = replace(failure, detail=detail)
        return replace(
            result,
            failure=failure,
            network=self._network,
            wall_s=time.monotonic() - began_s,
            peak_memory_bytes=self._peak_memory_bytes,
        )

    async def _first_end(
        self,
        process: asyncio.subprocess.Process,
        request: Mapping[str, Any],
        cancelled: asyncio.Task[Any],
    ) -> JobResult:
        talk = asyncio.create_task(self._talk(process, request))
        watch = asyncio.create_task(self._watch(process))
        try:
            await asyncio.wait(
                {talk, watch, cancelled},
                timeout=self._limits.wall_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not talk.done() and watch.done() and watch.result() is None:
                await asyncio.wait({talk}, timeout=_DRAIN_S)
            if talk.done():
                return talk.result() or await self._silent_end(process)
            if cancelled.done():
                return _failed(FailureReason.CANCELLED, "The job was cancelled.")
            if watch.done():
                return watch.result() or await self._silent_end(process)
            message = f"The job took longer than {self._limits.wall_s:g} s."
            return _failed(FailureReason.TIMEOUT, message)
        finally:
            for task in (talk, watch):
                task.cancel()
            await asyncio.gather(talk, watch, return_exceptions=True)

    async def _talk(
        self, process: asyncio.subprocess.Process, request: Mapping[str, Any]
    ) -> JobResult | None:
        """Hand the job over and listen until it has a result; None: it ended without one."""
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(json.dumps(request).encode())
        with suppress(ConnectionError):
            await process.stdin.drain()
        process.stdin.close()
        n_bytes = 0
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the stream's limit
                line, n_bytes = b"", self._limits.output_bytes
            n_bytes += len(line)
            if n_bytes >= self._limits.output_bytes:
                return _failed(FailureReason.CRASHED, "The job wrote more than it may.")
            if not line:
                return None
            try:
                ended = self._hear(line)
            except ValueError:
                return _failed(FailureReason.CRASHED, "The job reported something unreadable.")
            if ended is not None:
                return ended

    def _hear(self, line: bytes) -> JobResult | None:
        """Result in a line; None: it was an event.

        Raises
        ------
        ValueError
            If the line is neither.
        """
        message = json.loads(line)
        match message:
            case {"event": "result", "value": value}:
                return JobResult(value=value)
            case {"event": "failed", "reason": reason, "message": text}:
                return _failed(FailureReason(reason), text)
            case {"event": "started", "network": network}:
                self._network = NetworkConfinement(network)
        self._on_event(message)
        return None

    async def _watch(self, process: asyncio.subprocess.Process) -> JobResult | None:
        """Stop a job that takes too much; None: it ended by itself."""
        while process.returncode is None:
            n_bytes, n_processes = _usage(process.pid)
            self._peak_memory_bytes = max(self._peak_memory_bytes, n_bytes)
            if n_bytes > self._limits.memory_bytes:
                mib = self._limits.memory_bytes >> 20
                message = f"The job took more than {mib:,} MiB of memory."
                return _failed(FailureReason.OUT_OF_MEMORY, message)
            if n_processes > self._limits.n_processes:
                message = f"The job started more than {self._limits.n_processes} processes."
                return _failed(FailureReason.CRASHED, message)
            await asyncio.sleep(_WATCH_EVERY_S)
        return None

    async def _silent_end(self, process: asyncio.subprocess.Process) -> JobResult:
        """How a process ended that said nothing about it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _DRAIN_S)
        code = process.returncode
        if code == -signal.SIGXCPU:
            message = f"The job took more than {self._limits.cpu_s} s of processor time."
            return _failed(FailureReason.TIMEOUT, message)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return _failed(FailureReason.CRASHED, f"The job was ended by the signal {name}.")
        return _failed(FailureReason.CRASHED, f"The job ended without a result (code {code}).")

    async def _keep_errors(self, process: asyncio.subprocess.Process) -> None:
        """Empty standard error, of which only the end is kept."""
        assert process.stderr is not None  # noqa: S101 - asked for above
        while block := await process.stderr.read(1 << 16):
            self._detail = (self._detail + block)[-_DETAIL_BYTES:]


def _usage(pid: int) -> tuple[int, int]:
    """Resident bytes and number of processes of a job, with all its descendants."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    n_bytes = 0
    for one in family:
        with suppress(psutil.NoSuchProcess):
            n_bytes += one.memory_info().rss
    return n_bytes, len(family)


async def _end_session(process: asyncio.subprocess.Process) -> None:
    """Kill everything in the job's session, also what left its process group."""
    for _ in range(_KILL_PASSES):
        members = [pid for pid in psutil.pids() if _session(pid) == process.pid]
        if not members:
            break
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0)
    await process.wait()


def _session(pid: int) -> int | None:
    """Session a process belongs to; None: it is gone or not ours to ask about."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _environment(folder: str, python_path: tuple[Path, ...]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = [*map(str, python_path), *filter(None, [kept.pop("PYTHONPATH", "")])]
    if path:
        kept["PYTHONPATH"] = os.pathsep.join(
            map(_absolute, os.pathsep.join(path).split(os.pathsep))
        )
    return {**kept, **_SET_VARIABLES, "HOME": folder, "TMPDIR": folder}


def _absolute(path: str) -> str:
    """Relative entries would be looked up in the job's own folder."""
    return str(Path(path).resolve())


def _failed(reason: FailureReason, message: str) -> JobResult:
    return JobResult(failure=JobFailure(reason, message))


def _ignore(_event: Mapping[str, Any]) -> None:
    """Nobody listens."""
