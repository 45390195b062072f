"""Stored files, in a local folder or in S3, under the same keys.

Whatever is written appears under its key whole or not at all; in a local folder it is also on the
disk, not only on its way there, once the call returns. So a row written afterwards never names a
file that is not there.
"""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from pose_analyzer.artifact_keys import check_key, check_prefix, session_prefix
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_errors import (
    ArtifactMissingError,
    StorageFullError,
    StorageUnavailableError,
)
from shared_utils.units import BYTES_PER_MIB

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
_STREAM_BYTES: Final = 4 * BYTES_PER_MIB
# A request waits for this, so it must not take obstore's three minutes.
_MAX_RETRIES: Final = 5
_GIVE_UP_AFTER_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
_TIMEOUT_S: Final = 120.0

log = structlog.get_logger()


class ArtifactStore:
    """Files by their keys (`artifact_keys`); may be used from any thread.

    Parameters
    ----------
    store
        A local folder or a bucket.
    folder
        The local folder; None for a bucket.

    Raises
    ------
    StorageUnavailableError
        Every call: the folder or the server cannot be used.
    StorageFullError
        Every call that writes: there is no room.
    ValueError
        Every call: not a key, which is a defect of the caller.
    """

    def __init__(self, store: LocalStore | S3Store, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @property
    def gives_addresses(self) -> bool:
        """Whether clients can send and fetch files by themselves, by `presign`."""
        return self._folder is None

    def put(self, key: str, content: bytes | Path) -> None:
        """Store bytes or a copy of a file, in place of what the key held before."""
        with _told(key, writing=True):
            obstore.put(self._store, check_key(key), content)
            if self._folder is not None:
                _sync(self._folder / key)

    def adopt(self, key: str, path: Path) -> None:
        """Store a file and remove it where it was; within one file system nothing is copied."""
        if self._folder is None or not self._moved(check_key(key), path):
            self.put(key, path)
            path.unlink()

    def get(self, key: str) -> bytes:
        """Content of a small file.

        Raises
        ------
        ArtifactMissingError
            It is not there.
        """
        with _told(key):
            return bytes(obstore.get(self._store, check_key(key)).bytes())

    def stream(self, key: str) -> Iterator[bytes]:
        """Content of a file, a few MiB at a time; raises as `get`."""
        with _told(key):
            for piece in obstore.get(self._store, check_key(key)).stream(_STREAM_BYTES):
                yield bytes(piece)

    def download(self, key: str, path: Path) -> None:
        """Copy a file to `path`, which appears once it is complete; raises as `get`."""
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with _told(key, writing=True), partial.open("wb") as file:
                for piece in self.stream(key):
                    file.write(piece)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def local_path(self, key: str, cache_dir: Path) -> Path:
        """Where a file can be read: itself in a local folder, else a copy, made when it is missing.

        Parameters
        ----------
        key
            Which file; its content never changes.
        cache_dir
            Where copies are kept; made if it is not there.

        Raises
        ------
        ArtifactMissingError
            It is not there.
        """
        path = (self._folder or cache_dir) / check_key(key)
        if self._folder is None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.download(key, path)
        if not path.is_file():
            raise ArtifactMissingError(key)
        return path

    def size_bytes(self, key: str) -> int | None:
        """Size of a file; None if it is not there."""
        try:
            with _told(key):
                return obstore.head(self._store, check_key(key))["size"]
        except ArtifactMissingError:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return self.size_bytes(key) is not None

    def sizes_bytes(self, prefix: str) -> dict[str, int]:
        """Keys that begin with a prefix, and the sizes of their files."""
        with _told(prefix):
            found = obstore.list(self._store, check_prefix(prefix)).collect()
        return {meta["path"]: meta["size"] for meta in found}

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(ArtifactMissingError), _told(key):
            obstore.delete(self._store, check_key(key))

    def delete_prefix(self, prefix: str) -> None:
        """Remove all files whose keys begin with a prefix; done again, it does no harm."""
        check_prefix(prefix)
        if self._folder is None:
            keys = list(self.sizes_bytes(prefix))
            with _told(prefix):
                if keys:
                    obstore.delete(self._store, keys)
            return
        # With it go the half-written files of a process that was killed, which are in no list.
        with disk_errors(prefix), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / prefix)

    def presign(
        self, keys: Sequence[str], method: Literal["GET", "PUT"], expires_s: float
    ) -> list[str]:
        """Addresses at which anybody may do this with these files, without credentials.

        Raises
        ------
        ValueError
            Files are in a local folder.
        """
        store = self._store
        if not isinstance(store, S3Store):
            raise ValueError("a local folder has no addresses")  # noqa: TRY004 - not an argument
        checked = [check_key(key) for key in keys]
        with _told(keys[0] if keys else ""):
            signed = obstore.sign(store, method, checked, timedelta(seconds=expires_s))
        return list(signed)

    def _moved(self, key: str, path: Path) -> bool:
        """Move a file in; False if it lies on another file system."""
        assert self._folder is not None  # noqa: S101 - asked by the caller
        target = self._folder / key
        with disk_errors(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync(path)
            try:
                path.replace(target)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    return False
                raise
            _sync(target.parent)
        return True


def open_artifact_store(settings: StorageSettings) -> ArtifactStore:
    """Open the bucket of the settings, or a folder below the data folder where none is named.

    S3 credentials come from the usual variables (``AWS_ACCESS_KEY_ID`` …) or from the machine's
    role. A bucket is not asked for anything yet.

    Raises
    ------
    StorageUnavailableError
        The folder cannot be written to.
    """
    if settings.s3_bucket is not None:
        return ArtifactStore(_bucket(settings))
    folder = settings.data_dir / "files"
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
        return ArtifactStore(LocalStore(folder), folder)


class LazyArtifactStore:
    """The store of a service that must also work without one.

    Parameters
    ----------
    settings
        As read by the shell; None: files are kept nowhere.
    """

    def __init__(self, settings: StorageSettings | None) -> None:
        self._settings = settings
        self._store: ArtifactStore | None = None

    def get(self) -> ArtifactStore:
        """The store, opened when it is first asked for; what failed is tried again.

        Raises
        ------
        StorageUnavailableError
            The folder cannot be written to, or there is to be none.
        """
        if self._settings is None:
            raise StorageUnavailableError("the service was set up without a place for files")
        if self._store is None:
            self._store = open_artifact_store(self._settings)
        return self._store

    def problem(self) -> str | None:
        """Why there is no store, for whoever runs the service; None if there is one."""
        try:
            self.get()
        except StorageUnavailableError as error:
            return error.reason
        return None


def delete_session_files(store: ArtifactStore, session_id: uuid.UUID) -> None:
    """Remove all files of a session: its recording and all that was made of it.

    To be done before its rows are removed: if it fails, the rows are still there to begin again
    from.
    """
    store.delete_prefix(session_prefix(session_id))


def _bucket(settings: StorageSettings) -> S3Store:
    assert settings.s3_bucket is not None  # noqa: S101 - asked by the caller
    other: dict[str, Any] = {}
    if settings.s3_endpoint_url is not None:
        other["endpoint"] = settings.s3_endpoint_url
    return S3Store(
        settings.s3_bucket,
        region=settings.s3_region,
        client_options={
            "allow_http": (settings.s3_endpoint_url or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
            "timeout": timedelta(seconds=_TIMEOUT_S),
        },
        retry_config={
            "max_retries": _MAX_RETRIES,
            "retry_timeout": timedelta(seconds=_GIVE_UP_AFTER_S),
        },
        **other,
    )


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(key: str, *, writing: bool = False) -> Iterator[None]:
    """Turn the errors of obstore into this package's."""
    try:
        with disk_errors(key, missing_is_known=not writing):
            yield
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        number = _OS_ERROR.search(reason)
        raise _failure(key, int(number[1]) if number else None, reason) from error


@contextlib.contextmanager
def disk_errors(key: str, *, missing_is_known: bool = False) -> Iterator[None]:
    """Turn what the disk refuses into this package's errors.

    Parameters
    ----------
    key
        What is read or written, for the log.
    missing_is_known
        Whether a file that is not there is an `ArtifactMissingError`.

    Raises
    ------
    StorageFullError, StorageUnavailableError
        There is no room, or another reason.
    """
    try:
        yield
    except FileNotFoundError as error:
        if missing_is_known and "NoSuchBucket" not in str(error):
            raise ArtifactMissingError(key) from error
        raise _failure(key, error.errno, str(error).partition("\n")[0]) from error
    except OSError as error:
        raise _failure(key, error.errno, str(error).partition("\n")[0]) from error


def _failure(
    key: str, number: int | None, reason: str
) -> StorageFullError | StorageUnavailableError:
    log.warning("artifact_store_failed", key=key, reason=reason)
    return StorageFullError() if number in _FULL else StorageUnavailableError(reason)
