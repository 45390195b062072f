"""The choice of regions as an integer program, to compare the greedy search with.

Minimises the repeated time so that what regions free, taken as if it added up, is enough at every
moment. Constraints come in as they are found to be broken. Needs SciPy, which brings HiGHS.
"""

from typing import Final

import numpy as np

from gpu_optimizer.errors import GpuOptimizerError
from gpu_optimizer.planning.search import Choice, RegionSearch

_MAX_ROUNDS: Final = 12
_N_FIRST: Final = 64
_BYTES_PER_UNIT: Final = float(1 << 20)


class NoSolverError(GpuOptimizerError):
    """The package with the solver is not installed."""

    def __init__(self) -> None:
        super().__init__("The integer program needs SciPy: pip install scipy.")


def optimal_or_greedy(search: RegionSearch, target_bytes: int) -> Choice:
    """Choose regions with a solver, and by the usual search where that does better."""
    found = [search.greedy(target_bytes), optimal_choice(search, target_bytes)]
    return min(
        (each for each in found if each is not None),
        key=lambda each: (max(each.peak_bytes, target_bytes), each.repeated_s),
    )


def optimal_choice(
    search: RegionSearch, target_bytes: int, time_limit_s: float = 20.0
) -> Choice | None:
    """Choose regions for a peak with a solver.

    Parameters
    ----------
    search
        Has the candidates.
    target_bytes
        Allocated peak.
    time_limit_s
        Of each call of the solver.

    Returns
    -------
    Choice or None
        None if the program has no solution, or none was found in time.

    Raises
    ------
    NoSolverError
        If SciPy is missing.
    """
    try:
        from scipy.optimize import (  # noqa: PLC0415 -- an option
            Bounds,
            LinearConstraint,
            milp,
        )
    except ImportError as error:
        raise NoSolverError from error
    n_candidates = len(search.candidates)
    if not n_candidates:
        return None
    freed = search.freed_bytes / _BYTES_PER_UNIT
    base = search.model.curve(()) / _BYTES_PER_UNIT
    target = target_bytes / _BYTES_PER_UNIT
    times = np.array([each.recompute_s for each in search.candidates]) + 1e-9
    apart = search.conflicts()
    moments = set(np.argsort(base)[-_N_FIRST:].tolist())
    for _ in range(_MAX_ROUNDS):
        rows = sorted(moments)
        found = milp(
            c=times / times.max(),
            constraints=[
                LinearConstraint(freed[:, rows].T, lb=base[rows] - target),
                LinearConstraint(apart, ub=1.0),
            ],
            integrality=np.ones(n_candidates),
            bounds=Bounds(0, 1),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.005},
        )
        if found.x is None:
            return None
        chosen = frozenset(np.flatnonzero(found.x > 0.5).tolist())
        choice = search.choice(chosen)
        curve = search.model.curve(choice.chosen) / _BYTES_PER_UNIT
        broken = np.flatnonzero(curve > target)
        worst = broken[np.argsort(curve[broken])[-_N_FIRST:]].tolist()
        if not broken.size or moments.issuperset(worst):
            return choice
        moments.update(worst)
    return choice
