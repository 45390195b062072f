"""Times of pictures from the stamps of a camera or a file."""

import math
from fractions import Fraction
from typing import Final

# As for recorded videos: stamps going back further have started over.
_BACKWARD_JUMP_S: Final = 1
_SMALLEST_STEP: Final = Fraction(1, 1000)


class PictureClock:
    """Gives pictures times that start at 0 and strictly increase, whatever their stamps do.

    Between pictures of one connection the stamps decide, exactly. Where they start over (a new
    connection, a clock set anew) the time that passed meanwhile is taken from the caller's clock.

    Parameters
    ----------
    max_ahead_s
        Stamps that run further ahead of the caller's clock than this have been set anew, too.
    """

    def __init__(self, max_ahead_s: float = math.inf) -> None:
        self._max_ahead_s = max_ahead_s
        self._last: Fraction | None = None
        self._last_now_s = 0.0
        self._offset: Fraction | None = None

    def restart(self) -> None:
        """Expect stamps that have nothing to do with those before: a new connection."""
        self._offset = None

    def time_s(self, stamp: Fraction | None, now_s: float) -> float | None:
        """Seconds since the first picture; None for one that is not newer than the last.

        Parameters
        ----------
        stamp
            The picture's own time in seconds; None if it has none.
        now_s
            The caller's clock, which never goes back.
        """
        expected = Fraction(0)
        if self._last is not None:
            expected = self._last + max(Fraction(now_s - self._last_now_s), _SMALLEST_STEP)
        if stamp is None:
            time = expected
        else:
            if self._offset is None or self._has_jumped(stamp + self._offset, expected):
                self._offset = expected - stamp
            time = stamp + self._offset
        if self._last is not None and float(time) <= float(self._last):
            return None
        self._last, self._last_now_s = time, now_s
        return float(time)

    def _has_jumped(self, time: Fraction, expected: Fraction) -> bool:
        back = self._last is not None and self._last - time > _BACKWARD_JUMP_S
        return back or float(time - expected) > self._max_ahead_s
