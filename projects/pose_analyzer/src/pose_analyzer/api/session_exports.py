"""A session as a file: written to disk first, so that a slow client holds no connection."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from pose_analyzer.api.session_schemas import ExportFormat, ExportQuery
from pose_analyzer.db_connector import Database
from pose_analyzer.errors import NothingThereError, TooMuchAskedError
from pose_analyzer.exports.markers import MAX_C3D_FRAMES, Markers, write_c3d, write_trc
from pose_analyzer.exports.resampling import grid_between, resample, usual_rate_hz
from pose_analyzer.exports.tables import write_csv, write_parquet
from pose_analyzer.frame_rows import Rows
from pose_analyzer.storage.artifacts import disk_errors
from pose_analyzer.storage.pose_rows import RowFilter, read_rows
from pose_analyzer.storage.session_writer import microseconds
from pose_analyzer.storage.sessions import get_session, tracks_of_session

MAX_TRC_FRAMES: Final = 1_000_000
MEDIA_TYPES: Final = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.TRC: "text/tab-separated-values",
    ExportFormat.C3D: "application/octet-stream",
}
_PIECE_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is wanted of a session.

    Without a track these are everybody in tables, and who was seen most often in files of markers,
    which hold one person.
    """

    session_id: UUID
    query: ExportQuery

    @property
    def filename(self) -> str:
        """What the file is called."""
        return f"session_{self.session_id}.{self.query.format.value}"

    @property
    def rows(self) -> RowFilter:
        """Which rows that are."""
        return self.query.rows_of(self.session_id)


def export_session(
    database: Database, folder: Path, request: ExportRequest
) -> tuple[BinaryIO, int]:
    """Write a session to a file; memory holds some pages of rows.

    Parameters
    ----------
    database, request
        Of what.
    folder
        Where the file is made; it is gone from there once it is closed.

    Returns
    -------
    tuple of file and int
        The open file, and how many bytes it has.

    Raises
    ------
    UnknownSessionError, NothingThereError
        There is no such session, or nobody in it.
    TooMuchAskedError
        The format cannot hold it.
    StorageFullError, StorageUnavailableError
        The file cannot be written.
    """
    with disk_errors(request.filename):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="export-", dir=folder) as own:
            path = Path(own) / request.filename
            writers: dict[ExportFormat, Callable[[], None]] = {
                ExportFormat.CSV: lambda: _write_table(database, request, path, write_csv),
                ExportFormat.PARQUET: lambda: _write_table(database, request, path, write_parquet),
                ExportFormat.TRC: lambda: _write_markers(database, request, path),
                ExportFormat.C3D: lambda: _write_markers(database, request, path),
            }
            writers[request.query.format]()
            return path.open("rb"), path.stat().st_size


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """Content of a file, which is closed at the end."""
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


TableWriter = Callable[[Iterable[Rows], int, Path], None]


def _write_table(
    database: Database, request: ExportRequest, path: Path, write: TableWriter
) -> None:
    with database.session() as session:
        started_us = microseconds(get_session(session, request.session_id).started_at)
    with database.raw() as connection:
        write(read_rows(connection, request.rows), started_us, path)


def _write_markers(database: Database, request: ExportRequest, path: Path) -> None:
    with database.session() as session:
        get_session(session, request.session_id)
        tracks = tracks_of_session(session, request.rows)
    if not tracks:
        raise NothingThereError(
            "frame", "Ask for another track or time; GET /sessions/{session_id} lists the tracks."
        )
    found = tracks[0]
    wanted = replace(request.rows, track_id=found.track_id)
    with database.raw() as connection:
        rate_hz = request.query.rate_hz
        if rate_hz is None:
            first = next(read_rows(connection, wanted))
            rate_hz = usual_rate_hz(first["time_s"])
        grid = grid_between(found.first_s, found.last_s, rate_hz)
        is_c3d = request.query.format is ExportFormat.C3D
        most = MAX_C3D_FRAMES if is_c3d else MAX_TRC_FRAMES
        if grid.n_frames > most:
            raise TooMuchAskedError("frames", most, "Ask for a part with from_s and to_s.")
        points = resample(read_rows(connection, wanted), grid)
        markers = Markers(request.filename, grid, request.query.mm_per_px, points)
        (write_c3d if is_c3d else write_trc)(markers, path)
