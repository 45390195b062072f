"""One person's keypoints at a regular rate, as programs of motion capture expect. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.frame_rows import Rows
from pose_analyzer.skeletons import N_KEYPOINTS

MAX_RATE_HZ: Final = 1000.0
# Between frames further apart than this the person was not followed.
_MAX_GAP_S: Final = 0.1
_MAX_GAP_STEPS: Final = 2.5

Points = Float[np.ndarray, "_ 17 2"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Regular moments."""

    start_s: float
    rate_hz: float
    n_frames: int

    @property
    def times_s(self) -> Float[np.ndarray, "frames"]:
        """Of each, in seconds of the session."""
        return self.start_s + np.arange(self.n_frames) / self.rate_hz


def grid_between(first_s: float, last_s: float, rate_hz: float) -> Grid:
    """Moments from the first frame to the last."""
    # A whole number of steps must not lose its last one to rounding.
    return Grid(first_s, rate_hz, int(np.floor((last_s - first_s) * rate_hz + 1e-6)) + 1)


def usual_rate_hz(times_s: Float[np.ndarray, "frames"]) -> float:
    """Rate of most frames, rounded to a thousandth; 30 where there are not two."""
    steps_s = np.diff(times_s)
    steps_s = steps_s[steps_s > 0.0]
    if not len(steps_s):
        return 30.0
    return float(np.clip(round(1.0 / float(np.median(steps_s)), 3), 1.0, MAX_RATE_HZ))


def resample(pages: Iterable[Rows], grid: Grid) -> Iterator[Points]:
    """Keypoints at the grid's moments, in order, some at a time.

    Between two frames they lie on the straight line; where a keypoint is unknown in either, or the
    frames are too far apart, they are NaN.

    Parameters
    ----------
    pages
        One person's rows in order of time, from the grid's start to its end.
    grid
        Where values are wanted.
    """
    max_gap_s = max(_MAX_GAP_S, _MAX_GAP_STEPS / grid.rate_hz)
    moments_s = grid.times_s
    n_done = 0
    times_s = np.empty(0)
    points = np.empty((0, N_KEYPOINTS, 2))
    for rows in pages:
        times_s = np.concatenate([times_s[-1:], rows["time_s"]])
        points = np.concatenate([points[-1:], rows["keypoints"][:, :, :2].astype(np.float64)])
        stop = int(np.searchsorted(moments_s, times_s[-1], side="left"))
        if stop > n_done:
            yield _between(times_s, points, moments_s[n_done:stop], max_gap_s)
            n_done = stop
    if n_done < grid.n_frames:
        left = moments_s[n_done:]
        yield _between(times_s, points, left, max_gap_s)


def _between(
    times_s: Float[np.ndarray, "samples"],
    points: Float[np.ndarray, "samples 17 2"],
    moments_s: Float[np.ndarray, "frames"],
    max_gap_s: float,
) -> Points:
    if not len(times_s):
        return np.full((len(moments_s), N_KEYPOINTS, 2), np.nan)
    before = np.clip(np.searchsorted(times_s, moments_s, side="right") - 1, 0, len(times_s) - 1)
    after = np.minimum(before + 1, len(times_s) - 1)
    step_s = times_s[after] - times_s[before]
    since_s = np.clip(moments_s - times_s[before], 0.0, None)
    weight = np.divide(since_s, step_s, out=np.zeros_like(step_s), where=step_s > 0.0)
    weight = np.clip(weight, 0.0, 1.0)[:, None, None]
    line = (1.0 - weight) * points[before] + weight * points[after]
    # At a frame itself its neighbour does not matter.
    line = np.where(weight == 0.0, points[before], line)
    apart = (step_s > max_gap_s) & (since_s > 0.0)
    line[apart] = np.nan
    return line
