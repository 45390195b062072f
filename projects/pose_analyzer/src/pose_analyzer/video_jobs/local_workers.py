"""Workers that the service starts beside itself, so that one machine needs nothing else."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog

_CHUNK_WORKER: Final = "pose_analyzer.chunk_worker"
_AGGREGATOR: Final = "pose_analyzer.worker_main"
IDLE_S: Final = 60.0
"""A worker that has had nothing to do for so long ends; the next job starts another."""
_LOOK_EVERY_S: Final = 1.0
_RESTART_AFTER_S: Final = 5.0
_STOP_S: Final = 25.0

log = structlog.get_logger()


class LocalWorkers:
    """Starts workers when there is work, and starts others for those that die.

    Workers end when this process does, however it ends: they read from a pipe that is then closed.

    Parameters
    ----------
    n_chunk_workers
        How many analyse chunks; one more puts the results together. 0: no workers here.
    environment
        Variables of the workers; None: those of this process.
    """

    def __init__(self, n_chunk_workers: int, environment: dict[str, str] | None = None) -> None:
        modules = [*[_CHUNK_WORKER] * n_chunk_workers, _AGGREGATOR] if n_chunk_workers else []
        self._places = [_Place(module, environment) for module in modules]
        self._wanted_until_s = float("-inf")
        self._closing = threading.Event()
        self._looking = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local-workers", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> Sequence[int]:
        """Of the workers that run now."""
        return [place.process.pid for place in self._places if place.process is not None]

    def wake(self) -> None:
        """Have workers there for a while: something waits to be done."""
        self._wanted_until_s = time.monotonic() + IDLE_S
        self._looking.set()

    def close(self) -> None:
        """Stop the workers; what they have not finished is given back."""
        self._closing.set()
        self._looking.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._looking.wait(_LOOK_EVERY_S)
            self._looking.clear()
            wanted = time.monotonic() < self._wanted_until_s
            for place in self._places:
                place.look_after(wanted=wanted and not self._closing.is_set())
        for place in self._places:
            place.stop()
        give_up_s = time.monotonic() + _STOP_S
        for place in self._places:
            place.wait(max(give_up_s - time.monotonic(), 0.0))


class _Place:
    """Where one worker runs, or none."""

    def __init__(self, module: str, environment: dict[str, str] | None) -> None:
        self._module = module
        self._environment = environment
        self._start_after_s = float("-inf")
        self.process: subprocess.Popen[bytes] | None = None

    def look_after(self, *, wanted: bool) -> None:
        if self.process is not None and self.process.poll() is not None:
            if self.process.returncode:
                log.warning("worker_died", worker=self._module, exit_code=self.process.returncode)
                # One that cannot start is not started again and again.
                self._start_after_s = time.monotonic() + _RESTART_AFTER_S
            self._forget()
        if self.process is None and wanted and time.monotonic() > self._start_after_s:
            command = [sys.executable, "-P", "-m", self._module]
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [*command, "--idle-s", str(IDLE_S), "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                env=self._environment,
                # Ctrl+C in the terminal is for the parent, which ends its workers in order.
                start_new_session=True,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self, timeout_s: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._forget()

    def _forget(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None
