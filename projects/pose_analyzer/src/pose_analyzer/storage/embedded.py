"""A PostgreSQL server of the service's own, from a wheel's programs.

The process that holds the folder's lock is its owner: it starts the server as its direct child,
starts it again when it breaks, and takes it along when it ends, however it ends. Other processes of
the same user join the server; when its owner is gone, one of them becomes the owner.
"""

import os
import threading
import time
from pathlib import Path
from typing import Final

import structlog

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.server_folder import ServerAddress, ServerFolder
from pose_analyzer.storage.server_process import EmbeddedConfig, ServerProcess, answers

_LOOK_EVERY_S: Final = 0.02
_WATCH_EVERY_S: Final = 0.2
_MIN_BACKOFF_S: Final = 0.2
_MAX_BACKOFF_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A server that ran for so long is started again without much delay."""

log = structlog.get_logger()


class EmbeddedServer:
    """A server in a folder, as its owner or as one who joined.

    Parameters
    ----------
    folder
        Where its data are.
    config
        How it is run.
    """

    def __init__(self, folder: Path, config: EmbeddedConfig | None = None) -> None:
        self._folder = ServerFolder(folder)
        self._config = config or EmbeddedConfig()
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._address: ServerAddress | None = None
        self._problem: DatabaseUnavailableError | None = None
        self._is_owner = False
        # The system ends the server with the thread that started it, so this one stays.
        self._thread = threading.Thread(target=self._run, name="postgres-owner", daemon=True)

    @property
    def is_owner(self) -> bool:
        """Whether this process started the server."""
        return self._is_owner

    @property
    def address(self) -> ServerAddress:
        """Where the server is, or will be again: while it is restarted nobody answers there.

        Raises
        ------
        DatabaseUnavailableError
            It has not been started.
        """
        with self._changed:
            if self._address is None:
                raise self._problem or self._unavailable("it has not been started.")
            return self._address

    def start(self) -> None:
        """Start the server or join it; returns once it answers.

        Raises
        ------
        DatabaseUnavailableError
            It cannot be started; says why. This object is not used afterwards.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._address or self._problem, self._config.start_timeout_s
            )
            if self._address is not None:
                return
            problem = self._problem or self._unavailable(
                f"no server answered within {self._config.start_timeout_s:g} s; see "
                f"{self._folder.log}."
            )
        self.close()
        raise problem

    def close(self) -> None:
        """Stop the server if it is this process's, else leave it."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        backoff_s = _MIN_BACKOFF_S
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                self._turn()
            except DatabaseUnavailableError as error:
                self._failed(error)
            except OSError as error:
                self._failed(self._unavailable(f"{error.strerror}: {error.filename}"))
            else:
                continue
            if self._address is None:
                return
            if time.monotonic() - began_s > _STEADY_S:
                backoff_s = _MIN_BACKOFF_S
            self._closing.wait(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _turn(self) -> None:
        """Be the owner to the end, or see for a moment that another one is."""
        lock = self._folder.try_lock()
        if lock is None:
            self._join()
            return
        try:
            self._serve(lock)
        finally:
            self._is_owner = False
            os.close(lock)

    def _join(self) -> None:
        address = self._folder.read_address()
        if address is not None and address != self._address and answers(address):
            self._ready(address)
        self._closing.wait(_LOOK_EVERY_S if self._address is None else _WATCH_EVERY_S)

    def _serve(self, lock: int) -> None:
        server = ServerProcess(self._folder, self._config, lock)
        try:
            address = server.begin()
            while not answers(address):
                server.check()
                if self._closing.wait(_LOOK_EVERY_S):
                    return
            self._folder.write_address(address)
            self._is_owner = True
            self._ready(address)
            while not self._closing.wait(_WATCH_EVERY_S):
                server.check()
        finally:
            server.stop()

    def _ready(self, address: ServerAddress) -> None:
        log.info("database_ready", owner=self._is_owner, folder=str(self._folder.root))
        with self._changed:
            self._address, self._problem = address, None
            self._changed.notify_all()

    def _failed(self, problem: DatabaseUnavailableError) -> None:
        log.error("database_failed", folder=str(self._folder.root), reason=problem.reason)
        with self._changed:
            self._problem = problem
            self._changed.notify_all()

    def _unavailable(self, reason: str) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(f"in {self._folder.root}", reason)
