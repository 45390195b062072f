"""When the parts of one repetition began and ended, from the course of its progress."""

from dataclasses import dataclass
from typing import Final

import numpy as np

# A position counts as held within this part of the way between the two positions.
_BAND: Final = 0.1
# Less way than this is standing still.
_MIN_WAY: Final = 0.3

Trace = tuple[tuple[float, float], ...]
"""(time in seconds, progress) of every frame of a repetition, in order."""


@dataclass(frozen=True, slots=True)
class Tempo:
    """Instants of one repetition in seconds; out is start to full position, back is the return."""

    start_s: float
    """The start position was left; the first frame if that was not seen."""
    turn_s: float
    """The extreme was reached."""
    end_s: float
    """The start position was reached again; the extreme, as long as the return is not seen."""
    out_s: float
    """Way out; 0 if not seen."""
    hold_s: float
    """Time at the full position."""
    back_s: float
    """Way back; 0 if not seen."""


def measure_tempo(trace: Trace) -> Tempo:
    """Split a repetition where it leaves and reaches a tenth of its way from each position.

    Parameters
    ----------
    trace
        At least one frame.
    """
    time_s, progress = np.array(trace).T
    peak = int(progress.argmax())
    depth = progress[peak]
    before, after = progress[: peak + 1], progress[peak:]
    start, reached = 0, 0
    low = before.min()
    if depth - low >= _MIN_WAY:
        band = _BAND * (depth - low)
        start = int(np.flatnonzero(before <= low + band)[-1])
        reached = start + int(np.argmax(before[start:] >= depth - band))
    left, end = len(progress) - 1, peak
    low = after.min()
    returned = depth - low >= _MIN_WAY
    if returned:
        band = _BAND * (depth - low)
        end = peak + int(np.argmax(after <= low + band))
        left = int(np.flatnonzero(progress[: end + 1] >= depth - band)[-1])
    return Tempo(
        start_s=float(time_s[start]),
        turn_s=float(time_s[peak]),
        end_s=float(time_s[end]),
        out_s=float(time_s[reached] - time_s[start]),
        hold_s=max(0.0, float(time_s[left] - time_s[reached])),
        back_s=float(time_s[end] - time_s[left]) if returned else 0.0,
    )
