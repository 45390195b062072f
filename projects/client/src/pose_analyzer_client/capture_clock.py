"""One running clock for all frames of a stream, whatever clocks they come with."""

from typing import Final

_BACKWARD_JUMP_S: Final = 1.0
"""A time that goes back further belongs to another clock, such as that of the next video."""
_SMALLEST_STEP_S: Final = 1e-3


class CaptureClock:
    """Keeps capture times increasing, since the service drops frames that are not newer.

    Times of one clock keep their exact spacing, and those of the first clock their values.
    """

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._last_s: float | None = None
        self._last_given_s = 0.0

    def stamp(self, captured_s: float, now_s: float) -> float | None:
        """Time to tell the service, or None for a frame not newer than the one before.

        Parameters
        ----------
        captured_s
            By the frame's own clock.
        now_s
            By a monotonic clock; joins the frame's clock to the one before it.
        """
        time_s = captured_s + self._offset_s
        if self._last_s is not None and time_s <= self._last_s:
            if self._last_s - time_s <= _BACKWARD_JUMP_S:
                return None
            gap_s = max(now_s - self._last_given_s, _SMALLEST_STEP_S)
            self._offset_s = self._last_s + gap_s - captured_s
            time_s = self._last_s + gap_s
        self._last_s, self._last_given_s = time_s, now_s
        return time_s
