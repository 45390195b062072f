"""Bodies of requests that are too large for memory, written to disk while they arrive."""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final

import anyio
from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from pose_analyzer.storage.artifacts import disk_errors
from pose_analyzer.upload_errors import (
    MalformedFormError,
    UploadInterruptedError,
    UploadStalledError,
)
from shared_utils.units import BYTES_PER_MIB

IDLE_S: Final = 60.0
_BATCH_BYTES: Final = BYTES_PER_MIB  # a change of threads for each piece of 64 KiB would cost more
_MAX_FIELDS: Final = 16
_MAX_FIELD_BYTES: Final = 4096

TooLarge = Callable[[], Exception]
"""Makes the error to raise for a file that is larger than it may be."""


async def feed_body(pieces: AsyncIterator[bytes], feed: Callable[[bytes], None]) -> None:
    """Hand a request's body to `feed`, in threads, in batches.

    Raises
    ------
    UploadInterruptedError
        The client went away.
    UploadStalledError
        Nothing came for `IDLE_S`.
    """
    batch: list[bytes] = []
    n_bytes = 0
    while (piece := await _next(pieces)) is not None:
        batch.append(piece)
        n_bytes += len(piece)
        if n_bytes >= _BATCH_BYTES:
            await to_thread.run_sync(feed, b"".join(batch))
            batch, n_bytes = [], 0
    if batch:
        await to_thread.run_sync(feed, b"".join(batch))


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    try:
        with anyio.fail_after(IDLE_S):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise UploadStalledError(IDLE_S) from error
    except ClientDisconnect as error:
        raise UploadInterruptedError from error


class IncomingFile:
    """A file that is being received; a context manager that closes it.

    Parameters
    ----------
    path
        Where it goes.
    max_bytes
        Most that is accepted.
    too_large
        What is raised when there is more.
    """

    def __init__(self, path: Path, max_bytes: int, too_large: TooLarge) -> None:
        self._max_bytes = max_bytes
        self._too_large = too_large
        self._digest = hashlib.sha256()
        self.n_bytes = 0
        with disk_errors(path.name):
            self._file = path.open("wb")

    def __enter__(self) -> "IncomingFile":  # noqa: PYI034 - beartype
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing writes what is still in memory, for which there may be no room either.
        with disk_errors(self._file.name):
            self._file.close()

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises
        ------
        StorageFullError, StorageUnavailableError
            They cannot be written.
        """
        self.n_bytes += len(data)
        if self.n_bytes > self._max_bytes:
            raise self._too_large()
        self._digest.update(data)
        with disk_errors(self._file.name):
            self._file.write(data)

    @property
    def sha256(self) -> str:
        """Of what came so far, in hexadecimal."""
        return self._digest.hexdigest()


class FormReader:
    """A multipart form with one file, which goes to disk, and short fields.

    Starlette's own parser would put the file where the system keeps temporary ones, often memory.

    Parameters
    ----------
    content_type
        Header of the request.
    file
        What takes the content of the file.

    Raises
    ------
    MalformedFormError
        Every call: not such a form.
    """

    def __init__(self, content_type: str, file: IncomingFile) -> None:
        self._file = file
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """As its owner calls it; not checked."""
        self.file_type: str | None = None
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[str, str] = {}
        self._field: tuple[str, bytearray] | None = None
        self._ended = False
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise MalformedFormError("it names no boundary")
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedFormError("its boundary is too long") from error

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the request."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedFormError("it does not follow RFC 7578") from error

    def finish(self) -> None:
        """See that everything has come."""
        if not self._ended:
            raise MalformedFormError("it breaks off before its end")
        if self.filename is None:
            raise MalformedFormError("it has no file")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        # parse_options_header answers in Latin-1, so that the bytes survive it.
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise MalformedFormError("a field has no name")
        if b"filename" in options:
            if self.filename is not None:
                raise MalformedFormError("it has more than one file")
            self.filename = _text(options[b"filename"])
            self.file_type = self._headers.get("content-type")
            self._field = None
            return
        if len(self.fields) >= _MAX_FIELDS:
            raise MalformedFormError(f"it has more than {_MAX_FIELDS} fields")
        self._field = _text(options[b"name"]), bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file.write(data[start:end])
            return
        name, value = self._field
        value.extend(data[start:end])
        if len(value) > _MAX_FIELD_BYTES:
            raise MalformedFormError(f"the field {name[:40]!r} is too long")

    def _on_part_end(self) -> None:
        if self._field is not None:
            name, value = self._field
            self.fields[name] = _text(bytes(value))

    def _on_end(self) -> None:
        self._ended = True


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedFormError("a text is not UTF-8") from error
