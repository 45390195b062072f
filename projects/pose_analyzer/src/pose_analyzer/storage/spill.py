"""Batches on disk while the database is away: oldest first out, within a limit of bytes.

A folder of segments, each a row of batches behind a header with a checksum; a segment cut short by
a crash keeps what is whole. Nothing is forced to the disk: what a crash of the machine (not of the
service) takes is the last few seconds. One process at a time uses a folder; what another left
behind is taken over.
"""

import fcntl
import itertools
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

_MAGIC: Final = b"PSB1"
# Magic, bytes, rows, when it was put, checksum.
_HEADER: Final = struct.Struct("<4sIIdI")
_SUFFIX: Final = ".batches"
_MAX_SEGMENT_BYTES: Final = 4 * 1024 * 1024
# Dropping the oldest segment must not drop most of what there is.
_MIN_SEGMENTS: Final = 8

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SpilledBatch:
    """What could not be written at its time."""

    data: bytes
    n_rows: int
    put_s: float
    """When its oldest row was put, as UNIX time."""


@dataclass(slots=True)
class _Segment:
    path: Path
    n_bytes: int
    n_rows: int
    oldest_s: float


class SpillFolder:
    """A queue of batches in files; for one thread.

    Parameters
    ----------
    folder
        Where; a folder within it is used that no other process uses.
    max_bytes
        Of all files together.
    essence
        What of a batch must not be dropped with its rows; empty if nothing.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int, essence: Callable[[bytes], bytes]) -> None:
        self._max_bytes = max_bytes
        self._segment_bytes = min(_MAX_SEGMENT_BYTES, max_bytes // _MIN_SEGMENTS)
        self._essence = essence
        self._lock: int | None
        self._folder, self._lock = _own_folder(folder)
        self._segments = deque(
            found
            for path in sorted(self._folder.glob(f"*{_SUFFIX}"))
            if (found := _known_segment(path)) is not None
        )
        last = int(self._segments[-1].path.stem) if self._segments else 0
        self._numbers = itertools.count(last + 1)
        self._is_open = False

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(segment.n_bytes for segment in self._segments)

    @property
    def n_rows(self) -> int:
        """In all files."""
        return sum(segment.n_rows for segment in self._segments)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest row was put, as UNIX time; None if there is nothing."""
        return self._segments[0].oldest_s if self._segments else None

    def append(self, batch: SpilledBatch) -> int:
        """Keep a batch, and drop the oldest rows if they are too many.

        Returns
        -------
        int
            How many rows were dropped.

        Raises
        ------
        OSError
            The disk is full or broken; the batch is not kept.
        """
        written = _header_and_data(batch)
        size = len(written)
        if size > self._max_bytes:
            return batch.n_rows
        n_dropped = 0
        while self.n_bytes + size > self._max_bytes:
            n_rows = self._drop_oldest()
            if n_rows is None:
                return n_dropped + batch.n_rows
            n_dropped += n_rows
        segment = self._segment_for(size, batch.put_s)
        with segment.path.open("r+b") as file:
            # What a failed attempt may have left is written over.
            file.seek(segment.n_bytes)
            file.write(written)
            file.truncate()
        segment.n_bytes += size
        segment.n_rows += batch.n_rows
        return n_dropped

    def oldest(self) -> list[SpilledBatch]:
        """Batches of the oldest segment, whole ones only; none if there is no segment.

        From now on nothing is added to that segment.
        """
        if not self._segments:
            return []
        if len(self._segments) == 1:
            self._is_open = False
        return _read_segment(self._segments[0].path)

    def forget_oldest(self) -> None:
        """Remove the oldest segment, whose batches are safe elsewhere."""
        self._segments.popleft().path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have the folder; what is in it stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _segment_for(self, n_bytes: int, put_s: float) -> _Segment:
        full = self._segments and self._segments[-1].n_bytes + n_bytes > self._segment_bytes
        if full or not self._is_open or not self._segments:
            path = self._folder / f"{next(self._numbers):012d}{_SUFFIX}"
            path.touch()
            self._segments.append(_Segment(path, 0, 0, put_s))
            self._is_open = True
        return self._segments[-1]

    def _drop_oldest(self) -> int | None:
        """Drop the rows of the oldest segment that has any; how many, None if there is none."""
        with_rows = next((n for n, one in enumerate(self._segments) if one.n_rows), None)
        if with_rows is None:
            return None
        if with_rows == len(self._segments) - 1:
            self._is_open = False
        old = [self._segments.popleft() for _ in range(with_rows + 1)]
        kept = [
            SpilledBatch(essence, 0, batch.put_s)
            for segment in old
            for batch in _read_segment(segment.path)
            if (essence := self._essence(batch.data))
        ]
        if kept:
            self._segments.appendleft(_rewrite(old[-1].path, kept))
        for segment in old[:-1] if kept else old:
            segment.path.unlink(missing_ok=True)
        return sum(segment.n_rows for segment in old)


def _own_folder(folder: Path) -> tuple[Path, int]:
    """The first folder in there that no other process uses, and its lock."""
    for number in itertools.count():
        own = folder / str(number)
        own.mkdir(parents=True, exist_ok=True)
        lock = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return own, lock
    raise AssertionError("numbers do not end")


def _header_and_data(batch: SpilledBatch) -> bytes:
    checksum = zlib.crc32(batch.data)
    return _HEADER.pack(_MAGIC, len(batch.data), batch.n_rows, batch.put_s, checksum) + batch.data


def _rewrite(path: Path, batches: Sequence[SpilledBatch]) -> _Segment:
    """Replace a segment, whole or not at all."""
    partial = path.with_suffix(".partial")
    data = b"".join(map(_header_and_data, batches))
    partial.write_bytes(data)
    partial.replace(path)
    return _Segment(path, len(data), 0, batches[0].put_s)


def _known_segment(path: Path) -> _Segment | None:
    """What an earlier process left; None, and removed, if nothing in it is whole."""
    batches = _read_segment(path)
    if not batches:
        path.unlink()
        return None
    n_bytes = sum(_HEADER.size + len(batch.data) for batch in batches)
    return _Segment(path, n_bytes, sum(batch.n_rows for batch in batches), batches[0].put_s)


def _read_segment(path: Path) -> list[SpilledBatch]:
    """Batches up to the first that is not whole."""
    content = path.read_bytes()
    batches, at = [], 0
    while at + _HEADER.size <= len(content):
        magic, n_bytes, n_rows, put_s, checksum = _HEADER.unpack_from(content, at)
        data = content[at + _HEADER.size : at + _HEADER.size + n_bytes]
        if magic != _MAGIC or len(data) < n_bytes or zlib.crc32(data) != checksum:
            break
        batches.append(SpilledBatch(data, n_rows, put_s))
        at += _HEADER.size + n_bytes
    if at < len(content):
        log.warning("spill_cut_short", path=str(path), n_lost_bytes=len(content) - at)
    return batches
