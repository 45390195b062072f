"""Which moment of a reference each moment of a repetition corresponds to.

Finished repetitions by dynamic time warping within a band (Sakoe & Chiba 1978), by dtaidistance's
compiled code; live frames by the same recursion, one column at a time, with an open end.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from dtaidistance import dtw_ndim
from jaxtyping import Bool, Float, Int64

BAND_RATIO: Final = 0.1
"""How far a moment may be moved, as a share of the repetition. Both are cut at the same events,
onset, turning point and end, so that little is left; a wider band explains faults away."""


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """One repetition laid onto a reference."""

    rows: Float[np.ndarray, "phases"]
    """Row of the repetition that matches each row of the reference; not decreasing."""
    distance: float
    """Root mean square over phases and signals after alignment, in the units given."""


def align(
    reference: Float[np.ndarray, "phases signals"], repetition: Float[np.ndarray, "phases signals"]
) -> Alignment:
    """Lay a repetition onto a reference of as many phases.

    Parameters
    ----------
    reference, repetition
        Signals in comparable units, so that each counts alike. A signal that is unknown (NaN)
        anywhere in either is left out; without any the repetition is laid on unmoved.
    """
    known = np.isfinite(reference).all(axis=0) & np.isfinite(repetition).all(axis=0)
    n_phases = len(reference)
    if not known.any():
        return Alignment(np.arange(n_phases, dtype=np.float64), float("nan"))
    columns = np.flatnonzero(known)
    if columns.size == 1:
        # The library takes a single column for a series of numbers, not of points.
        columns = np.repeat(columns, 2)
    one = np.ascontiguousarray(reference[:, columns], dtype=np.float64)
    other = np.ascontiguousarray(repetition[:, columns], dtype=np.float64)
    band = max(1, round(BAND_RATIO * n_phases)) + 1
    path = np.array(dtw_ndim.warping_path(one, other, window=band, use_c=True))
    n_matches = np.bincount(path[:, 0], minlength=n_phases)
    rows = np.bincount(path[:, 0], weights=path[:, 1], minlength=n_phases) / n_matches
    squared = ((one[path[:, 0]] - other[path[:, 1]]) ** 2).mean()
    return Alignment(rows, float(np.sqrt(squared)))


def rows_at(
    signals: Float[np.ndarray, "phases signals"], rows: Float[np.ndarray, "rows"]
) -> Float[np.ndarray, "rows signals"]:
    """Signals at fractional rows, in between by a straight line."""
    below = np.floor(rows).astype(np.int64)
    above = np.minimum(below + 1, len(signals) - 1)
    share = (rows - below)[:, None]
    at_rows: Float[np.ndarray, "rows signals"]
    at_rows = (1.0 - share) * signals[below] + share * signals[above]
    return at_rows


@dataclass(frozen=True, slots=True, eq=False)
class PhaseState:
    """Costs of the best ways that end at each phase of the reference with the latest frame."""

    costs: Float[np.ndarray, "ways phases"] | None = None
    """None before the first frame of a repetition."""


def advance(
    reference: Float[np.ndarray, "phases signals"],
    state: PhaseState,
    frames: Float[np.ndarray, "ways signals"],
    known: Bool[np.ndarray, "ways signals"],
) -> tuple[PhaseState, Int64[np.ndarray, "ways"] | None]:
    """Which phase a live frame is in, given the repetition so far.

    A frame may stay at a phase or go on by up to `_MAX_STEP` of them: people do not move backwards
    within a repetition.

    Parameters
    ----------
    reference
        In standard deviations; without unknown values.
    state
        ``PhaseState()`` at the start of a repetition, then what the previous call returned.
    frames, known
        The same signals now, in each of several ways to read them that are followed side by side;
        those not known do not count.

    Returns
    -------
    tuple of PhaseState and rows or None
        A row of the reference for each way; None, and nothing changed, if one of them is unknown.
    """
    n_known = known.sum(axis=1)
    if not n_known.all():
        return state, None
    # However far off one signal is, the others still have a say.
    squared = np.minimum((reference - frames[:, None]) ** 2, _MOST_SD**2)
    local = np.einsum("wps,ws->wp", squared, known / n_known[:, None])
    if state.costs is None:
        # The first phase that fits: who stands begins, though they end like this as well.
        fitting = np.argmax(local <= local.min(axis=1, keepdims=True) + _FITS, axis=1)
        later = np.arange(local.shape[1]) > fitting[:, None] + _MAX_STEP
        costs = np.where(later, np.inf, local)
    else:
        best = state.costs.copy()
        for n_rows in range(1, _MAX_STEP + 1):
            np.minimum(best[:, n_rows:], state.costs[:, :-n_rows], out=best[:, n_rows:])
        costs = _FORGET * best + local
    rows: Int64[np.ndarray, "ways"] = np.argmin(costs, axis=1)
    return PhaseState(costs), rows


# Rows of the reference per frame: a repetition of 50 rows takes ten frames or more.
_MAX_STEP: Final = 5
# Weight of the past: a pause must not make it weigh more and more.
_FORGET: Final = 0.9
_MOST_SD: Final = 6.0
# Mean squared standard deviations by which another phase may fit better.
_FITS: Final = 1.0
