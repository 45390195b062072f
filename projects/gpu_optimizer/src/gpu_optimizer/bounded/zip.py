"""Reads chosen entries of a zip archive that a stranger sent, within limits checked beforehand."""

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final

from gpu_optimizer.bounded.byte_sources import ByteSource
from gpu_optimizer.errors import InvalidModelError

_MAX_NAME_CHARACTERS: Final = 512
_MAX_RATIO: Final = 100
"""Uncompressed to compressed; JSON of a graph reaches about 30."""
_FREE_RATIO_BYTES: Final = 1 << 20
"""Entries up to this size may be compressed as they like."""
_DRIVE: Final = re.compile(r"[A-Za-z]:")

# APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16: end of central directory, its zip64 form.
_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # encrypted; also NotImplementedError
    EOFError,
    OSError,
    ValueError,
    struct.error,
)
_END64: Final = struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True, slots=True)
class ZipLimits:
    """What an archive may hold."""

    n_entries: int
    directory_bytes: int
    entry_bytes: int
    """Uncompressed, of an entry that is read."""


class BoundedZip:
    """A zip archive whose entries can be read safely.

    Parameters
    ----------
    file
        The whole archive, seekable.
    source
        Name to use in messages.
    limits
        Checked before anything is decompressed; the directory's size even before it is read.

    Raises
    ------
    InvalidModelError
        If it is no zip archive, breaks a limit, has the shape of a bomb, or names entries so that
        they would land outside a folder.
    """

    def __init__(self, file: ByteSource, source: str, limits: ZipLimits) -> None:
        self._source = source
        self._limits = limits
        n_file_bytes = file.seek(0, 2)
        self._check_directory(file, n_file_bytes)
        file.seek(0)
        try:
            self._archive = zipfile.ZipFile(file)
        except _UNREADABLE as error:
            raise InvalidModelError(source, f"not a readable zip archive: {error}.") from error
        entries = self._archive.infolist()
        # The directory may hold more entries than its end claims.
        self._check_count(len(entries))
        self.names = frozenset(entry.filename for entry in entries)
        if len(self.names) != len(entries):
            raise InvalidModelError(source, "two entries of the archive have the same name.")
        for entry in entries:
            self._check_entry(entry)
        if sum(entry.file_size for entry in entries) > _MAX_RATIO * n_file_bytes:
            raise InvalidModelError(source, "the archive unpacks to far more than its size.")

    def read(self, name: str) -> bytes:
        """Content of an entry.

        Raises
        ------
        InvalidModelError
            If it is too large, encrypted, damaged, or compressed in an unusual way.
        """
        entry = self._archive.getinfo(name)
        if entry.file_size > self._limits.entry_bytes:
            raise InvalidModelError(
                self._source,
                f"{name} has {entry.file_size:,} bytes; at most "
                f"{self._limits.entry_bytes:,} are read.",
            )
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InvalidModelError(self._source, f"{name} is neither stored nor deflated.")
        try:
            with self._archive.open(entry) as stream:
                return stream.read(self._limits.entry_bytes + 1)[: self._limits.entry_bytes]
        except _UNREADABLE as error:
            raise InvalidModelError(self._source, f"{name} cannot be read: {error}.") from error

    def _check_directory(self, file: ByteSource, n_file_bytes: int) -> None:
        n_entries, n_directory_bytes = _directory_size(file, n_file_bytes, self._source)
        self._check_count(n_entries)
        if n_directory_bytes > self._limits.directory_bytes:
            raise InvalidModelError(self._source, "the archive's directory is too long.")

    def _check_count(self, n_entries: int) -> None:
        if n_entries > self._limits.n_entries:
            raise InvalidModelError(
                self._source,
                f"{n_entries:,} entries in the archive; at most "
                f"{self._limits.n_entries:,} are read.",
            )

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if (
            not 0 < len(name) <= _MAX_NAME_CHARACTERS
            or not name.isprintable()
            or name.startswith("/")
            or "\\" in name
            or ".." in name.split("/")
            or _DRIVE.match(name)
        ):
            raise InvalidModelError(self._source, "an entry's name leads outside the archive.")
        if entry.file_size > max(_FREE_RATIO_BYTES, _MAX_RATIO * entry.compress_size):
            raise InvalidModelError(self._source, f"{name} unpacks to far more than its size.")


def _directory_size(file: ByteSource, n_file_bytes: int, source: str) -> tuple[int, int]:
    """Entries and bytes of the central directory, as the end of the file claims.

    The end record must be the file's last bytes, without a comment, and its zip64 form directly
    before: where `zipfile` looks first, so that both read the same records.
    """
    n_tail_bytes = min(n_file_bytes, _END64.size + _END64_LOCATOR.size + _END.size)
    file.seek(n_file_bytes - n_tail_bytes)
    tail = file.read(n_tail_bytes)
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\x00\x00":
        raise InvalidModelError(source, "not a zip archive, cut off, or with a comment at its end.")
    fields = _END.unpack(end)
    n_entries, n_directory_bytes = int(fields[4]), int(fields[5])
    locator = tail[-_END.size - _END64_LOCATOR.size : -_END.size]
    if locator.startswith(b"PK\x06\x07") and tail.startswith(b"PK\x06\x06"):
        fields = _END64.unpack_from(tail)
        n_entries, n_directory_bytes = int(fields[7]), int(fields[8])
    return n_entries, n_directory_bytes
