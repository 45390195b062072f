"""Rows as tables: CSV and Parquet, one line per person and frame.

Columns end in their unit; coordinates are pixels of the original picture, y down. What is not
known is empty.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pose_analyzer.frame_rows import ROW, Rows
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES

_US_PER_S: Final = 1e6
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S%.6fZ"
_NO_ROWS: Final = np.empty(0, dtype=ROW)


def table_of(rows: Rows, started_us: int) -> pl.DataFrame:
    """Rows as a table.

    Parameters
    ----------
    rows
        Of one session.
    started_us
        Time of day of its second 0, in microseconds since 1970.
    """
    times_us = started_us + np.rint(rows["time_s"] * _US_PER_S).astype(np.int64)
    columns = {
        "time": pl.Series(times_us).cast(pl.Datetime("us", "UTC")),
        "time_s": rows["time_s"],
        "track_id": rows["track_id"],
        "frame_index": rows["frame_index"],
        "confidence": rows["confidence"],
        "n_repetitions": rows["n_repetitions"],
        "progress": rows["progress"],
        "score": rows["score"],
    }
    for number, name in enumerate(ANGLE_NAMES):
        columns[f"{name}_deg"] = rows["angles"][:, number]
    for number, name in enumerate(KEYPOINT_NAMES):
        for part, what in enumerate(("x_px", "y_px", "confidence")):
            columns[f"{name}_{what}"] = rows["keypoints"][:, number, part]
    contiguous = {
        name: np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
    return pl.DataFrame(contiguous).fill_nan(None)


def write_csv(pages: Iterable[Rows], started_us: int, path: Path) -> None:
    """Write a table of text; memory holds a page at a time."""
    with path.open("wb") as file:
        header = True
        for rows in pages:
            table_of(rows, started_us).write_csv(
                file, include_header=header, datetime_format=_TIME_FORMAT
            )
            header = False
        if header:
            table_of(_NO_ROWS, started_us).write_csv(file)


def write_parquet(pages: Iterable[Rows], started_us: int, path: Path) -> None:
    """Write a Parquet file, compressed; memory holds some pages at a time."""
    parts = []
    for number, rows in enumerate(pages):
        part = path.with_name(f"{path.name}.part{number:06d}")
        table_of(rows, started_us).write_parquet(part, compression="lz4")
        parts.append(part)
    if not parts:
        table_of(_NO_ROWS, started_us).write_parquet(path)
        return
    pl.scan_parquet(parts).sink_parquet(path, compression="zstd")
    for part in parts:
        part.unlink()
