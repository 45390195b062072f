"""The largest batch that predictions promise, from a few of them; pure."""

from collections.abc import Callable
from typing import Final

_FIRST: Final = 4
_FACTOR: Final = 8
"""From size to size, until a good part of the limit was added; any prediction takes as long."""
_GOOD_PART: Final = 1 / 8


def predicted_batch(
    peak_bytes: Callable[[int], int],
    limit_bytes: int,
    largest: int,
    go_on: Callable[[], bool] = lambda: True,
) -> int | None:
    """Estimate the largest batch below a limit; None: the predictions tell nothing.

    Memory grows almost in proportion to the batch: a straight line through two predictions leads
    near the limit, and one through the prediction made there and the nearer of them closer.

    Parameters
    ----------
    peak_bytes
        Predicts the peak of a batch.
    limit_bytes
        What it may be.
    largest
        Never answers more.
    go_on
        Asked before each prediction but the first.
    """
    known = [(_FIRST, peak_bytes(_FIRST))]
    while known[-1][0] < largest and go_on():
        size = min(_FACTOR * known[-1][0], largest)
        known.append((size, peak_bytes(size)))
        if known[-1][1] - known[0][1] > _GOOD_PART * limit_bytes:
            break
    estimate = _on_line(known[-2:], limit_bytes, largest) if len(known) > 1 else None
    if estimate and estimate not in dict(known) and go_on():
        nearer = min(known, key=lambda one: abs(one[1] - limit_bytes))
        nearby = [nearer, (estimate, peak_bytes(estimate))]
        estimate = _on_line(nearby, limit_bytes, largest) or estimate
    return estimate


def _on_line(points: list[tuple[int, int]], limit_bytes: int, largest: int) -> int | None:
    """Where a line through two points reaches the limit, at least one item."""
    (one, one_bytes), (two, two_bytes) = points
    per_item_bytes = (two_bytes - one_bytes) / (two - one)
    if per_item_bytes <= 0.0:
        return None
    return min(max(one + int((limit_bytes - one_bytes) // per_item_bytes), 1), largest)
