"""One person's keypoints as markers: TRC for OpenSim, C3D for everything else.

Both want three coordinates in a unit of length. Keypoints have two, in pixels: z is 0, y is turned
to point up from the upper edge of the picture, and lengths are pixels times `mm_per_px`. With 1,
which stands where nobody has measured it, a "mm" is a pixel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import ezc3d
import numpy as np
from jaxtyping import Float

from pose_analyzer.exports.resampling import Grid, Points
from pose_analyzer.skeletons import KEYPOINT_NAMES, N_KEYPOINTS

MAX_C3D_FRAMES: Final = 65_535
"""The format's counter of frames has 16 bits."""
_NOTE: Final = (
    "2D keypoints: x right, y up from the picture's upper edge, z 0; "
    "lengths are pixels times MM_PER_PX"
)


@dataclass(frozen=True, slots=True)
class Markers:
    """What is written."""

    name: str
    """Of the file, as the header says it."""
    grid: Grid
    mm_per_px: float
    points: Iterable[Points]
    """All moments of the grid, in order, some at a time."""


def write_trc(markers: Markers, path: Path) -> None:
    """Write tab-separated text as OpenSim reads it (its TRCFileAdapter and MarkerData)."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        _write_trc_header(markers, file)
        times_s = markers.grid.times_s
        number = 0
        for points in markers.points:
            for coordinates in _in_mm(points, markers.mm_per_px):
                values = "\t".join(f"{value:.3f}" for value in coordinates.ravel().tolist())
                # A text that every reader takes for a number that is none; OpenSim's older ones
                # stumble over empty cells.
                values = values.replace("nan", "NaN")
                file.write(f"{number + 1}\t{times_s[number]:.6f}\t{values}\n")
                number += 1


def _write_trc_header(markers: Markers, file: TextIO) -> None:
    grid = markers.grid
    rate = f"{grid.rate_hz:g}"
    names = "\t\t\t".join(KEYPOINT_NAMES)
    axes = "\t".join(f"X{n}\tY{n}\tZ{n}" for n in range(1, N_KEYPOINTS + 1))
    file.write(
        f"PathFileType\t4\t(X/Y/Z)\t{markers.name}\n"
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\t"
        "OrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n"
        f"{rate}\t{rate}\t{grid.n_frames}\t{N_KEYPOINTS}\tmm\t{rate}\t1\t{grid.n_frames}\n"
        f"Frame#\tTime\t{names}\n"
        f"\t\t{axes}\n"
        "\n"
    )


def write_c3d(markers: Markers, path: Path) -> None:
    """Write a C3D file; what is unknown has the residual -1.

    Raises
    ------
    ValueError
        There are more than `MAX_C3D_FRAMES`.
    """
    n_frames = markers.grid.n_frames
    if n_frames > MAX_C3D_FRAMES:
        raise ValueError(f"a C3D file has at most {MAX_C3D_FRAMES} frames")
    points = np.ones((4, N_KEYPOINTS, n_frames))
    at = 0
    for some in markers.points:
        points[:3, :, at : at + len(some)] = _in_mm(some, markers.mm_per_px).transpose(2, 1, 0)
        at += len(some)
    unknown = np.isnan(points[0])
    points[:3, unknown] = 0.0
    file = ezc3d.c3d()
    point = file["parameters"]["POINT"]
    point["RATE"]["value"] = [markers.grid.rate_hz]
    point["LABELS"]["value"] = list(KEYPOINT_NAMES)
    point["DESCRIPTIONS"]["value"] = [_NOTE, *[""] * (N_KEYPOINTS - 1)]
    point["UNITS"]["value"] = ["mm"]
    file.add_parameter("POINT", "X_SCREEN", ["+X"])
    file.add_parameter("POINT", "Y_SCREEN", ["+Y"])
    file.add_parameter("POSE", "NOTE", [_NOTE])
    file.add_parameter("POSE", "MM_PER_PX", [markers.mm_per_px])
    file.add_parameter("POSE", "START_S", [markers.grid.start_s])
    file["data"]["points"] = points
    file["data"]["meta_points"]["residuals"] = np.where(unknown, -1.0, 0.0)[None]
    file["data"]["meta_points"]["camera_masks"] = np.zeros((7, N_KEYPOINTS, n_frames), dtype=bool)
    file.write(str(path))


def _in_mm(points: Points, mm_per_px: float) -> Float[np.ndarray, "frames 17 3"]:
    known = np.isfinite(points).all(axis=2)
    z = np.where(known, 0.0, np.nan)
    return np.stack([points[:, :, 0] * mm_per_px, -points[:, :, 1] * mm_per_px, z], axis=2)
