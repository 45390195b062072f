"""Times of pictures from the stamps of a camera or a file."""

import math
from fractions import Fraction
from typing import Final

# As for recorded videos: stamps going back further have started over.
_BACKWARD_JUMP_S: Final = 1.0
_SMALLEST_STEP_S: Final = 0.001


class PictureClock:
    """Gives pictures times that start at 0 and strictly increase, whatever their stamps do.

    Between pictures of one connection the stamps decide; those of the first one become times
    without any error but the last rounding. Where stamps start over (a new connection, a clock set
    anew) the time that passed meanwhile is taken from the caller's clock.

    Parameters
    ----------
    max_ahead_s
        Stamps that run further ahead of the caller's clock than this have been set anew, too.
    """

    def __init__(self, max_ahead_s: float = math.inf) -> None:
        self._max_ahead_s = max_ahead_s
        self._numerator, self._denominator = 0, 1
        self._last_s: float | None = None
        self._last_now_s = 0.0
        self._origin: int | None = None
        self._origin_s = 0.0

    def restart(self, time_base: Fraction | None) -> None:
        """Expect stamps that have nothing to do with those before: a new connection.

        Parameters
        ----------
        time_base
            Seconds that one unit of its stamps lasts; None if it has no stamps.
        """
        base = Fraction(0) if time_base is None else time_base
        self._numerator, self._denominator = base.numerator, base.denominator
        self._origin = None

    def time_s(self, stamp: int | None, now_s: float) -> float | None:
        """Seconds since the first picture; None for one that is not newer than the last.

        Parameters
        ----------
        stamp
            The picture's own time in units of the time base; None if it has none.
        now_s
            The caller's clock in seconds, which never goes back.
        """
        expected_s = 0.0
        if self._last_s is not None:
            expected_s = self._last_s + max(now_s - self._last_now_s, _SMALLEST_STEP_S)
        time_s = expected_s
        if stamp is not None:
            if self._origin is None or self._has_jumped(self._since_first(stamp), expected_s):
                self._origin, self._origin_s = stamp, expected_s
            time_s = self._since_first(stamp)
        if self._last_s is not None and time_s <= self._last_s:
            return None
        self._last_s, self._last_now_s = time_s, now_s
        return time_s

    def _since_first(self, stamp: int) -> float:
        """Whole numbers up to the one division, which rounds correctly however large they are."""
        since_origin = stamp - (self._origin or 0)
        return self._origin_s + since_origin * self._numerator / self._denominator

    def _has_jumped(self, time_s: float, expected_s: float) -> bool:
        back = self._last_s is not None and self._last_s - time_s > _BACKWARD_JUMP_S
        return back or time_s - expected_s > self._max_ahead_s
