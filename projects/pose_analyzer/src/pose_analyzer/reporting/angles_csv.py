"""`angles.csv`: one row for each person and frame."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pose_analyzer.reporting.atomic import open_atomically
from pose_analyzer.skeletons import ANGLE_NAMES
from pose_analyzer.types import PersonAnalysis, VideoAnalysis

COLUMNS = (
    "track_id",
    "frame",
    "time_s",
    "detected",
    *(
        f"{name}_{suffix}"
        for name in ANGLE_NAMES
        for suffix in ("deg", "sd_deg", "trusted", "3d_deg")
    ),
    "view_yaw_deg",
    "exercise",
    "phase",
    "progress",
    "repetitions",
)


def write_angles_csv(analysis: VideoAnalysis, path: Path) -> None:
    """Write the angles of everyone, person after person, in time order.

    Columns are those of `COLUMNS`: for each angle its value and standard deviation in degrees,
    whether to trust it (1 or 0), and the angle from world landmarks; `repetitions` counts those
    completed by then. What is not known is empty.
    """
    with open_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for person in analysis.people:
            writer.writerows(_rows(person))


def _rows(person: PersonAnalysis) -> Iterator[list[object]]:
    # Counted when a repetition ends; the tolerance is for times that went through rounding.
    ends_s = np.array([repetition.end_s for repetition in person.repetitions])
    counts = np.searchsorted(ends_s, person.time_s + 1e-6, side="right")
    for row, time_s in enumerate(person.time_s.tolist()):
        yield [
            person.track_id,
            int(person.frame_index[row]),
            f"{time_s:.4f}",
            int(person.detected[row]),
            *_angle_cells(person, row),
            _cell(float(person.yaw_deg[row]), 1),
            person.exercise or "",
            person.phase[row].value,
            _cell(float(person.progress[row]), 3),
            int(counts[row]),
        ]


def _angle_cells(person: PersonAnalysis, row: int) -> Iterator[object]:
    values, sds = person.angles_deg[row].tolist(), person.angles_sd_deg[row].tolist()
    trusted = person.angles_trusted[row].tolist()
    in_3d = person.angles_3d_deg
    values_3d = [math.nan] * len(values) if in_3d is None else in_3d[row].tolist()
    for value, sd, trust, value_3d in zip(values, sds, trusted, values_3d, strict=True):
        yield from (_cell(value, 2), _cell(sd, 2), int(trust), _cell(value_3d, 2))


def _cell(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else ""
