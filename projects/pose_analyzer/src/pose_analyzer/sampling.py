"""Which frames are analysed when fewer are wanted than there are."""

import math
from typing import Final

_EARLY_RATIO: Final = 0.25  # a frame this share of its period early still counts as on time


def sampling_slot(time_s: float, sample_fps: float, source_fps: float) -> int:
    """Which period of the sampling grid a frame belongs to; the first frame of each is taken.

    Timestamps jitter and are rounded by containers, so a frame up to a quarter of the source's own
    period early counts as on time; without that, sampling at the source's rate would lose frames.

    Parameters
    ----------
    time_s
        Time since the first frame.
    sample_fps
        Rate of the grid.
    source_fps
        Average rate of the source; NaN when unknown.
    """
    ratio = sample_fps / source_fps if source_fps > 0 else 1.0
    return math.floor(time_s * sample_fps + _EARLY_RATIO * min(ratio, 1.0))
