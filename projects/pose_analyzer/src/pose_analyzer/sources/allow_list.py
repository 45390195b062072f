"""Which files and cameras the service reads for its clients.

An allowed source is a folder, for every file below it, or the beginning of a camera's address,
such as ``rtsp://camera.example/hall/``. What is opened is put together from the parts that were
checked, so that two readings of one odd address cannot differ.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pose_analyzer.errors import SourceNotAllowedError, SourceNotFoundError

# Ports from RFC 7826, 4.2 and 19.
_DEFAULT_PORTS: Final = {"rtsp": 554, "rtsps": 322}
_PRINTABLE_ASCII: Final = re.compile(r"[!-~]+")
# Some cameras take user and password as parameters, in the path too: "/user=a&password=b".
_PARAMETERS: Final = re.compile(r"[?#&;=@].*")


class SourceKind(StrEnum):
    """What a source is."""

    FILE = "file"
    CAMERA = "camera"


@dataclass(frozen=True, slots=True)
class AllowedSource:
    """A source that may be read."""

    kind: SourceKind
    name: str
    """For messages: the file's name, or the camera's address without user, password and query."""
    location: str = field(repr=False)
    """Resolved path, or whole address: to be opened, never to be shown."""


def resolve_source(source: str, allowed: tuple[str, ...]) -> AllowedSource:
    """Find what a client asks for among what the service may read.

    Parameters
    ----------
    source
        Path of a file, absolute or relative to an allowed folder, or a camera's address.
    allowed
        Folders and beginnings of addresses. Scheme, host and port of an address are compared
        exactly, its path by whole segments. User and password of an allowed address are used
        where the client's address has none.

    Raises
    ------
    SourceNotAllowedError
        It is none of the allowed ones; its message holds no user, password or query.
    SourceNotFoundError
        It would be allowed, but there is no such file.
    """
    if "://" in source:
        return _camera(source, [entry for entry in allowed if "://" in entry])
    return _file(source, [entry for entry in allowed if entry and "://" not in entry])


def entries_without_effect(allowed: tuple[str, ...]) -> list[str]:
    """What is wrong with entries that allow nothing, without any user or password."""
    problems = []
    for number, entry in enumerate(allowed, start=1):
        if "://" in entry:
            if _parse(entry) is None:
                problems.append(f"entry {number} is not an rtsp:// or rtsps:// address")
        elif not Path(entry).is_dir():
            problems.append(f"entry {number}, {entry!r}, is no folder here")
    return problems


def _file(source: str, folders: list[str]) -> AllowedSource:
    paths = [path for folder in folders if (path := _below(folder, source)) is not None]
    for path in paths:
        if path.is_file():
            return AllowedSource(SourceKind.FILE, path.name, str(path))
    if paths:
        raise SourceNotFoundError(source)
    raise SourceNotAllowedError(source)


def _below(folder: str, source: str) -> Path | None:
    """Where the file is, links followed; None if that is not below the folder."""
    try:
        root = Path(folder).resolve()
        path = (root / source).resolve()
        path.is_file()
    except (OSError, RuntimeError, ValueError):
        return None  # a name too long, links in a circle, a NUL byte
    return path if source and path.is_relative_to(root) else None


@dataclass(frozen=True, slots=True)
class _Address:
    """The parts of a camera's address."""

    scheme: str
    userinfo: str
    host: str
    port: int
    path: str
    query: str

    @property
    def segments(self) -> list[str]:
        return [unquote(part) for part in self.path.split("/") if part]

    @property
    def endpoint(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def begins_with(self, other: "_Address") -> bool:
        """Whether it is on the same server, at or below the other's path."""
        return (self.scheme, self.host, self.port) == (
            other.scheme,
            other.host,
            other.port,
        ) and self.segments[: len(other.segments)] == other.segments


def _camera(source: str, prefixes: list[str]) -> AllowedSource:
    wanted = _parse(source)
    for entry in prefixes:
        prefix = _parse(entry)
        if wanted is not None and prefix is not None and wanted.begins_with(prefix):
            userinfo = wanted.userinfo or prefix.userinfo
            whole = f"{wanted.scheme}://{userinfo}{wanted.endpoint}{wanted.path}{wanted.query}"
            return AllowedSource(SourceKind.CAMERA, _shown(wanted), whole)
    scheme = source.partition("://")[0]
    raise SourceNotAllowedError(f"{scheme}://…" if wanted is None else _shown(wanted))


def _shown(address: _Address) -> str:
    return f"{address.scheme}://{address.endpoint}{_PARAMETERS.sub('', address.path)}"


def _parse(text: str) -> _Address | None:
    """Parts of an address; None for one that is malformed or that servers may read differently."""
    if not _PRINTABLE_ASCII.fullmatch(text) or "\\" in text:
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "#" in text:
        return None
    if "%" in parts.hostname or not _is_plain(parts.path):
        return None
    return _Address(
        parts.scheme,
        _userinfo(parts),
        parts.hostname,
        _DEFAULT_PORTS[parts.scheme] if port is None else port,
        parts.path,
        f"?{parts.query}" if parts.query else "",
    )


def _userinfo(parts: SplitResult) -> str:
    """User and password as they belong into an address, with the @, or nothing."""
    if not parts.username:
        return ""
    user = quote(unquote(parts.username), safe="")
    password = "" if parts.password is None else ":" + quote(unquote(parts.password), safe="")
    return f"{user}{password}@"


def _is_plain(path: str) -> bool:
    """Whether no segment leads elsewhere, however often a server decodes it."""
    decoded = path
    while (again := unquote(decoded)) != decoded:
        decoded = again
    if "\\" in decoded or decoded.count("/") != path.count("/"):
        return False
    return not any(part in {".", ".."} for part in decoded.split("/"))
