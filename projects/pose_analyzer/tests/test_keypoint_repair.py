"""Sides the detector exchanged, and bodies it saw between front and back, are put right."""

import numpy as np
import pytest

from pose_analyzer.keypoint_filters import KalmanFilter, OneEuroFilter
from pose_analyzer.keypoint_repair import body_size_px
from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, N_KEYPOINTS, Coco
from pose_analyzer.types import KeypointFlag

from .filter_runs import (
    CHAINS,
    FPS,
    LEGS,
    SIZE_PX,
    STANDING,
    SURE,
    every_filter,
    moving,
    positions,
    run,
    still,
)


@every_filter
class TestSides:
    @pytest.mark.parametrize("joints", [LEGS, CHAINS], ids=["legs", "legs and arms"])
    def test_sides_exchanged_for_some_frames_are_put_back(self, solver, joints):
        times_s = np.arange(60) / FPS
        truth = moving(times_s, (60.0, 0.0))
        measured = truth.copy()
        measured[30:40, joints] = truth[30:40][:, MIRRORED_KEYPOINTS[joints]]
        _, shown = run(solver, measured)
        for index, frame in enumerate(shown):
            swapped = np.zeros(N_KEYPOINTS, np.uint8)
            if 30 <= index < 40:
                swapped[joints] = KeypointFlag.SWAPPED
            np.testing.assert_array_equal(frame.flags, swapped)
        untouched = run(solver, truth)[1]
        np.testing.assert_allclose(positions(shown), positions(untouched), atol=1e-9)

    def test_the_confidence_moves_with_the_side(self, solver):
        confidences = np.tile(SURE, (11, 1))
        confidences[:10, Coco.LEFT_KNEE] = confidences[10, Coco.RIGHT_KNEE] = 0.6
        measured = still(11)
        measured[10] = STANDING[MIRRORED_KEYPOINTS]
        shown = run(solver, measured, confidences)[1][-1]
        assert shown.confidences[Coco.LEFT_KNEE] == 0.6
        assert shown.confidences[Coco.RIGHT_KNEE] == 0.9

    def test_sides_exchanged_for_good_are_believed(self, solver):
        turned = STANDING.copy()
        turned[CHAINS] = STANDING[MIRRORED_KEYPOINTS[CHAINS]]
        _, shown = run(solver, np.concatenate([still(30), still(60, turned)]))
        assert (shown[31].flags[CHAINS] == KeypointFlag.SWAPPED).all()
        assert (shown[-1].flags == 0).all()
        np.testing.assert_allclose(shown[-1].keypoints_px, turned, atol=1.0)

    def test_sides_too_close_to_tell_are_left_alone(self, solver):
        narrow = STANDING.copy()
        narrow[:, 0] = narrow[Coco.NOSE, 0] + 0.1 * (narrow[:, 0] - narrow[Coco.NOSE, 0])
        measured = still(20, narrow)
        measured[10:, :] = narrow[MIRRORED_KEYPOINTS]
        _, shown = run(solver, measured)
        assert not any((frame.flags & KeypointFlag.SWAPPED).any() for frame in shown)

    def test_a_long_absence_says_nothing_about_sides(self, solver):
        turned = STANDING[MIRRORED_KEYPOINTS]
        state, _ = run(solver, still(30))
        _, (shown,) = run(solver, turned[None], times_s=[3.0], state=state)
        assert (shown.flags == 0).all()
        np.testing.assert_array_equal(shown.keypoints_px, turned)


def test_body_size_needs_two_points():
    usable = np.zeros(N_KEYPOINTS, bool)
    usable[Coco.NOSE] = True
    assert np.isnan(body_size_px(STANDING, usable))
    usable[Coco.LEFT_ANKLE] = True
    expected = np.hypot(*(STANDING[Coco.NOSE] - STANDING[Coco.LEFT_ANKLE]))
    assert body_size_px(STANDING, usable) == pytest.approx(expected)


@pytest.mark.parametrize("solver", [KalmanFilter(), OneEuroFilter()], ids=["kalman", "one-euro"])
def test_a_whole_body_taken_for_its_back_is_put_back_with_its_face(solver):
    state = solver.initial_state()
    sure = np.full(N_KEYPOINTS, 0.95)
    for index in range(20):
        flipped = index in {15, 16, 17}
        seen = STANDING[MIRRORED_KEYPOINTS] if flipped else STANDING
        state, shown = solver.step(state, index / 30.0, seen, sure)
    np.testing.assert_allclose(shown.keypoints_px, STANDING, atol=1.0)


def test_one_chain_never_twists_a_torso_that_agrees():
    """Arms that move fast may fit better exchanged; shoulders and hips know better."""
    solver = KalmanFilter()
    state = solver.initial_state()
    sure = np.full(N_KEYPOINTS, 0.95)
    arms = [Coco.LEFT_ELBOW, Coco.RIGHT_ELBOW, Coco.LEFT_WRIST, Coco.RIGHT_WRIST]
    crossed = STANDING.copy()
    crossed[arms] = STANDING[MIRRORED_KEYPOINTS[arms]]
    for index in range(12):
        seen = crossed if index >= 10 else STANDING
        state, shown = solver.step(state, index / 30.0, seen, sure)
        assert not (shown.flags[[Coco.LEFT_SHOULDER, Coco.LEFT_HIP]] & KeypointFlag.SWAPPED).any()


MIDDLE_PX = STANDING[Coco.NOSE, 0]
LEFT_OUT = KeypointFlag.REJECTED | KeypointFlag.BRIDGED


def turned(width_ratio):
    """Whoever stands, as wide as after a turn; negative from behind."""
    keypoints = STANDING.copy()
    keypoints[:, 0] = MIDDLE_PX + width_ratio * (STANDING[:, 0] - MIDDLE_PX)
    return keypoints


@every_filter
class TestHalfTurned:
    def test_a_body_between_front_and_back_is_left_out(self, solver):
        """What MediaPipe shows of a man who never turned: his back, then its own way forward."""
        ratios = [0.1, -0.9, 0.3, 0.7]
        measured = [*still(20), *(turned(ratio) for ratio in ratios), *still(4)]
        _, shown = run(solver, measured)
        np.testing.assert_allclose(positions(shown[20:]), still(8), atol=0.02 * SIZE_PX)
        for index, frame in enumerate(shown):
            expected = LEFT_OUT if index in {20, 22, 23} else 0
            if index != 21:
                assert (frame.flags == expected).all(), index
        assert (shown[21].flags[CHAINS] == KeypointFlag.SWAPPED).all()
        assert (shown[20].confidences == 0).all()

    def test_a_body_that_stays_narrow_is_believed(self, solver):
        _, shown = run(solver, [*still(20), *still(20, turned(0.1))])
        left_out = [bool(frame.flags[Coco.LEFT_HIP] & KeypointFlag.REJECTED) for frame in shown]
        assert 0.2 * FPS <= sum(left_out) <= 0.35 * FPS
        assert not any(left_out[30:])
        np.testing.assert_allclose(shown[-1].keypoints_px, turned(0.1), atol=0.02 * SIZE_PX)

    def test_a_person_who_turns_fast_is_followed(self, solver):
        """A quarter turn in a third of a second, as fast as dancers."""
        angles = np.clip(np.arange(40) - 20, 0, 10) / 10 * np.pi / 2
        measured = [turned(np.cos(angle)) for angle in angles]
        _, shown = run(solver, measured)
        assert not any((frame.flags & KeypointFlag.REJECTED).any() for frame in shown[:25])
        late = [index for index, frame in enumerate(shown) if frame.flags[Coco.LEFT_HIP]]
        assert len(late) <= 0.25 * FPS
        np.testing.assert_allclose(shown[-1].keypoints_px, measured[-1], atol=0.02 * SIZE_PX)

    def test_limbs_may_move_as_fast_as_in_jumping_jacks(self, solver):
        times_s = np.arange(60) / FPS
        measured = still(60)
        spread = 0.5 - 0.5 * np.cos(2 * np.pi * 1.5 * times_s)
        for left, right in ((Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE), (Coco.LEFT_KNEE, Coco.RIGHT_KNEE)):
            measured[:, left, 0] += 0.15 * SIZE_PX * spread
            measured[:, right, 0] -= 0.15 * SIZE_PX * spread
        for wrist in (Coco.LEFT_WRIST, Coco.RIGHT_WRIST):
            measured[:, wrist, 1] -= 0.6 * SIZE_PX * spread
        _, shown = run(solver, measured)
        torso = [Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER, Coco.LEFT_HIP, Coco.RIGHT_HIP]
        assert not any(frame.flags[torso].any() for frame in shown)

    def test_at_a_low_frame_rate_a_turn_is_believed(self, solver):
        measured = [*still(10), *still(3, turned(0.1))]
        _, shown = run(solver, measured, times_s=np.arange(13) / 10.0)
        assert not any(frame.flags[Coco.LEFT_HIP] & KeypointFlag.REJECTED for frame in shown[11:])


def test_a_face_in_profile_on_a_body_put_back_is_left_out():
    face = [Coco.NOSE, Coco.LEFT_EYE, Coco.RIGHT_EYE, Coco.LEFT_EAR, Coco.RIGHT_EAR]
    back = STANDING[MIRRORED_KEYPOINTS]
    back[face] = turned(0.2)[face]
    _, shown = run(KalmanFilter(), [*still(20), *still(3, back), *still(3)])
    for frame in shown[20:23]:
        assert (frame.flags[face] == LEFT_OUT).all()
        assert (frame.flags[CHAINS] == KeypointFlag.SWAPPED).all()
    np.testing.assert_allclose(positions(shown[20:]), still(6), atol=1e-6)
