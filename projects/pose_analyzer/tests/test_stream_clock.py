from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.stream_clock import StreamClock

STEPS = st.lists(st.floats(0.001, 5.0), min_size=1, max_size=30)


@given(start_s=st.floats(-1e3, 1e6), steps_s=STEPS, late_s=STEPS)
def test_a_client_that_states_times_keeps_its_own_spacing(
    start_s: float, steps_s: list[float], late_s: list[float]
) -> None:
    clock = StreamClock()
    captured_s, received_s = start_s, 50.0
    first = clock = clock.stamp(captured_s, received_s)
    assert first.time_s == 0.0
    for step_s, delay_s in zip(steps_s, late_s, strict=False):
        captured_s, received_s = captured_s + step_s, received_s + delay_s
        clock = clock.stamp(captured_s, received_s)
        assert abs(clock.time_s - (captured_s - start_s)) < 1e-9 * max(abs(captured_s), 1e3)


def test_times_that_begin_at_zero_are_kept_to_the_bit() -> None:
    clock = StreamClock()
    for n in range(100):
        clock = clock.stamp(n / 29.97, 7.0 + n)
        assert clock.time_s == n / 29.97


@given(steps_s=STEPS)
def test_without_stated_times_frames_are_timed_by_arrival(steps_s: list[float]) -> None:
    clock, received_s = StreamClock().stamp(None, 1000.0), 1000.0
    assert clock.time_s == 0.0
    for step_s in steps_s:
        received_s += step_s
        before_s, clock = clock.time_s, clock.stamp(None, received_s)
        assert abs(clock.time_s - before_s - step_s) < 1e-9


@given(
    stated=st.lists(st.one_of(st.none(), st.floats(0.0, 100.0)), min_size=2, max_size=20),
    cut=st.integers(0, 19),
)
def test_time_never_runs_backwards_across_a_new_connection(
    stated: list[float | None], cut: int
) -> None:
    clock, received_s = StreamClock(), 0.0
    for n, captured_s in enumerate(stated):
        if n == cut:
            clock = clock.reconnected()
        before_s = clock.time_s
        received_s += 0.04
        clock = clock.stamp(captured_s, received_s)
        if n > 0 and (captured_s is None or n == cut):
            assert clock.time_s > before_s


def test_a_client_that_goes_on_after_a_break_keeps_its_clock() -> None:
    clock = StreamClock().stamp(5.0, 0.0).stamp(6.0, 1.0).reconnected().stamp(9.0, 3.5)
    assert clock.time_s == 4.0


def test_a_client_that_starts_over_is_joined_by_the_time_that_passed() -> None:
    clock = StreamClock().stamp(5.0, 0.0).stamp(6.0, 1.0).reconnected().stamp(0.0, 3.5)
    assert clock.time_s == 3.5
    assert clock.stamp(1.0, 4.5).time_s == 4.5
