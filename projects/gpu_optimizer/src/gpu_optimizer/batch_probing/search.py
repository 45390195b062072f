"""Which batch size to try next, from those that were tried; pure.

Sizes are taken to be ordered: what fits, fits with fewer items too. Peaks that were measured lie
close to a straight line, which leads near the limit; only trials decide. Where no peaks are known,
steps grow exponentially up to the first failure, and are halved from then on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from gpu_optimizer.batch_probing.results import Probe, ProbeResult, StopReason

LARGEST_BATCH: Final = 1 << 16
_FIRST: Final = 4
_FIRST_OF_KNEE: Final = 2
"""Some layers cannot be trained on a single item."""
_FACTOR: Final = 8
"""From the first size to the second, without a prediction."""
_SAFE_RATIO: Final = 0.9
"""So full the device gets at most with a second size, whatever part of the first one was fixed."""
_USUAL_RATIO: Final = 0.97
"""Allocated part of the limit at which most models run out of memory: the rest is fragmented."""
_APART_RATIO: Final = 0.75
_NEAR_RATIO: Final = 0.4
"""A line from sizes below this part of where it leads is not trusted yet."""


class Goal(StrEnum):
    """What makes a batch size the right one."""

    LARGEST = "largest"
    """The largest that fits and does not take longer per item."""
    THROUGHPUT = "throughput"
    """The smallest beyond which doubling hardly makes an item quicker."""


@dataclass(frozen=True, slots=True)
class SearchRules:
    """When a batch is large enough."""

    goal: Goal = Goal.LARGEST
    max_rise_ratio: float = 0.2
    """An item may take so much longer than in the quickest smaller batch. An allocator that gives
    memory back in every step, or memory that spills to the host, costs several times that."""
    min_gain_ratio: float = 0.05
    """For `Goal.THROUGHPUT`: doubling has to make an item quicker by so much."""
    tolerance_ratio: float = 0.005
    """The answer may be below the largest by so much, rounded down to items."""
    largest: int = LARGEST_BATCH
    budget_s: float = float("inf")
    """After so much time no further size is tried."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found."""

    batch_size: int
    """0: not even one item fits."""
    stop: StopReason
    probes: tuple[ProbeResult, ...]
    """In the order they were made."""


def search_batch_size(
    probe: Probe,
    rules: SearchRules | None = None,
    hint: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Find the batch size that the rules ask for.

    Parameters
    ----------
    probe
        Tries a size.
    rules
        When a batch is large enough.
    hint
        Predicted largest size that fits, where there is a prediction.
    clock
        Tells the time in seconds.
    """
    rules = rules or SearchRules()
    seen: dict[int, ProbeResult] = {}
    end_s = clock() + rules.budget_s
    in_time = True
    while (size := next_size(seen, rules, hint)) is not None and in_time:
        seen[size] = probe(size)
        in_time = clock() < end_s
    return _result(seen, rules, complete=size is None)


def next_size(
    seen: Mapping[int, ProbeResult], rules: SearchRules, hint: int | None = None
) -> int | None:
    """Return the size to try next; None: what is known suffices."""
    fitting, failing = bounds(seen, rules)
    if failing - fitting <= max(int(rules.tolerance_ratio * fitting), 1):
        return None
    if rules.goal is Goal.THROUGHPUT:
        if _knee(seen, rules) is not None:
            return None
        hint = None
    size = first_size(rules) if not seen else None
    if size is None and rules.goal is Goal.LARGEST:
        size = _by_peaks(seen, fitting, failing, hint)
    if size is None and hint:
        parts = (max(hint // 2, 1), hint)
        size = next((part for part in parts if fitting < part < failing), None)
    if size is None:
        size = (fitting + failing) // 2 if failing <= rules.largest else 2 * fitting
    return min(max(size, fitting + 1), failing - 1)


def first_size(rules: SearchRules) -> int:
    """Return the size to begin with, whatever is predicted: small, and so quickly tried."""
    return min(_FIRST if rules.goal is Goal.LARGEST else _FIRST_OF_KNEE, rules.largest)


def bounds(seen: Mapping[int, ProbeResult], rules: SearchRules) -> tuple[int, int]:
    """Largest size that is good below the smallest that is not, and that one."""
    failing = min((size for size in seen if not is_good(size, seen, rules)), default=None)
    beyond = rules.largest + 1
    failing = beyond if failing is None else min(failing, beyond)
    return max((size for size in seen if size < failing), default=0), failing


def is_good(size: int, seen: Mapping[int, ProbeResult], rules: SearchRules) -> bool:
    """Whether a size that was tried ran, and no slower per item than smaller ones allow."""
    result = seen[size]
    if not result.ran:
        return False
    quickest_s = min(
        (each.item_s for each in seen.values() if each.batch_size < size and each.item_s),
        default=None,
    )
    if quickest_s is None or result.item_s is None:
        return True
    return result.item_s <= quickest_s * (1.0 + rules.max_rise_ratio)


def _by_peaks(
    seen: Mapping[int, ProbeResult], fitting: int, failing: int, hint: int | None
) -> int | None:
    """Return the size that the measured peaks suggest; None: they tell nothing."""
    fits = sorted(
        (each for size, each in seen.items() if size <= fitting and each.peak_allocated_bytes),
        key=lambda each: each.batch_size,
    )
    if not fits or not fits[-1].limit_bytes:
        return None
    if len(fits) == 1:
        return _second_size(fits[0], failing, hint)
    two = fits[-1]
    # Sizes close to each other tell more about workspaces than about items.
    apart = [each for each in fits if each.batch_size <= _APART_RATIO * two.batch_size]
    return _near_limit(apart[-1] if apart else fits[0], two, fitting, failing)


def _near_limit(one: ProbeResult, two: ProbeResult, fitting: int, failing: int) -> int | None:
    """Return the size where a line through two peaks leads near the limit; None: it does not."""
    n_items, free_bytes = two.batch_size, two.limit_bytes - two.peak_allocated_bytes
    more_bytes = two.peak_allocated_bytes - one.peak_allocated_bytes
    if more_bytes <= 0 or free_bytes < 0:
        return None
    per_item_bytes = more_bytes / (n_items - one.batch_size)
    usual_free_bytes = free_bytes - (1.0 - _USUAL_RATIO) * two.limit_bytes
    usual = n_items + int(usual_free_bytes // per_item_bytes)
    full = n_items + int(free_bytes // per_item_bytes) + 1
    if n_items < _NEAR_RATIO * usual and usual < failing:
        return usual // 2
    if fitting < usual < failing:
        return usual
    middle = (fitting + min(failing, full)) // 2
    # What failed below the line: away from where it says in growing steps, then halving.
    return max(2 * failing - full, middle) if failing <= usual else middle


def _second_size(first: ProbeResult, failing: int, hint: int | None) -> int | None:
    """Return a size that fits surely, as no item takes more than its share of the first peak."""
    size, limit_bytes = first.batch_size, first.limit_bytes
    safe = int(size * _SAFE_RATIO * limit_bytes / first.peak_allocated_bytes)
    wanted = max(hint // 2, 1) if hint else _FACTOR * size
    chosen = min(wanted, safe)
    return chosen if size < chosen < failing else None


def _knee(seen: Mapping[int, ProbeResult], rules: SearchRules) -> int | None:
    """Return the first size that gains too little from being doubled; None: not seen yet."""
    good = sorted(size for size in seen if is_good(size, seen, rules))
    for small, large in pairwise(good):
        one_s, two_s = seen[small].item_s, seen[large].item_s
        if large < 2 * small or one_s is None or two_s is None:
            continue
        if two_s > one_s * (1.0 - rules.min_gain_ratio):
            return small
    return None


def _result(seen: Mapping[int, ProbeResult], rules: SearchRules, *, complete: bool) -> SearchResult:
    probes = tuple(seen.values())
    knee = _knee(seen, rules) if rules.goal is Goal.THROUGHPUT else None
    if knee is not None:
        return SearchResult(knee, StopReason.KNEE, probes)
    fitting, failing = bounds(seen, rules)
    reason = stop_reason(probes, failing) if complete else StopReason.TIME
    return SearchResult(fitting, reason, probes)


def stop_reason(probes: Sequence[ProbeResult], failing: int) -> StopReason:
    """Why a batch cannot be as large as `failing`."""
    result = next((each for each in probes if each.batch_size == failing), None)
    if result is None:
        return StopReason.LIMIT
    if result.out_of_memory:
        return StopReason.MEMORY
    return StopReason.FAILURE if result.failure else StopReason.LATENCY
