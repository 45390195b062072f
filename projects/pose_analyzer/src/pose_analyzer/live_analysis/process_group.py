"""Starts analysis processes, talks to them, and replaces those that die."""

import asyncio
import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

import structlog
from msgspec import structs

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_library import FormFolders
from pose_analyzer.live_analysis import messages
from pose_analyzer.live_analysis.session import ANALYSIS_NAME
from pose_analyzer.stream_types import AnalysedFrame

_WORKER: Final = "pose_analyzer.live_analysis.worker"
# Processes with a thread per core each would only wait for each other.
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_READ_BYTES: Final = 1 << 16
_START_S: Final = 60.0
_CLOSE_S: Final = 5.0
MAX_BACKLOG: Final = 24
"""Frames a process has not answered, from which on its streams' frames wait and become stale."""
# A process that dies before it is ready is not started again at once.
_RETRY_S: Final = 1.0

log = structlog.get_logger()


class AnalysisProcess:
    """A process, its successors, and the streams that live there.

    Any thread may call `open`, `change`, `end` and `ask`; the rest belongs to `ProcessGroup`.
    """

    def __init__(
        self,
        exercises: Sequence[Exercise],
        wake: Callable[[], None],
        form_folders: FormFolders | None = None,
    ) -> None:
        self.connection: socket.socket | None = None
        self.started: Future[None] = Future()
        """Resolved once the first process is ready, or has died."""
        self.ready = False
        self._wake = wake
        self._configure = messages.write(
            messages.Configure(
                [exercise.model_dump() for exercise in exercises],
                None if form_folders is None else form_folders.as_texts(),
            )
        )
        # Held while the connection is written to or replaced.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._held = bytearray()
        self._unsent = bytearray()
        self._reader = messages.Reader()
        self._asked: deque[_Question] = deque()
        self._sessions: dict[str, messages.Open] = {}
        """As they would begin now, by stream."""

    @property
    def n_streams(self) -> int:
        """How many streams live here."""
        return len(self._sessions)

    @property
    def has_room(self) -> bool:
        """Whether it keeps up with what it is asked."""
        return len(self._asked) < MAX_BACKLOG

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._unsent)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def open(self, session: messages.Open) -> None:
        """Begin a session."""
        with self._lock:
            self._sessions[session.stream_id] = session
            self._send(messages.write(session))

    def change(self, stream_id: str, exercise: str) -> None:
        """Count another exercise."""
        with self._lock:
            before = self._sessions[stream_id]
            # The reference was chosen for another exercise.
            form = replace(before.form, reference=None)
            self._sessions[stream_id] = structs.replace(before, exercise=exercise, form=form)
            self._send(messages.write(messages.Change(stream_id, exercise)))

    def end(self, stream_id: str) -> "Future[bytes] | None":
        """Forget a session; the repetitions not yet told, if it was opened with rows."""
        with self._lock:
            session = self._sessions.pop(stream_id)
            last: Future[bytes] | None = _future() if session.with_rows else None
            connected = self.connection is not None
            if last is not None and connected:
                self._asked.append(last)
            self._send(messages.write(messages.End(stream_id)))
        if last is not None and not connected:
            last.set_exception(_failure("its process is not running"))
        return last

    def ask(self, question: messages.Analyse) -> "Future[AnalysedFrame]":
        """Have a frame analysed; `send` must follow."""
        future: Future[AnalysedFrame] = _future()
        data = messages.write(question)
        with self._lock:
            if self.connection is not None:
                self._asked.append(future)
                self._held += data
                return future
        future.set_exception(_failure("its process is not running"))
        return future

    def rehearse(self, stream_id: str) -> None:
        """Have it prepare for a frame that will be asked about soon, if it has nothing to do."""
        if not self._asked:
            with self._lock:
                self._send(messages.write(messages.Rehearse(stream_id)))

    def send(self) -> None:
        """Send what was asked: one system call for all frames of a batch."""
        if self._held:
            with self._lock:
                self._send(b"")

    def start(self) -> None:
        """Start a process, with new sessions for the streams there are."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                # -P: no module of that name from the working directory.
                [sys.executable, "-P", "-m", _WORKER],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
                # Ctrl+C in the terminal is for the parent, which ends its processes in order.
                start_new_session=True,
            )
        ours.setblocking(False)
        with self._lock:
            self.connection = ours
            self._send(self._configure)
            for session in self._sessions.values():
                self._send(messages.write(session))

    def flush(self) -> None:
        """Write what could not be written at once."""
        with self._lock:
            # In front of what is held: it was asked before.
            self._held = self._unsent + self._held
            self._unsent.clear()
            self._send(b"")

    def receive(self, buffer: bytearray) -> bool:
        """Resolve what has been answered; False once the process has ended."""
        if self.connection is None:
            return False
        try:
            n_bytes = self.connection.recv_into(buffer)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        for reply in self._reader.replies(buffer[:n_bytes]):
            if not isinstance(reply, messages.Ready):
                self._resolve(reply)
                continue
            self.ready = True
            if not self.started.done():
                self.started.set_result(None)
        return n_bytes > 0

    def bury(self) -> int | None:
        """Clean up after a process that has ended; its exit code."""
        with self._lock:
            lost, self._asked = self._asked, deque()
            if self.connection is not None:
                self.connection.close()
            self.connection = None
            self._held.clear()
            self._unsent.clear()
            self._reader = messages.Reader()
        self.ready = False
        code = None if self._process is None else self._process.wait()
        failure = _failure(f"its process ended with code {code}")
        if not self.started.done():
            self.started.set_exception(failure)
        for future in lost:
            future.set_exception(failure)
        return code

    def stop_asking(self) -> None:
        """Let the process end once it has answered everything."""
        with self._lock, contextlib.suppress(OSError):
            self._send(b"")
            if self.connection is not None:
                self.connection.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()

    def _send(self, data: bytes) -> None:
        data = bytes(self._held) + data
        self._held.clear()
        if self.connection is None:
            return
        n_sent = 0
        if not self._unsent:
            try:
                n_sent = self.connection.send(data)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                return  # noticed again where answers are received
        if n_sent < len(data):
            self._unsent += data[n_sent:]
            self._wake()

    def _resolve(self, reply: messages.Analysed | messages.Ended) -> None:
        future = self._asked.popleft()
        if isinstance(reply, messages.Ended):
            future.set_result(reply.repetitions)
        elif reply.error is not None:
            future.set_exception(_failure(reply.error))
        else:
            future.set_result(
                AnalysedFrame(
                    people=reply.people,
                    n_people=reply.n_people,
                    n_new_repetitions=reply.n_new_repetitions,
                    analyse_s=reply.analyse_s,
                    rows=reply.rows,
                    repetitions=reply.repetitions,
                )
            )


class ProcessGroup:
    """Several `AnalysisProcess`, and the thread that looks after all of them.

    The thread also receives what they answer, unless an event loop was told to.

    Raises
    ------
    BackendFailedError
        A process cannot be started.
    """

    def __init__(
        self,
        exercises: Sequence[Exercise],
        n_processes: int,
        form_folders: FormFolders | None = None,
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        # The thread's own: it must not receive what the loop already does.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_loop: asyncio.AbstractEventLoop | None = None
        self._ended: deque[AnalysisProcess] = deque()
        self._start_at_s: dict[AnalysisProcess, float] = {}
        self.processes = [
            AnalysisProcess(exercises, self._wake, form_folders) for _ in range(n_processes)
        ]
        for process in self.processes:
            self._start(process)
        self._thread = threading.Thread(target=self._run, name="analysis-replies", daemon=True)
        self._thread.start()
        try:
            for process in self.processes:
                process.started.result(_START_S)
        except TimeoutError as error:
            self.close()
            raise _failure(f"its process is not ready after {_START_S:.0f} s") from error
        except BackendFailedError:
            self.close()
            raise

    def receive_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have answers received by the loop that waits for them: one thread less on their way.

        The loop must go on until `close` has returned.
        """
        self._next_loop = loop
        self._wake()

    def close(self) -> None:
        """Have everything answered that was asked, then end the processes."""
        if self._closing:
            return
        self._closing = True
        for process in self.processes:
            process.stop_asking()
        self._wake()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            for process in self.processes:
                process.kill()
            # The loop may be the one that waits here.
            self._ended.extend(self.processes)
            self._wake()
            self._thread.join()
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _wake(self) -> None:
        # A full buffer wakes it as well.
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def _start(self, process: AnalysisProcess) -> None:
        process.start()
        self._watch(process)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._listen, process)

    def _run(self) -> None:
        """Receive until all processes have ended."""
        buffer = bytearray(_READ_BYTES)
        while not self._closing or any(one.connection is not None for one in self.processes):
            for key, events in self._selector.select(self._wait_s()):
                if key.data is None:
                    self._woken.recv(_READ_BYTES)
                    self._on_woken()
                    continue
                if events & selectors.EVENT_WRITE:
                    key.data.flush()
                    self._watch(key.data)
                if self._loop is not None or not events & selectors.EVENT_READ:
                    continue
                if not key.data.receive(buffer):
                    self._replace(key.data)
            while self._ended:
                self._replace(self._ended.popleft())
            self._start_due()

    def _on_woken(self) -> None:
        handed_over = self._loop is not self._next_loop
        self._loop = self._next_loop
        for process in self.processes:
            self._watch(process)
            if handed_over and self._loop is not None and process.connection is not None:
                self._loop.call_soon_threadsafe(self._listen, process)

    def _watch(self, process: AnalysisProcess) -> None:
        """Have the thread told of what it must do about a process."""
        if process.connection is None:
            return
        write = selectors.EVENT_WRITE if process.has_unsent else 0
        events = write | (selectors.EVENT_READ if self._loop is None else 0)
        known = self._selector.get_map().get(process.connection)
        if known is None and events:
            self._selector.register(process.connection, events, process)
        elif known is not None and events:
            self._selector.modify(process.connection, events, process)
        elif known is not None:
            self._selector.unregister(process.connection)

    def _listen(self, process: AnalysisProcess) -> None:
        """In the loop's thread: have the loop receive from a process until it ends."""
        loop, connection, buffer = self._loop, process.connection, bytearray(_READ_BYTES)
        if loop is None or connection is None:
            return

        def receive() -> None:
            if not process.receive(buffer):
                loop.remove_reader(connection)
                self._ended.append(process)
                self._wake()

        loop.add_reader(connection, receive)

    def _replace(self, process: AnalysisProcess) -> None:
        """Have a successor started, at once if it is likely to succeed."""
        if process.connection is None:
            return
        if process.connection in self._selector.get_map():
            self._selector.unregister(process.connection)
        was_ready = process.ready
        code = process.bury()
        if not self._closing:
            log.error("analysis_process_died", exit_code=code, n_streams=process.n_streams)
            self._start_at_s[process] = time.monotonic() + (0.0 if was_ready else _RETRY_S)

    def _wait_s(self) -> float | None:
        if not self._start_at_s:
            return None
        return max(min(self._start_at_s.values()) - time.monotonic(), 0.0)

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for process in [one for one, due_s in self._start_at_s.items() if due_s <= now_s]:
            del self._start_at_s[process]
            if not self._closing:
                self._start(process)


_Question = Future[Any]
"""Of an `AnalysedFrame`, or of the last repetitions of a session."""


def _future() -> _Question:
    future: _Question = Future()
    # From now on nobody can cancel it: answers are matched to questions by their order.
    future.set_running_or_notify_cancel()
    return future


def _failure(reason: str) -> BackendFailedError:
    return BackendFailedError(ANALYSIS_NAME, reason)
