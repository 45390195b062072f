"""The folder of an embedded server: its lock, its address for others, what a crash leaves there."""

import fcntl
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.postgres_programs import Account

MAJOR_VERSION: Final = "18"
"""Of PostgreSQL, as the package that brings it is bound to."""
PORT: Final = 5432
USER: Final = "pose"
DATABASE: Final = "pose"
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), less its ending zero
_SOCKET_NAME: Final = f".s.PGSQL.{PORT}"


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is reached by processes of its owner's user."""

    socket_dir: str
    port: int = PORT
    user: str = USER
    database: str = DATABASE


class ServerFolder:
    """Files of one embedded server.

    Parameters
    ----------
    root
        The folder; made if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cluster = root / "cluster"
        self.unfinished_cluster = root / "cluster.new"
        self.log = root / "postgres.log"
        self._lock = root / "owner.lock"
        self._address = root / "address.json"

    def try_lock(self) -> int | None:
        """Become the owner, if there is none.

        The server inherits the lock, so that it is free only once the server is gone as well.

        Returns
        -------
        int or None
            Descriptor that holds the lock until every copy of it is closed; None: somebody has it.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def read_address(self) -> ServerAddress | None:
        """What the present or latest owner wrote down."""
        try:
            return ServerAddress(**json.loads(self._address.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_address(self, address: ServerAddress) -> None:
        """Tell others where the server is."""
        unfinished = self._address.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(address)))
        unfinished.replace(self._address)

    def prepare_sockets(self, account: Account) -> Path:
        """Folder for the server's socket, which its user and root alone may enter."""
        folder = self.root / "run"
        if len(os.fsencode(folder / _SOCKET_NAME)) > _MAX_SOCKET_PATH_BYTES:
            folder = self._short_folder(account)
        folder.mkdir(mode=0o700, exist_ok=True)
        if account.is_other:
            os.chown(folder, account.uid, account.gid)
        for left in folder.glob(f"{_SOCKET_NAME}*"):
            left.unlink()
        return folder

    def _short_folder(self, account: Account) -> Path:
        former = self.read_address()
        if former is not None and _is_private(Path(former.socket_dir), account):
            return Path(former.socket_dir)
        return Path(tempfile.mkdtemp(prefix="pose-db-"))

    def check_version(self) -> None:
        """See whether these programs can read the data.

        Raises
        ------
        DatabaseUnavailableError
            They are of another major version.
        """
        try:
            found = (self.cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return
        if found != MAJOR_VERSION:
            raise DatabaseUnavailableError(
                f"in {self.root}",
                f"PostgreSQL {found} wrote it, and {MAJOR_VERSION} is installed. Copy its data to "
                f"another server with pg_dump {found} and set DATABASE_URL, or move the folder "
                "away to begin anew.",
            )

    def clear_stale_files(self) -> None:
        """Remove what a crash left and would keep the server from starting; under the lock only.

        PostgreSQL itself passes over a ``postmaster.pid`` whose process is gone. Where that number
        has since been given to another process, as is usual in containers, it would refuse.

        Raises
        ------
        DatabaseUnavailableError
            A server that was not started here works in the folder.
        """
        shutil.rmtree(self.unfinished_cluster, ignore_errors=True)
        pid_file = self.cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        try:
            works_here = Path(f"/proc/{pid}/cwd").stat()
        except (FileNotFoundError, ProcessLookupError):
            return
        except PermissionError:
            pass  # a process of somebody else
        else:
            if os.path.samestat(works_here, self.cluster.stat()):
                raise DatabaseUnavailableError(
                    f"in {self.root}",
                    f"process {pid}, a server that this service did not start, works in it; stop "
                    "that first.",
                )
        pid_file.unlink()


def _is_private(folder: Path, account: Account) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return found.st_uid == account.uid and found.st_mode & 0o7777 == 0o700
