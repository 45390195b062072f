"""The search for a batch size: right for any limit, quick with a good prediction."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_optimizer.batch_probing.results import ProbeResult, StopReason
from gpu_optimizer.batch_probing.search import (
    Goal,
    SearchRules,
    search_batch_size,
)

EXACT = SearchRules(tolerance_ratio=0.0)


def fits_up_to(largest: int, item_s: Callable[[int], float] = lambda _: 1e-3):
    def probe(size: int) -> ProbeResult:
        if size > largest:
            return ProbeResult(size, out_of_memory=True)
        return ProbeResult(size, peak_allocated_bytes=size << 20, item_s=item_s(size))

    return probe


@settings(deadline=None)
@given(
    largest=st.integers(0, 5_000),
    hint=st.none() | st.integers(1, 20_000),
    limit=st.integers(1, 20_000),
)
@example(largest=290, hint=290, limit=65_536)
def test_the_answer_is_the_largest_that_fits_whatever_was_predicted(largest, hint, limit):
    rules = SearchRules(tolerance_ratio=0.0, largest=limit)
    found = search_batch_size(fits_up_to(largest), rules, hint)
    assert found.batch_size == min(largest, limit)
    assert found.stop is (StopReason.LIMIT if limit <= largest else StopReason.MEMORY)
    sizes = [each.batch_size for each in found.probes]
    assert len(sizes) == len(set(sizes)) <= 40
    assert all(1 <= size <= limit for size in sizes)


@settings(deadline=None)
@given(largest=st.integers(100, 5_000), hint=st.none() | st.integers(50, 10_000))
def test_the_tolerance_is_kept(largest, hint):
    found = search_batch_size(fits_up_to(largest), SearchRules(tolerance_ratio=0.01), hint)
    assert 0.99 * largest - 1 <= found.batch_size <= largest


@settings(deadline=None, max_examples=300)
@given(
    largest=st.integers(24, 4_000),
    full_ratio=st.floats(0.94, 0.995),
    fixed_ratio=st.floats(0.0, 0.8),
    noise=st.floats(-0.01, 0.01),
    hint_error=st.none() | st.floats(-0.2, 0.2),
)
def test_measured_peaks_lead_to_the_limit(largest, full_ratio, fixed_ratio, noise, hint_error):
    # Out of memory at a part of the limit; the first sizes are a bit off the line.
    limit = 24 << 30
    item = full_ratio * (1.0 - fixed_ratio) * limit / largest
    fits = fits_up_to(largest)

    def probe(size: int) -> ProbeResult:
        off = 1.0 + (noise if size < largest / 4 else 0.0)
        peak = int((fixed_ratio * full_ratio * limit + size * item) * off)
        return replace(fits(size), limit_bytes=limit, peak_allocated_bytes=peak)

    hint = None if hint_error is None else max(round(largest * (1.0 + hint_error)), 1)
    found = search_batch_size(probe, SearchRules(), hint)
    assert 0.995 * largest - 1 <= found.batch_size <= largest
    assert len(found.probes) <= 12
    assert sum(each.out_of_memory for each in found.probes) <= 6


def test_it_stops_where_an_item_takes_longer():
    slow_from_101 = fits_up_to(500, lambda size: 1e-3 if size <= 100 else 4e-3)
    for hint in (None, 500, 300, 60):
        found = search_batch_size(slow_from_101, EXACT, hint)
        assert (found.batch_size, found.stop) == (100, StopReason.LATENCY)


def test_throughput_stops_at_the_knee():
    found = search_batch_size(
        fits_up_to(5_000, lambda size: max(1.0 / size, 1.0 / 32)), SearchRules(Goal.THROUGHPUT)
    )
    assert (found.batch_size, found.stop) == (32, StopReason.KNEE)
    assert max(each.batch_size for each in found.probes) == 64


def test_throughput_before_the_knee_is_limited_by_memory():
    found = search_batch_size(
        fits_up_to(21, lambda size: 1.0 / size), SearchRules(Goal.THROUGHPUT, tolerance_ratio=0.0)
    )
    assert (found.batch_size, found.stop) == (21, StopReason.MEMORY)


def test_other_failures_end_the_search_like_memory_and_are_told_apart():
    def probe(size: int) -> ProbeResult:
        return ProbeResult(size, failure="too many for 32 bits" if size > 77 else "")

    found = search_batch_size(probe, EXACT)
    assert (found.batch_size, found.stop) == (77, StopReason.FAILURE)


@pytest.mark.parametrize("hint", [None, 100])
def test_no_further_size_is_tried_when_time_is_up(hint):
    now_s = iter(range(0, 1_000, 10))
    found = search_batch_size(
        fits_up_to(90), SearchRules(budget_s=25.0), hint, clock=lambda: float(next(now_s))
    )
    assert len(found.probes) == 3
    assert found.stop is StopReason.TIME
    assert 0 < found.batch_size <= 90
