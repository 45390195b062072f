"""The counter on signals whose repetitions are known."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.movement_features import FEATURE_NAMES
from pose_analyzer.skeletons import ANGLE_INDEX
from pose_analyzer.temporal_analyzer import CounterState, lose_sight, phase_of
from pose_analyzer.types import Phase

from .progress_signals import (
    CURL,
    DT_S,
    SQUAT,
    count,
    cycles,
    either,
    few,
    line,
    observe,
    observe_all,
    phases,
    run,
)


@either
class TestCounting:
    @few
    @given(st.integers(0, 6), st.floats(1.2, 5.0))
    def test_cycles_are_repetitions(self, movement, n, period_s):
        repetitions = count(movement, cycles(n, period_s))
        assert [r.number for r in repetitions] == list(range(1, n + 1))
        for repetition in repetitions:
            assert repetition.exercise == movement.exercise
            assert repetition.start_s < repetition.turn_s < repetition.end_s
            assert 0.5 * period_s < repetition.duration_s < period_s
        for first, second in pairwise(repetitions):
            assert second.start_s > first.end_s
            assert second.turn_s - first.turn_s == pytest.approx(period_s, abs=0.3 * period_s)

    @few
    @given(st.integers(0, 3), st.integers(0, 1000))
    def test_noise_within_the_dead_band_counts_nothing_twice(self, movement, n, seed):
        wave = cycles(n, 3.0)
        noise = np.random.default_rng(seed).uniform(-0.15, 0.15, len(wave))
        assert len(count(movement, wave + noise)) == n

    @pytest.mark.parametrize("threshold", [0.3, 0.7])
    def test_trembling_on_a_threshold_counts_nothing(self, movement, threshold):
        noise = np.random.default_rng(0).uniform(-0.19, 0.19, 500)
        states = run(movement, observe_all(threshold + noise))
        assert states[-1].repetitions == ()
        assert states[-1].n_rejected == 0

    def test_half_a_movement_counts_nothing(self, movement):
        assert count(movement, 0.6 * cycles(3)) == ()

    def test_staying_counts_nothing(self, movement):
        assert count(movement, np.zeros(200)) == ()
        assert count(movement, np.ones(200)) == ()

    def test_too_fast_is_noise(self, movement):
        # Away for four frames from where it is counted.
        rest = 0.0 if movement is SQUAT else 1.0
        twitch = np.full(100, rest)
        twitch[50:54] = 1.0 - rest
        states = run(movement, observe_all(twitch))
        assert states[-1].repetitions == ()
        assert states[-1].n_rejected == 1
        abrupt = line((0, 0), (1, 0), (1.03, 1), (2, 1), (2.03, 0), (3, 0))
        assert count(replace(movement, min_travel_s=0.2), abrupt) == ()

    def test_too_slow_is_something_else(self, movement):
        slow = line((0, 0), (1, 0), (9, 1), (10, 1), (18, 0), (19, 0))
        assert len(count(movement, slow)) == 1
        assert count(replace(movement, max_travel_s=3.0), slow) == ()

    def test_a_short_gap_does_not_matter(self, movement):
        wave = cycles(2)
        wave[20:30] = wave[60:80] = np.nan
        repetitions = count(movement, wave)
        assert len(repetitions) == 2
        assert all(math.isfinite(r.duration_s) for r in repetitions)

    def test_a_long_rest_afterwards_changes_nothing(self, movement):
        rest = np.zeros(round(40.0 / DT_S))
        before, after = count(movement, cycles(1)), count(movement, np.append(cycles(1), rest))
        for one, other in zip(before, after, strict=True):
            assert other.start_s == one.start_s
            assert other.turn_s == one.turn_s
            assert other.end_s == one.end_s
            assert other.hold_s == one.hold_s

    def test_trembling_on_a_plateau_does_not_stretch_the_way(self, movement):
        tremble = np.random.default_rng(1).uniform(-0.06, 0.06, len(TEMPO))
        (repetition,) = count(movement, TEMPO + tremble * (np.abs(TEMPO - 0.5) > 0.49))
        out_s, back_s = repetition.eccentric_s, repetition.concentric_s
        if movement is CURL:
            out_s, back_s = back_s, out_s
        assert out_s == pytest.approx(0.8, abs=0.25)
        assert back_s == pytest.approx(1.6, abs=0.25)

    def test_progress_is_unknown_in_a_gap(self, movement):
        states = run(movement, observe_all([0.0, 0.0, np.nan]))
        assert math.isnan(states[-1].progress)
        assert phase_of(movement, states[-1]) is Phase.UNKNOWN

    @pytest.mark.parametrize(("gap_s", "counted"), [(1.0, 1), (2.0, 0)])
    def test_a_long_gap_forgets_the_movement_under_way(self, movement, gap_s, counted):
        gap, second = np.full(round(gap_s / DT_S), np.nan), round(1.0 / DT_S)
        if movement is SQUAT:
            before, after = line((0, 0), (1, 0), (2, 1), (3, 1)), np.zeros(second)
        else:
            before, after = np.zeros(second), np.ones(second)
        assert len(count(movement, np.concatenate([before, gap, after]))) == counted

    def test_losing_sight_keeps_what_was_counted(self, movement):
        state = run(movement, observe_all(cycles(2)))[-1]
        lost = lose_sight(state)
        assert lost.repetitions == state.repetitions
        assert lost.zone == "unknown"
        later = run(movement, observe_all(cycles(1), begin_s=60.0), lost)[-1]
        assert [r.number for r in later.repetitions] == [1, 2, 3]

    def test_ranges_of_motion(self, movement):
        (repetition,) = count(movement, cycles(1))
        (knee,) = repetition.ranges
        assert knee.angle == "left_knee"
        assert knee.min_deg == pytest.approx(80.0, abs=1.0)
        assert knee.max_deg == pytest.approx(180.0, abs=1.0)
        assert knee.range_deg == pytest.approx(100.0, abs=1.0)
        assert knee.trusted
        (doubtful,) = count(movement, cycles(1), trusted=False)[0].ranges
        assert not doubtful.trusted

    @few
    @given(st.data(), st.integers(0, 100))
    def test_a_split_recording_gives_the_same(self, movement, data, seed):
        noise = np.random.default_rng(seed).normal(0, 0.1, 4000)
        wave = cycles(2)
        wave += noise[: len(wave)]
        wave[np.random.default_rng(seed).random(len(wave)) < 0.05] = np.nan
        observations = observe_all(wave)
        cut = data.draw(st.integers(0, len(wave)))
        whole = run(movement, observations)
        middle = run(movement, observations[:cut])[-1] if cut else CounterState()
        second = run(movement, observations[cut:], copy.deepcopy(middle))
        again = run(movement, observations[cut:], middle)
        for rest in (second, again):
            assert [s.repetitions for s in rest] == [s.repetitions for s in whole[cut:]]
            assert [s.here for s in rest] == [s.here for s in whole[cut:]]
            assert [s.n_rejected for s in rest] == [s.n_rejected for s in whole[cut:]]

    @few
    @given(st.integers(-5000, 5000))
    def test_the_clock_may_start_anywhere(self, movement, shift_s):
        def shifted(repetition):
            return replace(
                repetition,
                start_s=repetition.start_s + shift_s,
                turn_s=repetition.turn_s + shift_s,
                end_s=repetition.end_s + shift_s,
            )

        expected = tuple(shifted(r) for r in count(movement, cycles(2)))
        assert count(movement, cycles(2), begin_s=float(shift_s)) == expected

    def test_frame_rate_and_dropped_frames_do_not_matter(self, movement):
        observations = observe_all(cycles(3))
        slow = run(movement, observations[::4])[-1].repetitions
        keep = np.random.default_rng(3).random(len(observations)) < 0.5
        ragged = run(movement, [o for o, k in zip(observations, keep, strict=True) if k])
        expected = run(movement, observations)[-1].repetitions
        for repetitions in (slow, ragged[-1].repetitions):
            assert [r.turn_s for r in repetitions] == pytest.approx(
                [r.turn_s for r in expected], abs=0.2
            )


# Down in 1 s, half a second at the bottom, up in 2 s. The way between the first and the last tenth
# is timed: a position is held within a tenth.
TEMPO = line((0, 0), (1, 0), (2, 1), (2.5, 1), (4.5, 0), (6, 0))


def within_two_frames(seconds):
    return pytest.approx(seconds, abs=2 * DT_S)


class TestEccentricFirst:
    def test_it_counts_when_the_start_position_is_reached_again(self):
        states = run(SQUAT, observe_all(TEMPO))
        counted = next(s.time_s for s in states if s.repetitions)
        assert counted == within_two_frames(4.5 - 0.3 * 2)

    def test_tempo(self):
        (repetition,) = count(SQUAT, TEMPO)
        assert repetition.start_s == within_two_frames(1.1)
        assert repetition.turn_s == within_two_frames(2.0)
        assert repetition.end_s == within_two_frames(4.3)
        assert repetition.eccentric_s == within_two_frames(0.8)
        assert repetition.hold_s == within_two_frames(0.1 + 0.5 + 0.2)
        assert repetition.concentric_s == within_two_frames(1.6)
        parts_s = repetition.eccentric_s + repetition.hold_s + repetition.concentric_s
        assert parts_s == within_two_frames(repetition.duration_s)

    def test_phases(self):
        assert phases(SQUAT, observe_all(TEMPO)) == [
            Phase.TOP,
            Phase.ECCENTRIC,
            Phase.BOTTOM,
            Phase.CONCENTRIC,
            Phase.TOP,
        ]

    def test_turning_back_half_way(self):
        half = line((0, 0), (1, 0), (2, 0.6), (3, 0), (4, 0))
        assert phases(SQUAT, observe_all(half)) == [
            Phase.TOP,
            Phase.ECCENTRIC,
            Phase.CONCENTRIC,
            Phase.TOP,
        ]

    def test_a_lift_from_the_floor_counts_at_lockout(self):
        lift = line((0, 1), (1, 1), (2, 0), (3, 0))
        (repetition,) = count(SQUAT, lift)
        assert repetition.end_s == within_two_frames(1.9)
        assert repetition.eccentric_s == 0
        assert repetition.concentric_s == within_two_frames(0.8)
        assert repetition.start_s == 0

    def test_somebody_who_is_just_rising_when_first_seen_did_not_lift(self):
        assert count(SQUAT, line((0, 0.8), (0.1, 0.7), (0.4, 0), (3, 0))) == ()

    def test_lowering_alone_is_no_repetition(self):
        assert count(SQUAT, line((0, 0), (1, 0), (2, 1), (4, 1))) == ()

    def test_who_goes_deeper_need_not_come_up_as_high(self):
        deep = line((0, 0), (1, 0), (2, 1.3), (3, 0.35), (4, 1.3), (5, 0.35))
        assert len(count(SQUAT, deep)) == 2
        flat = line((0, 0), (1, 0), (2, 1.0), (3, 0.35), (4, 1.0), (5, 0.35))
        assert count(SQUAT, flat) == ()

    def test_beginning_unseen_is_unknown_phase(self):
        assert phases(SQUAT, observe_all([0.5, 0.5])) == [Phase.UNKNOWN]


class TestConcentricFirst:
    def test_it_counts_at_the_full_position(self):
        counted = next(s for s in run(CURL, observe_all(TEMPO)) if s.repetitions)
        assert counted.time_s == within_two_frames(1.7)
        (repetition,) = counted.repetitions
        assert repetition.number == 1
        assert repetition.end_s == counted.time_s
        assert 0.4 < repetition.concentric_s < 0.7
        assert repetition.eccentric_s == 0
        assert repetition.hold_s < 0.1

    def test_it_is_completed_at_the_start_position(self):
        (repetition,) = count(CURL, TEMPO)
        assert repetition.number == 1
        assert repetition.start_s == within_two_frames(1.1)
        assert repetition.end_s == within_two_frames(4.3)
        assert repetition.concentric_s == within_two_frames(0.8)
        assert repetition.hold_s == within_two_frames(0.1 + 0.5 + 0.2)
        assert repetition.eccentric_s == within_two_frames(1.6)

    def test_the_completed_repetition_has_its_whole_depth(self):
        (repetition,) = count(CURL, TEMPO)
        assert repetition.depth == pytest.approx(1.0, abs=0.05)
        assert repetition.turn_s >= 2.0 - 2 * DT_S

    def test_phases(self):
        assert phases(CURL, observe_all(TEMPO)) == [
            Phase.BOTTOM,
            Phase.CONCENTRIC,
            Phase.TOP,
            Phase.ECCENTRIC,
            Phase.BOTTOM,
        ]

    def test_starting_at_the_full_position_counts_the_next_arrival(self):
        lowered = line((0, 1), (1, 1), (2, 0), (3, 0), (4, 1), (5, 1))
        (repetition,) = count(CURL, lowered)
        assert repetition.start_s == within_two_frames(3.1)
        assert repetition.end_s == within_two_frames(4.0)
        assert repetition.concentric_s == within_two_frames(0.8)

    def test_a_rejected_arrival_is_no_part_of_the_next_repetition(self):
        strict = replace(CURL, min_travel_s=0.2)
        abrupt = line((0, 0), (1, 0), (1.03, 1.1), (2, 1.1), (3, 0), (4, 0), (5, 1), (6, 0), (7, 0))
        (repetition,) = count(strict, abrupt)
        assert repetition.start_s == within_two_frames(4.1)
        assert repetition.end_s == within_two_frames(5.9)
        assert repetition.depth == pytest.approx(1.0, abs=0.05)

    def test_a_rejected_arrival_leaves_the_last_repetition_alone(self):
        strict = replace(CURL, min_travel_s=0.2)
        leap = np.zeros(40)
        leap[20:24] = 1.0
        states = run(strict, observe_all(np.concatenate([cycles(1), leap])))
        assert states[-1].repetitions == count(strict, cycles(1))
        assert states[-1].n_rejected == 1


def test_progress_runs_either_way():
    curl = replace(CURL, feature="elbow_deg", start=140.0, full=40.0)
    features = observe(0.0, 0.0, elbow_deg=90.0).features
    assert curl.progress(features) == pytest.approx(0.5)
    assert math.isnan(curl.progress(np.full(len(FEATURE_NAMES), np.nan)))


def test_what_came_before_is_no_part_of_the_range_of_motion():
    """Getting down to the first push-up on one's knees says nothing about the push-up."""
    kneeling = []
    for frame in observe_all(np.zeros(round(2.0 / DT_S))):
        angles = frame.angles_deg.copy()
        angles[ANGLE_INDEX["left_knee"]] = 30.0
        kneeling.append(replace(frame, angles_deg=angles))
    first = observe_all(cycles(1, rest_s=1.0), begin_s=2.0)
    (knee,) = run(SQUAT, kneeling + first)[-1].repetitions[0].ranges
    assert knee.min_deg == pytest.approx(80.0, abs=1.0)
