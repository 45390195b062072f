"""What every filter must do, and what only the Kalman filter promises."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pose_analyzer.keypoint_filters import KalmanFilter
from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, N_KEYPOINTS, Coco
from pose_analyzer.types import KeypointFlag

from .filter_runs import (
    FPS,
    LEGS,
    SIZE_PX,
    STANDING,
    SURE,
    every_filter,
    few,
    moving,
    noisy,
    positions,
    rms,
    run,
    still,
)


@every_filter
class TestEveryFilter:
    def test_the_first_measurement_is_taken_as_it_is(self, solver):
        _, (first,) = run(solver, still(1))
        np.testing.assert_array_equal(first.keypoints_px, STANDING)
        assert (first.velocities_px_s == 0).all()
        assert (first.flags == 0).all()
        assert (first.sd_px >= solver.noise.sd_px(SURE, SIZE_PX)).all()

    def test_noise_on_a_still_person_shrinks(self, solver):
        measured = noisy(still(120), 4.0)
        shown = positions(run(solver, measured)[1])[30:]
        assert rms(shown - STANDING) < 0.75 * rms(measured[30:] - STANDING)
        # Jitter, what one sees: change from frame to frame.
        assert rms(np.diff(shown, axis=0)) < 0.5 * rms(np.diff(measured[30:], axis=0))

    def test_an_uncertain_measurement_is_stated_as_uncertain(self, solver):
        confidences = SURE.copy()
        confidences[Coco.LEFT_KNEE] = 0.3
        _, shown = run(solver, still(30), confidences)
        assert shown[-1].sd_px[Coco.LEFT_KNEE] > 1.5 * shown[-1].sd_px[Coco.RIGHT_KNEE]
        np.testing.assert_array_equal(shown[-1].confidences, confidences)

    def test_motion_lags_at_most_a_frame(self, solver):
        times_s = np.arange(60) / FPS
        truth = moving(times_s)
        behind = rms((positions(run(solver, truth)[1]) - truth)[-1]) * np.sqrt(2)
        assert behind <= np.hypot(150.0, 60.0) / FPS

    def test_a_short_gap_is_bridged_and_flagged(self, solver):
        keypoints, confidences = still(30), np.tile(SURE, (30, 1))
        keypoints[20:28, Coco.LEFT_WRIST] = np.nan
        confidences[20:28, Coco.RIGHT_KNEE] = 0.05
        _, shown = run(solver, keypoints, confidences)
        for index, frame in enumerate(shown):
            for joint in Coco:
                bridged = joint in (Coco.LEFT_WRIST, Coco.RIGHT_KNEE) and 20 <= index < 28
                assert frame.flags[joint] == (KeypointFlag.BRIDGED if bridged else 0)
                assert (frame.confidences[joint] == 0) == bridged
            np.testing.assert_allclose(frame.keypoints_px, STANDING, atol=1e-6)
        assert shown[25].sd_px[Coco.LEFT_WRIST] > shown[19].sd_px[Coco.LEFT_WRIST]

    def test_a_long_gap_is_unknown_and_ends_at_the_next_measurement(self, solver):
        keypoints = still(60)
        keypoints[20:50] = np.nan
        _, shown = run(solver, keypoints)
        n_bridged = int(solver.max_gap_s * FPS)
        assert np.isfinite(shown[19 + n_bridged - 1].keypoints_px).all()
        for frame in shown[19 + n_bridged + 1 : 50]:
            assert np.isnan(frame.keypoints_px).all()
            assert np.isnan(frame.velocities_px_s).all()
            assert np.isnan(frame.sd_px).all()
            assert (frame.flags == 0).all()
        np.testing.assert_array_equal(shown[50].keypoints_px, STANDING)
        assert (shown[50].flags == 0).all()

    def test_nobody_yet_is_unknown(self, solver):
        one = np.full((N_KEYPOINTS, 2), np.nan)
        one[Coco.NOSE] = 100.0
        state, (shown,) = run(solver, one[None])
        assert np.isnan(shown.keypoints_px).all()
        assert (shown.confidences == 0).all()
        _, (shown,) = run(solver, still(1), times_s=[1.0], state=state)
        np.testing.assert_array_equal(shown.keypoints_px, STANDING)

    def test_half_a_measurement_is_none(self, solver):
        measured = still(4)
        measured[1, Coco.LEFT_WRIST, 1] = np.nan
        measured[2, Coco.LEFT_WRIST, 0] = np.nan
        _, shown = run(solver, measured)
        flags = [frame.flags[Coco.LEFT_WRIST] for frame in shown]
        assert flags == [0, KeypointFlag.BRIDGED, KeypointFlag.BRIDGED, 0]
        assert np.isfinite(positions(shown)).all()

    def test_all_points_in_one_place_are_no_failure(self, solver):
        one_place = np.full((3, N_KEYPOINTS, 2), 100.0)
        _, shown = run(solver, np.concatenate([one_place, still(3)]))
        np.testing.assert_allclose(shown[-1].keypoints_px, STANDING, atol=1.0)

    def test_time_may_stand_still_but_not_run_backwards(self, solver):
        state, _ = run(solver, still(3))
        _, shown = solver.step(state, state.time_s, STANDING, SURE)
        assert np.isfinite(shown.keypoints_px).all()
        with pytest.raises(ValueError, match="time runs backwards"):
            solver.step(state, state.time_s - 1e-3, STANDING, SURE)


@st.composite
def recordings(draw):
    """Times, keypoints and confidences of a person with noise, gaps, swaps and leaps."""
    n_frames = draw(st.integers(4, 14))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    times_s = np.cumsum(rng.choice([1 / 60, 1 / 30, 1 / 10, 0.5], n_frames, p=[0.3, 0.4, 0.2, 0.1]))
    keypoints = noisy(moving(times_s), draw(st.sampled_from([0.5, 5.0])), rng.integers(1000))
    confidences = rng.uniform(0.2, 1.0, (n_frames, N_KEYPOINTS))
    confidences[rng.random(confidences.shape) < 0.1] = 0.0
    keypoints[rng.random(confidences.shape) < 0.1] = np.nan
    leaps = rng.random(confidences.shape) < 0.05
    keypoints[leaps] += 300.0
    for frame in np.flatnonzero(rng.random(n_frames) < 0.2):
        keypoints[frame, LEGS] = keypoints[frame, MIRRORED_KEYPOINTS[LEGS]]
    return times_s, keypoints, confidences


def assert_same(shown, expected, scale=1.0):
    for one, other in zip(shown, expected, strict=True):
        tolerance = {"rtol": 1e-7, "atol": 1e-6 * scale}
        np.testing.assert_allclose(one.keypoints_px, other.keypoints_px, **tolerance)
        np.testing.assert_allclose(one.velocities_px_s, other.velocities_px_s, **tolerance)
        np.testing.assert_allclose(one.sd_px, other.sd_px, **tolerance)
        np.testing.assert_array_equal(one.confidences, other.confidences)
        np.testing.assert_array_equal(one.flags, other.flags)


@every_filter
class TestProperties:
    @few
    @given(recordings(), st.floats(-5000, 5000), st.floats(-5000, 5000))
    def test_where_in_the_picture_does_not_matter(self, solver, recording, dx, dy):
        times_s, keypoints, confidences = recording
        shift = np.array([dx, dy])
        _, here = run(solver, keypoints, confidences, times_s)
        _, there = run(solver, keypoints + shift, confidences, times_s)
        expected = [replace(f, keypoints_px=f.keypoints_px + shift) for f in here]
        assert_same(there, expected)

    @few
    @given(recordings(), st.floats(0.1, 20.0))
    def test_how_large_in_the_picture_does_not_matter(self, solver, recording, scale):
        times_s, keypoints, confidences = recording
        _, small = run(solver, keypoints, confidences, times_s)
        _, large = run(solver, keypoints * scale, confidences, times_s)
        expected = [
            replace(
                f,
                keypoints_px=f.keypoints_px * scale,
                velocities_px_s=f.velocities_px_s * scale,
                sd_px=f.sd_px * scale,
            )
            for f in small
        ]
        assert_same(large, expected, scale)

    @few
    @given(recordings())
    def test_a_mirror_changes_sides_and_nothing_else(self, solver, recording):
        times_s, keypoints, confidences = recording
        flip = np.array([-1.0, 1.0])
        order = MIRRORED_KEYPOINTS
        _, plain = run(solver, keypoints, confidences, times_s)
        _, mirror = run(solver, keypoints[:, order] * flip, confidences[:, order], times_s)
        expected = [
            replace(
                f,
                keypoints_px=f.keypoints_px[order] * flip,
                velocities_px_s=f.velocities_px_s[order] * flip,
                sd_px=f.sd_px[order],
                confidences=f.confidences[order],
                flags=f.flags[order],
            )
            for f in plain
        ]
        assert_same(mirror, expected)

    @few
    @given(recordings(), st.data())
    def test_a_split_recording_gives_the_same_bits(self, solver, recording, data):
        times_s, keypoints, confidences = recording
        cut = data.draw(st.integers(0, len(times_s)))
        whole_state, whole = run(solver, keypoints, confidences, times_s)
        middle, first = run(solver, keypoints[:cut], confidences[:cut], times_s[:cut])
        kept = copy.deepcopy(middle)
        rest = (keypoints[cut:], confidences[cut:], times_s[cut:])
        run(solver, *rest, middle)  # must leave the state as it was
        end_state, second = run(copy.deepcopy(solver), *rest, kept)
        end_again, again = run(solver, *rest, middle)
        for chunks in (first + second, first + again):
            for one, other in zip(chunks, whole, strict=True):
                for name in one.__slots__:
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in whole_state.__slots__:
            for state in (end_state, end_again):
                np.testing.assert_array_equal(getattr(state, name), getattr(whole_state, name))

    @few
    @given(st.data())
    def test_garbage_never_becomes_infinite(self, solver, data):
        n_frames = data.draw(st.integers(1, 6))
        points = st.one_of(st.floats(-1e5, 1e5), st.just(7.0))
        keypoints = data.draw(hnp.arrays(float, (n_frames, N_KEYPOINTS, 2), elements=points))
        keypoints[data.draw(hnp.arrays(bool, (n_frames, N_KEYPOINTS)))] = np.nan
        sure = st.one_of(st.just(np.nan), st.just(0.0), st.floats(0.0, 1.0))
        confidences = data.draw(hnp.arrays(float, (n_frames, N_KEYPOINTS), elements=sure))
        steps = data.draw(hnp.arrays(float, n_frames, elements=st.floats(0.0, 2.0)))
        for frame in run(solver, keypoints, confidences, np.cumsum(steps))[1]:
            unknown = np.isnan(frame.sd_px)
            np.testing.assert_array_equal(np.isnan(frame.keypoints_px).any(axis=1), unknown)
            np.testing.assert_array_equal(np.isnan(frame.velocities_px_s).any(axis=1), unknown)
            assert not np.isinf(frame.keypoints_px).any()
            assert not np.isinf(frame.velocities_px_s).any()
            assert (frame.sd_px[~unknown] >= 0).all()
            assert np.isfinite(frame.confidences).all()
            assert (frame.confidences[unknown] == 0).all()


class TestKalman:
    solver = KalmanFilter()

    def test_constant_velocity_is_followed_without_lag(self):
        rng = np.random.default_rng(1)
        times_s = np.cumsum(rng.uniform(0.005, 0.09, 120))  # irregular
        truth = moving(times_s)
        shown = run(self.solver, truth, times_s=times_s)[1]
        np.testing.assert_allclose(shown[-1].keypoints_px, truth[-1], atol=0.05)
        np.testing.assert_allclose(
            shown[-1].velocities_px_s, np.tile([150.0, -60.0], (N_KEYPOINTS, 1)), atol=2.0
        )

    def test_a_gap_is_bridged_along_the_motion(self):
        times_s = np.arange(40) / FPS
        truth = moving(times_s)
        measured = truth.copy()
        measured[30:] = np.nan
        shown = positions(run(self.solver, measured)[1])
        np.testing.assert_allclose(shown[30:], truth[30:], atol=0.5)

    def test_an_outlier_is_ignored_and_flagged(self):
        measured = still(30)
        measured[20, Coco.LEFT_WRIST] += 200.0
        shown = run(self.solver, measured)[1]
        flags = shown[20].flags
        assert flags[Coco.LEFT_WRIST] == KeypointFlag.REJECTED | KeypointFlag.BRIDGED
        assert np.count_nonzero(flags) == 1
        assert shown[20].confidences[Coco.LEFT_WRIST] == 0
        np.testing.assert_allclose(shown[20].keypoints_px, STANDING, atol=1e-6)
        assert (shown[21].flags == 0).all()

    def test_what_stays_far_away_is_believed(self):
        measured = still(30)
        measured[20:, Coco.LEFT_WRIST] += 200.0
        shown = run(self.solver, measured)[1]
        rejected = [bool(f.flags[Coco.LEFT_WRIST] & KeypointFlag.REJECTED) for f in shown]
        assert np.flatnonzero(rejected).tolist() == [20, 21]
        np.testing.assert_allclose(
            shown[22].keypoints_px[Coco.LEFT_WRIST], STANDING[Coco.LEFT_WRIST] + 200.0
        )


@every_filter
@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_the_stated_deviation_is_honest(solver, confidence):
    """Somebody sways; the detector errs as the noise model says, by jitter and steadily."""
    rng = np.random.default_rng(5)
    sure = np.full(N_KEYPOINTS, confidence)
    times_s = np.arange(240) / FPS
    sway = 0.02 * SIZE_PX * np.sin(2 * np.pi * 0.5 * times_s)
    truth = STANDING + sway[:, None, None] * rng.normal(size=(N_KEYPOINTS, 2))
    bias_px = solver.noise.bias_ratio * SIZE_PX * rng.normal(size=(N_KEYPOINTS, 2))
    noise_px = rng.normal(size=truth.shape) * solver.noise.sd_px(sure, SIZE_PX)[:, None]
    shown = run(solver, truth + bias_px + noise_px, sure)[1][30:]
    error = (positions(shown) - truth[30:]) / np.array([f.sd_px for f in shown])[:, :, None]
    assert 0.3 < np.mean(error**2) < 2.0
    assert np.mean(np.abs(error) < 2.0) > 0.85
