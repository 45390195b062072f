"""`angles.csv`: one row for each person and frame."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

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
        for suffix in ("deg", "sd_deg", "trusted", "3d_deg", "3d_sd_deg", "3d_trusted")
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
    whether to trust it (1 or 0), and the same from world landmarks; `repetitions` is what had been
    counted by then. What is not known is empty.
    """
    with open_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for person in analysis.people:
            writer.writerows(_rows(person))


def _rows(person: PersonAnalysis) -> Iterator[list[object]]:
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
            int(person.n_repetitions[row]),
        ]


def _angle_cells(person: PersonAnalysis, row: int) -> Iterator[object]:
    in_3d = person.angles_3d_deg, person.angles_3d_sd_deg, person.angles_3d_trusted
    for k in range(len(ANGLE_NAMES)):
        yield _cell(float(person.angles_deg[row, k]), 2)
        yield _cell(float(person.angles_sd_deg[row, k]), 2)
        yield int(person.angles_trusted[row, k])
        if in_3d[0] is None or in_3d[1] is None or in_3d[2] is None:
            yield from ("", "", "")
        else:
            yield _cell(float(in_3d[0][row, k]), 2)
            yield _cell(float(in_3d[1][row, k]), 2)
            yield int(in_3d[2][row, k])


def _cell(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else ""
