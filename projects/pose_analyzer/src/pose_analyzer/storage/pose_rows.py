"""Person-frames into the table and out of it, by COPY in PostgreSQL's binary format.

Both ways whole arrays are converted at once; the format is described in PostgreSQL's manual under
COPY, "Binary Format", and that of arrays in its source, array_send. Numbers are big-endian.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import numpy as np
from jaxtyping import UInt8
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class
from sqlalchemy.orm import Session

from pose_analyzer.frame_rows import ROW, Rows
from pose_analyzer.skeletons import N_ANGLES, N_KEYPOINTS

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_REAL_OID: Final = 700
# PostgreSQL counts from 2000-01-01.
_EPOCH_US: Final = 946_684_800_000_000
_PAGE_ROWS: Final = 8_192
_COPY_BYTES: Final = 1 << 18
_US_PER_S: Final = 1e6


def _array(n_values: int) -> np.dtype[np.void]:
    head = [("n_dimensions", ">i4"), ("has_null", ">i4"), ("type", ">i4"), ("n", ">i4")]
    values = ("values", [("n_bytes", ">i4"), ("value", ">f4")], n_values)
    return np.dtype([*head, ("first", ">i4"), values])


def _with_lengths(columns: list[tuple[str, Any]]) -> np.dtype[np.void]:
    fields: list[tuple[str, Any]] = [("n_columns", ">i2")]
    for name, kind in columns:
        fields += [(f"{name}_bytes", ">i4"), (name, kind)]
    return np.dtype(fields)


_KEYPOINTS: Final = 3 * N_KEYPOINTS
_OF_ROW: Final[list[tuple[str, Any]]] = [
    ("track_id", ">i4"),
    ("frame_index", ">i8"),
    ("time_s", ">f8"),
    ("keypoints", _array(_KEYPOINTS)),
    ("confidence", ">f4"),
    ("angles", _array(N_ANGLES)),
    ("progress", ">f4"),
    ("n_repetitions", ">i2"),
    ("score", ">f4"),
]
_WRITTEN: Final = _with_lengths([("time", ">i8"), ("session_id", "V16"), *_OF_ROW])
_READ: Final = _with_lengths([("time", ">i8"), *_OF_ROW])
_NULLABLE: Final = ("confidence", "progress", "score")
_ARRAYS: Final = ("keypoints", "angles")

_COPY_IN: Final = """
COPY pose_frames (time, session_id, track_id, frame_index, time_s, keypoints, confidence, angles,
                  progress, n_repetitions, score)
FROM STDIN (FORMAT binary)
"""
_COPY_OUT: Final = """
COPY (
    SELECT time, track_id, frame_index, time_s, keypoints, coalesce(confidence, 'NaN'), angles,
           coalesce(progress, 'NaN'), n_repetitions, coalesce(score, 'NaN')
    FROM pose_frames
    WHERE {where}
    ORDER BY time, track_id, frame_index
    LIMIT {limit}
) TO STDOUT (FORMAT binary)
"""


def _template(layout: np.dtype[np.void], columns: list[tuple[str, Any]]) -> np.ndarray:
    """One row in which everything is said but the values."""
    row = np.zeros(1, dtype=layout)
    row["n_columns"] = len(columns)
    for name, kind in columns:
        row[f"{name}_bytes"] = np.dtype(kind).itemsize
    for name in _ARRAYS:
        array = row[name]
        array["n_dimensions"] = array["first"] = 1
        array["type"] = _REAL_OID
        array["n"] = array["values"].shape[-1]
        array["values"]["n_bytes"] = 4
    return row


_BLANK: Final = _template(_WRITTEN, [("time", ">i8"), ("session_id", "V16"), *_OF_ROW])


def encode_rows(session_id: UUID, started_us: int, rows: Rows) -> bytes:
    """Rows of one session as COPY takes them, between its header and its trailer.

    Parameters
    ----------
    session_id
        Whose they are.
    started_us
        Time of day of the session's second 0, in microseconds since 1970.
    rows
        Of `frame_rows.ROW`. NaN becomes NULL where a column is one number.
    """
    written = np.repeat(_BLANK, len(rows))
    elapsed_us = np.rint(rows["time_s"] * _US_PER_S).astype(np.int64)
    written["time"] = started_us - _EPOCH_US + elapsed_us
    written["session_id"] = session_id.bytes
    for name, _ in _OF_ROW:
        if name in _ARRAYS:
            written[name]["values"]["value"] = rows[name].reshape(len(rows), -1)
        else:
            written[name] = rows[name]
    return _without_nulls(written)


def _without_nulls(written: np.ndarray) -> bytes:
    """The rows' bytes; NULL is a length of -1 and no value."""
    unknown = {name: np.isnan(written[name]) for name in _NULLABLE}
    if not any(mask.any() for mask in unknown.values()):
        return written.tobytes()
    for name, mask in unknown.items():
        written[f"{name}_bytes"][mask] = -1
    kept: UInt8[np.ndarray, "rows bytes"] = written.view(np.uint8).reshape(len(written), -1)
    keep = np.ones(kept.shape, dtype=bool)
    for name, mask in unknown.items():
        offset = _WRITTEN.fields[name][1] if _WRITTEN.fields is not None else 0
        keep[mask, offset : offset + 4] = False
    return kept[keep].tobytes()


def copy_rows(connection: Connection, encoded: list[bytes]) -> None:
    """Append rows that `encode_rows` wrote, within the connection's transaction."""
    with connection.cursor() as cursor:
        file = io.BytesIO(b"".join((_HEADER, *encoded, _TRAILER)))
        cursor.copy_expert(_COPY_IN, file, size=_COPY_BYTES)


def driver_connection(session: Session) -> Connection:
    """The connection below a session, within the same transaction."""
    return cast("Connection", session.connection().connection.driver_connection)


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows of a session are wanted."""

    session_id: UUID
    track_id: int | None = None
    """None: everybody's."""
    from_s: float | None = None
    to_s: float | None = None
    """Seconds of the session, both included; None: no limit."""


def read_rows(
    connection: Connection, wanted: RowFilter, page_rows: int = _PAGE_ROWS
) -> Iterator[Rows]:
    """Rows of a session in order of time, a page at a time.

    Between pages nothing is held but the last one, so that a session of any length takes the same
    memory. Rows that are written meanwhile come, too, if they are later than the page.
    """
    after: _Place | None = None
    while True:
        rows, after = _read_page(connection, wanted, after, page_rows)
        if len(rows):
            yield rows
        if len(rows) < page_rows:
            return


_Place = tuple[int, int, int]
"""Microseconds since 2000, track and frame of a row."""


def _read_page(
    connection: Connection, wanted: RowFilter, after: _Place | None, n_rows: int
) -> tuple[Rows, _Place | None]:
    conditions, values = _conditions(wanted)
    if after is not None:
        # The first line is what the index can do.
        conditions += [
            "time >= '2000-01-01Z'::timestamptz + %(us)s * interval '1 microsecond'",
            "(time, track_id, frame_index) > ('2000-01-01Z'::timestamptz"
            " + %(us)s * interval '1 microsecond', %(track)s, %(frame)s)",
        ]
        values |= dict(zip(("us", "track", "frame"), after, strict=True))
    query = _COPY_OUT.format(where=" AND ".join(conditions), limit=n_rows)
    file = io.BytesIO()
    with connection.cursor() as cursor:
        cursor.copy_expert(cursor.mogrify(query, values), file)
    read = _decode(file.getbuffer())
    if not len(read):
        return _as_rows(read), None
    last = read[-1]
    place = int(last["time"]), int(last["track_id"]), int(last["frame_index"])
    return _as_rows(read), place


def _conditions(wanted: RowFilter) -> tuple[list[str], dict[str, Any]]:
    """As SQL, with the values it names."""
    conditions = ["session_id = %(session)s"]
    if wanted.track_id is not None:
        conditions.append("track_id = %(track_id)s")
    # Times of day, by which rows are found, are those of the session rounded to microseconds.
    at = "(SELECT started_at FROM sessions WHERE session_id = %(session)s)"
    if wanted.from_s is not None:
        conditions.append("time_s >= %(from_s)s")
        conditions.append(f"time >= {at} + (%(from_s)s - 0.001) * interval '1 second'")
    if wanted.to_s is not None:
        conditions.append("time_s <= %(to_s)s")
        conditions.append(f"time <= {at} + (%(to_s)s + 0.001) * interval '1 second'")
    return conditions, {
        "session": str(wanted.session_id),
        "track_id": wanted.track_id,
        "from_s": wanted.from_s,
        "to_s": wanted.to_s,
    }


def _decode(data: bytes | memoryview) -> np.ndarray:
    """Rows as COPY gives them.

    Raises
    ------
    ValueError
        If a row has keypoints or angles of another number than this program writes.
    """
    body = memoryview(data)[len(_HEADER) : -len(_TRAILER)]
    if len(body) % _READ.itemsize:
        raise ValueError("pose_frames holds rows of another shape than this program writes")
    return np.frombuffer(body, dtype=_READ)


def _as_rows(read: np.ndarray) -> Rows:
    rows = np.empty(len(read), dtype=ROW)
    for name, _ in _OF_ROW:
        values = read[name]
        if name in _ARRAYS:
            values = values["values"]["value"].reshape(rows[name].shape)
        rows[name] = values
    return rows
