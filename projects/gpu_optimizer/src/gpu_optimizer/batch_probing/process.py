"""A process that tries batch sizes, seen from the caller, who outlives whatever happens there."""

import json
import multiprocessing.spawn
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Any, Final

from gpu_optimizer.batch_probing.child import INSIDE_VARIABLE
from gpu_optimizer.batch_probing.errors import ProbeFailedError
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult

_PREPARED: Final = ("sys_path", "sys_argv", "dir", "orig_dir")
_MAIN: Final = ("init_main_from_name", "init_main_from_path")
_END_S: Final = 5.0
"""How long an idle process may take to end by itself."""
_DETAIL_CHARACTERS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """What a process is to try."""

    maker: str
    """``module:function``: from the payload to what tries a `ProbeRequest`."""
    payload: Mapping[str, Any]
    """JSON."""
    with_script: bool = False
    """Whether the caller's script is imported too, because classes of the model are defined there.
    Like all multiprocessing it then has to be guarded by ``if __name__ == "__main__":``."""
    wall_s: float = 300.0
    """One trial, or the start, may take so long; then the process is ended."""
    allocator: str | None = None
    """PYTORCH_ALLOC_CONF of the process; None: the caller's."""


class ProbeProcess:
    """Tries batch sizes in another process; that one is replaced where a trial spoiled it.

    It begins to start when this object is made, and takes nothing of the GPU before the first
    trial. Used as a context manager.

    Parameters
    ----------
    job
        What to try.

    Raises
    ------
    ProbeFailedError
        If called from within such a process.
    """

    def __init__(self, job: ProbeJob) -> None:
        if INSIDE_VARIABLE in os.environ:
            raise ProbeFailedError(
                "A script whose own classes are tried is imported by the process that tries them, "
                'and must not search again there: put the search under `if __name__ == "__main__":`'
            )
        self._job = job
        self._child: _Child | None = _Child(job)
        self._begun: ProbeRequest | None = None
        self.n_started = 1
        """How many processes it took so far."""

    def __enter__(self) -> "ProbeProcess":  # noqa: PYI034 -- the checker of shapes refuses Self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and give back what it has of the GPU."""
        if self._child is not None:
            self._child.close()
            self._child = None
        self._begun = None

    def begin(self, request: ProbeRequest) -> None:
        """Let a size be tried as soon as the process is ready; `probe` takes the answer."""
        if self._child is not None:
            self._child.send(request)
            self._begun = request

    def is_busy(self) -> bool:
        """Whether what was begun goes on."""
        return self._begun is not None and self._child is not None and self._child.is_silent()

    def probe(self, request: ProbeRequest) -> ProbeResult:
        """Try a batch size; a process that crashes or hangs is a result as well.

        Raises
        ------
        ProbeFailedError
            If a process does not even start.
        """
        if self._child is None:
            self._child = _Child(self._job)
            self.n_started += 1
        self._child.wait_until_ready()
        begun, self._begun = self._begun, None
        if begun is not None and begun != request:
            self._child.receive(begun)
        if begun != request:
            self._child.send(request)
        result = self._child.receive(request)
        if not result.clean:
            self.close()
        return result


class _Child:
    """One process and the thread that reads from it."""

    def __init__(self, job: ProbeJob) -> None:
        self._wall_s = job.wall_s
        self._ready = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = dict(os.environ)
        if job.allocator is not None:
            environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
            environment["PYTORCH_ALLOC_CONF"] = job.allocator
        # Models print to standard output, which is the channel: the child takes it away from them.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_optimizer.batch_probing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._write(
            {
                "maker": job.maker,
                "payload": job.payload,
                "preparation": preparation(with_script=job.with_script),
            }
        )

    def wait_until_ready(self) -> None:
        """Wait for the end of the imports, the first time.

        Raises
        ------
        ProbeFailedError
            If the process ends instead.
        """
        if self._ready:
            return
        if self._hear() is None:
            reason = self._last_words()
            self.close()
            raise ProbeFailedError(f"The process that tries batch sizes did not start: {reason}")
        self._ready = True

    def is_silent(self) -> bool:
        """Whether neither an answer nor the end was heard, beyond being ready."""
        return self._lines.qsize() <= (not self._ready) and self._process.poll() is None

    def send(self, request: ProbeRequest) -> None:
        self._write(asdict(request))

    def receive(self, request: ProbeRequest) -> ProbeResult:
        answer = self._hear()
        if answer is not None:
            return ProbeResult(**answer)
        reason = self._last_words()
        self.close()
        return ProbeResult(request.batch_size, failure=reason, clean=False)

    def close(self) -> None:
        """End the process: by its own will if it is idle, else by force."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        with suppress(OSError):
            self._process.stdin.close()
        self._end()
        self._errors.close()

    def _end(self) -> int:
        """Let the process end, by force if it does not; its exit code."""
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        # A process that is gone is noticed when its answer is waited for.
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        """Take lines as they come; an empty one is the end."""
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _hear(self) -> dict[str, Any] | None:
        """Return the next message; None: there will be none."""
        try:
            line = self._lines.get(timeout=self._wall_s)
        except queue.Empty:
            self._process.kill()
            return None
        if not line:
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def _last_words(self) -> str:
        """How the process ended."""
        code = self._end()
        if code == -signal.SIGKILL:
            return f"it was killed: {self._wall_s:g} s were over, or the host was out of memory."
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(size - _DETAIL_CHARACTERS, 0))
        said = self._errors.read().decode("utf-8", "replace").strip()
        return f"it ended with {how}. {said}".strip()


def preparation(*, with_script: bool) -> dict[str, Any]:
    """What another process has to know to find this one's modules; as multiprocessing does it."""
    known = multiprocessing.spawn.get_preparation_data("batch probe")
    wanted = (*_PREPARED, *_MAIN) if with_script else _PREPARED
    return {name: known[name] for name in wanted if name in known}
