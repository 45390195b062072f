"""What is offloaded, when: as much as hides, never more memory than without."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gpu_optimizer.offload.schedule import (
    LinkSpeed,
    SavedStorage,
    SaveTimeline,
    choose,
    hidden_bytes,
    schedule_all,
)

MB = 1_000_000
FAST = LinkSpeed(55e9, 55e9)
SLOW = LinkSpeed(12e9, 12e9)


def layered(sizes_mb, forward_s, step_s=None):
    """A chain of layers that save one storage each and take equally long; backward takes twice."""
    n = len(sizes_mb)
    storages = [
        SavedStorage(size * MB, tick, tick + (tick + 1 < n), 2 * n - tick)
        for tick, size in enumerate(sizes_mb)
    ]
    storages[-1] = SavedStorage(sizes_mb[-1] * MB, n - 1, n - 1, n + 1)
    per_layer_s = forward_s / n
    time_s = [per_layer_s * tick for tick in range(n + 1)]
    time_s += [forward_s + 2 * per_layer_s * tick for tick in range(1, n + 1)]
    live, total = [], 0
    for size in sizes_mb:
        total += size * MB
        live.append(total)
    live.append(total)
    for size in reversed(sizes_mb):
        live.append(total)
        total -= size * MB
    return SaveTimeline(time_s, live, n, storages, step_s or 3 * forward_s)


def test_offloads_what_leaves_during_the_forward_pass_and_no_more():
    # 40 ms of forward pass move 2.2 GB at 55 GB/s and 0.48 GB at 12 GB/s.
    timeline = layered([200] * 50, 0.040)
    fast, slow = choose(timeline, FAST, 0.0), choose(timeline, SLOW, 0.0)
    assert fast.stall_s == slow.stall_s == 0.0
    assert 1900 * MB <= fast.gained_bytes <= 2200 * MB
    assert 300 * MB <= slow.gained_bytes <= 480 * MB
    assert fast.bound_bytes <= 2200 * MB
    # Early ones: needed again last.
    assert max(trip.storage for trip in fast.trips) < 20


def test_time_that_may_be_lost_is_used():
    timeline = layered([200] * 50, 0.040)
    patient = choose(timeline, FAST, 0.010)
    assert patient.gained_bytes > choose(timeline, FAST, 0.0).gained_bytes
    assert 0.0 < patient.stall_s <= 0.010


def test_a_target_ends_the_search_and_one_above_the_peak_needs_nothing():
    timeline = layered([200] * 50, 0.040)
    found = choose(timeline, FAST, 0.0, target_bytes=9_400 * MB)
    assert 9_000 * MB <= found.peak_bytes <= 9_400 * MB
    assert choose(timeline, FAST, 0.0, target_bytes=20_000 * MB).trips == ()


def test_without_a_forward_pass_to_hide_under_nothing_goes():
    assert choose(layered([500, 500], 1e-6), FAST, 0.0).trips == ()


def test_a_given_choice_is_kept_whatever_it_costs():
    timeline = layered([200] * 50, 0.040)
    given_all = schedule_all(timeline, SLOW, range(40))
    assert len(given_all.trips) == 40
    assert given_all.stall_s > 0.4
    few = schedule_all(timeline, FAST, [0, 1, 2], 0.0)
    assert few.stall_s == 0.0
    assert few.gained_bytes == 600 * MB


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=25),
    st.floats(0.001, 0.2),
    st.floats(1e9, 1e11),
    st.floats(0.0, 0.02),
)
def test_every_schedule_holds_what_it_says(sizes_mb, forward_s, bytes_per_s, max_stall_s):
    timeline = layered(sizes_mb, forward_s)
    link = LinkSpeed(bytes_per_s, bytes_per_s)
    found = choose(timeline, link, max_stall_s)
    assert found.stall_s <= max_stall_s
    assert found.peak_bytes <= timeline.peak_bytes
    assert found.gained_bytes <= hidden_bytes(timeline, link, max_stall_s) + 1
    for trip in found.trips:
        storage = timeline.storages[trip.storage]
        assert storage.last_saved <= trip.release <= timeline.forward_end
        assert timeline.forward_end <= trip.fetch <= storage.first_used
    by_use = sorted(found.trips, key=lambda trip: timeline.storages[trip.storage].first_used)
    assert all(one.fetch <= two.fetch for one, two in pairwise(by_use))
