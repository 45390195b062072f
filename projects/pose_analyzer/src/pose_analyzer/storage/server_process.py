"""One run of an embedded server, in a folder whose lock is held."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from psycopg2 import sql

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.postgres_programs import (
    Account,
    account_for,
    programs_of_package,
    reachable_programs,
)
from pose_analyzer.storage.server_folder import PORT, USER, ServerAddress, ServerFolder

_CHILD_SCRIPT: Final = Path(__file__).with_name("postgres_child.py")
_CONNECT_TIMEOUT_S: Final = 5
_FAST_SHUTDOWN_S: Final = 60.0
_IMMEDIATE_SHUTDOWN_S: Final = 10.0
_MAX_LOG_BYTES: Final = 1 << 20
_MAX_REASON_CHARS: Final = 2000
_MAX_REASON_LINES: Final = 5
_GRAVE: Final = (" PANIC: ", " FATAL: ", " ERROR: ")

_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Values of rows, which statements and details have, are nobody's business in a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "shared_buffers": "128MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "64MB",
    "random_page_cost": "1.1",
    # What is read is mostly in the system's cache: a process of its own for each read costs more.
    "io_method": "sync",
    "jit": "off",
    "max_connections": "100",
    # There is no standby, so less is written.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "10min",
}
_FORGETFUL: Final = {"fsync": "off", "full_page_writes": "off"}
_INITDB: Final = (
    f"--username={USER}",
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    # The order of texts is then the same on every machine and after every update of its libraries.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)


@dataclass(frozen=True)
class EmbeddedConfig:
    """How a server of one's own is run."""

    durable: bool = True
    """False: data outlive the server's crash, but not the machine's; for tests."""
    start_timeout_s: float = 300.0
    """Recovery after a crash reads what was written since the last checkpoint."""
    programs: Path = field(default_factory=programs_of_package)
    public_dir: Path = Path("/var/lib/pose_analyzer")
    """Where root puts a copy of programs that the server's user cannot enter."""


class ServerProcess:
    """A server from its start to its end.

    Parameters
    ----------
    folder
        Where its data are.
    config
        How it is run.
    lock
        Descriptor of the folder's lock, which the server inherits.
    """

    def __init__(self, folder: ServerFolder, config: EmbeddedConfig, lock: int) -> None:
        self._folder = folder
        self._config = config
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    def begin(self) -> ServerAddress:
        """Make the folder ready and start the server; returns before it answers.

        Raises
        ------
        DatabaseUnavailableError
            It cannot be started here.
        OSError
            The folder cannot be written.
        """
        account = account_for(self._folder.cluster)
        programs = reachable_programs(self._config.programs, account, self._config.public_dir)
        self._folder.check_version()
        self._folder.clear_stale_files()
        if not self._folder.cluster.is_dir():
            self._make_cluster(programs, account)
        sockets = self._folder.prepare_sockets(account)
        self._process = self._spawned(programs, account, sockets)
        return ServerAddress(str(sockets))

    def check(self) -> None:
        """See whether it still runs.

        Raises
        ------
        DatabaseUnavailableError
            It has ended; with the end of its log.
        """
        assert self._process is not None  # noqa: S101 - begun before
        if self._process.poll() is not None:
            raise self._unavailable(f"the server ended. {self._last_words()}")

    def stop(self) -> None:
        """Stop it in good order, or, if it does not, in worse."""
        if self._process is None:
            return
        for how, patience_s in (
            (signal.SIGINT, _FAST_SHUTDOWN_S),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S),
            (signal.SIGKILL, None),
        ):
            self._process.send_signal(how)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            return

    def _make_cluster(self, programs: Path, account: Account) -> None:
        """Make it under another name, so that one that is half made is never used."""
        unfinished = self._folder.unfinished_cluster
        unfinished.mkdir(mode=0o700)
        if account.is_other:
            os.chown(unfinished, account.uid, account.gid)
        # One call for the file system instead of one for each of a thousand files: seconds less.
        sync = "--sync-method=syncfs" if self._config.durable else "--no-sync"
        with _entered(unfinished) as (descriptor, path):
            done = subprocess.run(  # noqa: S603
                _as_child(account, programs / "initdb", ["-D", path, sync, *_INITDB]),
                stdin=subprocess.DEVNULL,
                pass_fds=(descriptor, self._lock),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            raise self._unavailable(f"initdb failed. {done.stderr.strip()[-_MAX_REASON_CHARS:]}")
        unfinished.rename(self._folder.cluster)

    def _spawned(self, programs: Path, account: Account, sockets: Path) -> subprocess.Popen[bytes]:
        settings = _SETTINGS | ({} if self._config.durable else _FORGETFUL)
        with (
            self._open_log() as server_log,
            _entered(self._folder.cluster) as (cluster, cluster_path),
            _entered(sockets) as (socket_dir, socket_path),
        ):
            settings["unix_socket_directories"] = socket_path
            options = [f"--{name}={value}" for name, value in settings.items()]
            return subprocess.Popen(  # noqa: S603
                _as_child(account, programs / "postgres", ["-D", cluster_path, *options]),
                stdin=subprocess.DEVNULL,
                stdout=server_log,
                stderr=server_log,
                cwd="/",
                pass_fds=(self._lock, cluster, socket_dir),
                # Ctrl-C is for the owner, which stops the server last.
                start_new_session=True,
            )

    def _open_log(self) -> IO[bytes]:
        path = self._folder.log
        too_long = path.exists() and path.stat().st_size > _MAX_LOG_BYTES
        opened = path.open("wb" if too_long else "ab")
        self._log_begin = opened.tell()
        return opened

    def _last_words(self) -> str:
        with self._folder.log.open("rb") as server_log:
            server_log.seek(self._log_begin)
            said = server_log.read().decode(errors="replace").splitlines()
        grave = [line for line in said if any(word in line for word in _GRAVE)]
        return "; ".join((grave or said)[-_MAX_REASON_LINES:])[-_MAX_REASON_CHARS:]

    def _unavailable(self, reason: str) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(f"in {self._folder.root}", reason)


def answers(address: ServerAddress) -> bool:
    """Whether a server is there; makes the database in it if it is new.

    Raises
    ------
    DatabaseUnavailableError
        It is there, but cannot be used.
    """
    try:
        with closing(
            psycopg2.connect(
                host=address.socket_dir,
                port=address.port,
                user=address.user,
                dbname="postgres",
                connect_timeout=_CONNECT_TIMEOUT_S,
            )
        ) as connection:
            connection.autocommit = True
            _make_database(connection, address.database)
    except psycopg2.OperationalError:
        return False
    except psycopg2.Error as error:
        raise DatabaseUnavailableError(f"in {address.socket_dir}", str(error).strip()) from error
    return True


def _make_database(connection: psycopg2.extensions.connection, name: str) -> None:
    with connection.cursor() as cursor, suppress(psycopg2.errors.DuplicateDatabase):
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _as_child(account: Account, program: Path, arguments: Sequence[str]) -> list[str]:
    return [
        *(sys.executable, "-I", "-S", str(_CHILD_SCRIPT)),
        *(str(os.getpid()), str(account.uid), str(account.gid)),
        *(str(program), *arguments),
    ]


@contextmanager
def _entered(folder: Path) -> Iterator[tuple[int, str]]:
    """A descriptor of a folder and a path by which a child that inherits it gets there.

    As root the server runs as somebody to whom the folders above may be closed, such as root's
    home; through the descriptor it needs to enter its own folder only.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}" if os.geteuid() == 0 else str(folder)
    finally:
        os.close(descriptor)
