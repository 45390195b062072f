"""Who is let in, and what the others are told."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.admission import AdmissionConfig, Admitted, Load, Refused, admit

CONFIG = AdmissionConfig()


def shares_fps(capacity_fps, wanted_fps):
    """What each stream gets: all it wants, or as much as any other."""
    shares, left_fps = {}, capacity_fps
    for n_done, i in enumerate(sorted(range(len(wanted_fps)), key=wanted_fps.__getitem__)):
        shares[i] = min(wanted_fps[i], left_fps / (len(wanted_fps) - n_done))
        left_fps -= shares[i]
    return shares


def admitted(config, capacity_fps, requests_fps):
    """The streams that were let in, asking one after the other."""
    inside = []
    for fps in requests_fps:
        load = Load(len(inside), math.fsum(inside), capacity_fps)
        if isinstance(admit(config, load, fps), Admitted):
            inside.append(fps)
    return inside


rates = st.floats(0.5, 60.0)


@given(st.floats(1.0, 3000.0), st.lists(rates, max_size=40))
def test_whoever_is_let_in_gets_enough_and_takes_from_nobody_what_he_needs(capacity_fps, requests):
    inside = admitted(CONFIG, capacity_fps, requests)
    assert bool(inside) == bool(requests)
    if len(inside) > 1:
        for i, share_fps in shares_fps(capacity_fps, inside).items():
            assert share_fps >= min(inside[i], CONFIG.min_stream_fps) - 1e-6


@given(rates, st.integers(0, 200), st.floats(1.0, 3000.0))
def test_streams_alike_are_let_in_by_their_fair_share(fps, n_streams, capacity_fps):
    verdict = admit(CONFIG, Load(n_streams, n_streams * fps, capacity_fps), fps)
    enough = capacity_fps / (n_streams + 1) >= min(CONFIG.min_stream_fps, fps) * (1 + 1e-9)
    if enough or n_streams == 0:
        assert verdict == Admitted()
    elif capacity_fps / (n_streams + 1) < min(CONFIG.min_stream_fps, fps) * (1 - 1e-9):
        assert isinstance(verdict, Refused)


def test_a_hundred_clients_at_once_on_the_capacity_of_four():
    assert admitted(CONFIG, 35.0, [30.0] * 100) == [30.0] * 4


def test_slow_streams_leave_room_for_others():
    assert admitted(CONFIG, 60.0, [1.0] * 20 + [30.0]) == [1.0] * 20 + [30.0]


def test_the_limit_of_streams():
    config = AdmissionConfig(max_streams=4)
    assert len(admitted(config, 3000.0, [30.0] * 100)) == 4
    verdict = admit(config, Load(4, 120.0, 3000.0), 30.0)
    assert isinstance(verdict, Refused)
    assert "takes 4 streams and has 4" in verdict.reason


def test_a_refusal_says_the_numbers():
    verdict = admit(CONFIG, Load(4, 120.0, 35.0), 30.0)
    assert isinstance(verdict, Refused)
    assert verdict.reason.startswith("The detector manages 35 frames a second, and 4 stream(s) ne")
    assert "fair share is 7" in verdict.reason
    assert verdict.retry_after_s > 0


@given(
    st.integers(0, 140),
    st.integers(1, 140),
    st.integers(0, 3),
)
def test_memory_must_stay_below_the_threshold(used, total, per_stream):
    config = AdmissionConfig(bytes_per_stream=per_stream)
    load = Load(1, 30.0, 3000.0, vram_used_bytes=used, vram_total_bytes=total)
    fits = used + per_stream < 0.9 * total
    assert isinstance(admit(config, load, 30.0), Admitted) is fits


@pytest.mark.parametrize(
    ("used", "total"), [(None, None), (1 << 30, None), (None, 1 << 30), (0, 0)]
)
def test_unknown_memory_refuses_nobody(used, total):
    load = Load(1, 30.0, 3000.0, vram_used_bytes=used, vram_total_bytes=total)
    assert admit(CONFIG, load, 30.0) == Admitted()


def test_nobody_overtakes_streams_that_wait_for_memory():
    gib = 1 << 30
    load = Load(4, 120.0, 3000.0, vram_used_bytes=gib, vram_total_bytes=140 * gib, n_shed=2)
    verdict = admit(CONFIG, load, 30.0)
    assert isinstance(verdict, Refused)
    assert verdict.reason.startswith("2 stream(s) already wait")
