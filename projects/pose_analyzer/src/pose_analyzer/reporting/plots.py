"""Numbers that the report's plots are drawn from, thinned out to what a screen can show."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from pose_analyzer.reporting.summary import readable
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.types import PersonAnalysis, Phase

MAX_POINTS: Final = 2000
PHASES: Final = tuple(Phase)
# From the angles that matter in most lifts to those that matter in few.
_ROWS: Final = (
    ("Knee", ("left_knee", "right_knee")),
    ("Hip", ("left_hip", "right_hip")),
    ("Trunk inclination", ("trunk_inclination",)),
    ("Elbow", ("left_elbow", "right_elbow")),
    ("Shoulder", ("left_shoulder", "right_shoulder")),
    ("Ankle", ("left_ankle", "right_ankle")),
    ("Neck inclination", ("neck_inclination",)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """Which rows of a person are plotted; -1 stands for a break in the lines."""

    rows: Int64[np.ndarray, "points"]
    step: int
    """Every `step`-th frame is plotted."""

    def take(self, column: np.ndarray, decimals: int) -> list[Any]:
        """Round `column` at the plotted rows; None where not known or at a break."""
        values = np.round(column.astype(np.float64)[self.rows], decimals)
        unknown = ~np.isfinite(values) | (self.rows < 0)
        return [None if u else v for v, u in zip(values.tolist(), unknown.tolist(), strict=True)]


def choose_rows(frame_index: Int64[np.ndarray, "frames"], max_points: int = MAX_POINTS) -> Sampling:
    """Every n-th row so that at most `max_points` remain, with breaks where frames are missing."""
    n_frames = len(frame_index)
    step = max(1, -(-n_frames // max_points))
    rows = np.arange(0, n_frames, step)
    if n_frames < 2:
        return Sampling(rows, step)
    usual_distance = float(np.median(np.diff(frame_index))) * step
    gaps = np.flatnonzero(np.diff(frame_index[rows]) > 1.5 * usual_distance)
    # Two at each gap, so that the colours of a heat map end at both its edges.
    return Sampling(np.insert(rows, np.repeat(gaps + 1, 2), -1), step)


def plot_data(person: PersonAnalysis) -> dict[str, Any]:
    """Columns for the report's script, as plain JSON values; times in seconds, degrees."""
    sampling = choose_rows(person.frame_index)
    codes = np.array([PHASES.index(phase) for phase in person.phase], dtype=np.float64)
    n_rows = len(person.frame_index)
    return {
        "step": sampling.step,
        "time": _times(person, sampling) if n_rows else [],
        "progress": sampling.take(person.progress, 3) if n_rows else [],
        "phase": sampling.take(codes, 0) if n_rows else [],
        "rows": [
            {"title": title, "angles": angles}
            for title, names in _ROWS
            if (
                angles := [_angle(person, sampling, name) for name in names if _known(person, name)]
            )
        ],
        "keypoints": [readable(name) for name in KEYPOINT_NAMES],
        "confidences": [
            sampling.take(person.confidences[:, k], 2) if n_rows else []
            for k in range(len(KEYPOINT_NAMES))
        ],
        "repetitions": [
            {"number": r.number, "start": round(r.start_s, 3), "end": round(r.end_s, 3)}
            for r in person.repetitions
        ],
    }


def _times(person: PersonAnalysis, sampling: Sampling) -> list[float]:
    """Give each plotted row its time; the two of a break lie just inside its edges."""
    times_s = person.time_s[sampling.rows]
    breaks = np.flatnonzero(sampling.rows < 0)
    opening, closing = breaks[::2], breaks[1::2]
    times_s[opening] = times_s[opening - 1] + 1e-3
    times_s[closing] = times_s[closing + 1] - 1e-3
    return [float(time_s) for time_s in np.round(times_s, 3)]


def _known(person: PersonAnalysis, name: str) -> bool:
    return bool(np.isfinite(person.angles_deg[:, ANGLE_NAMES.index(name)]).any())


def _angle(person: PersonAnalysis, sampling: Sampling, name: str) -> dict[str, Any]:
    k = ANGLE_NAMES.index(name)
    side = name.partition("_")[0]
    in_3d, trusted_3d = person.angles_3d_deg, person.angles_3d_trusted
    if in_3d is not None and trusted_3d is not None:
        in_3d = np.where(trusted_3d, in_3d, np.nan)
    return {
        "side": side if side in {"left", "right"} else "centre",
        "deg": sampling.take(person.angles_deg[:, k], 1),
        "sd": sampling.take(person.angles_sd_deg[:, k], 1),
        "trusted": sampling.take(person.angles_trusted[:, k], 0),
        "deg3d": None if in_3d is None else sampling.take(in_3d[:, k], 1),
    }
