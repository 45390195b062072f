"""What repetition features must not depend on, and what they must show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.repetition_features import (
    N_PHASES,
    SIGNAL_NAMES,
    SUMMARY_NAMES,
    measure_repetition,
    mirror,
)
from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, Coco

from .builders import squat_keypoints

DEGREES = np.array([name.endswith("_deg") for name in SIGNAL_NAMES])
# A tenth of a degree and a thousandth of the body: far below what keypoints can tell.
TOLERANCE = np.where(DEGREES, 0.1, 0.001)


def squat(fps=30.0, duration_s=2.0, uneven=0.0):
    """A squat whose left leg goes a little further, so that it leads."""
    times_s = np.arange(0.0, duration_s + 1e-9, 1.0 / fps)
    times_s = times_s + uneven / fps * np.sin(np.arange(len(times_s)))
    progress = 0.5 - 0.5 * np.cos(2.0 * np.pi * times_s / duration_s)
    keypoints = np.stack([squat_keypoints(p) for p in progress])
    keypoints[:, Coco.LEFT_KNEE, 0] += 15.0 * progress
    return times_s, keypoints


def measure(times_s, keypoints, confidence=0.9):
    return measure_repetition(times_s, keypoints, np.full(keypoints.shape[:2], confidence))


def assert_same(one, other, factor=1.0):
    difference = np.abs(one.trajectory - other.trajectory)
    assert np.all(difference <= factor * TOLERANCE), SIGNAL_NAMES[
        int(np.argmax((difference / TOLERANCE).max(axis=0)))
    ]


def turned(keypoints, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return keypoints @ np.array([[cosine, sine], [-sine, cosine]])


class TestInvariance:
    @given(
        scale=st.floats(0.5, 2.0),
        right_px=st.floats(-2000, 2000),
        down_px=st.floats(-2000, 2000),
        roll_deg=st.floats(-180, 180),
    )
    def test_size_place_and_roll(self, scale, right_px, down_px, roll_deg):
        times_s, keypoints = squat()
        moved = scale * turned(keypoints, roll_deg) + np.array([right_px, down_px])
        assert_same(measure(times_s, keypoints), measure(times_s, moved))

    def test_mirrored_person(self):
        times_s, keypoints = squat()
        mirrored = keypoints[:, MIRRORED_KEYPOINTS] * np.array([-1.0, 1.0])
        assert_same(measure(times_s, keypoints), measure(times_s, mirrored))

    def test_camera_on_the_other_side(self):
        times_s, keypoints = squat()
        assert_same(measure(times_s, keypoints), measure(times_s, keypoints * [-1.0, 1.0]))

    @settings(deadline=None)
    @given(fps=st.floats(24.0, 60.0), duration_s=st.floats(1.5, 4.0), uneven=st.floats(0.0, 0.3))
    def test_frame_rate_and_tempo(self, fps, duration_s, uneven):
        other = measure(*squat(fps, duration_s, uneven))
        # Frames end up to one period early: the movement is cut by as much.
        assert_same(measure(*squat()), other, factor=15.0)

    def test_confidence_of_all_keypoints(self):
        times_s, keypoints = squat()
        assert_same(measure(times_s, keypoints), measure(times_s, keypoints, confidence=0.3))


class TestContent:
    def test_squat(self):
        features = measure(*squat())
        signals = dict(zip(SIGNAL_NAMES, features.trajectory.T, strict=True))
        summary = dict(zip(SUMMARY_NAMES, features.summary, strict=True))
        assert signals["right_knee_deg"][0] > 150.0
        assert signals["right_knee_deg"][N_PHASES // 2] == pytest.approx(80.0, abs=3.0)
        assert signals["pelvis_up"][N_PHASES // 2] < -0.2
        assert summary["peak_ratio"] == pytest.approx(0.5, abs=0.02)
        assert 1.2 < summary["duration_s"] <= 2.0
        assert summary["facing"] > 0.6

    def test_mirror_swaps_sides_and_undoes_itself(self):
        features = measure(*squat())
        swapped = mirror(features)
        left, right = (SIGNAL_NAMES.index(f"{side}_knee_deg") for side in ("left", "right"))
        assert swapped.trajectory[:, left] == pytest.approx(features.trajectory[:, right])
        assert_same(mirror(swapped), features)


class TestMissingKeypoints:
    def test_short_gap_is_bridged(self):
        times_s, keypoints = squat()
        gap = keypoints.copy()
        gap[20:24, Coco.LEFT_KNEE] = np.nan
        features = measure(times_s, gap)
        assert np.isfinite(features.trajectory).all()
        assert_same(measure(times_s, keypoints), features, factor=20.0)

    def test_unseen_wrist_leaves_the_rest(self):
        times_s, keypoints = squat()
        keypoints[:, Coco.LEFT_WRIST] = np.nan
        known = np.isfinite(measure(times_s, keypoints).trajectory).all(axis=0)
        unknown = {name for name, is_known in zip(SIGNAL_NAMES, known, strict=True) if not is_known}
        assert unknown == {"left_elbow_deg", "left_wrist_forward", "left_wrist_up"}

    def test_nobody_seen(self):
        times_s, keypoints = squat()
        features = measure(times_s, keypoints, confidence=0.0)
        assert np.isnan(features.trajectory).all()

    @given(st.data())
    def test_any_keypoint_may_be_missing(self, data):
        times_s, keypoints = squat()
        missing = data.draw(st.sets(st.integers(0, 16)))
        keypoints[:, sorted(missing)] = np.nan
        features = measure(times_s, keypoints)
        assert features.trajectory.shape == (N_PHASES, len(SIGNAL_NAMES))

    def test_standing_still(self):
        times_s, _ = squat()
        keypoints = np.repeat(squat_keypoints()[None], len(times_s), axis=0)
        assert np.isfinite(measure(times_s, keypoints).trajectory).all()

    def test_too_short_or_backwards(self):
        times_s, keypoints = squat()
        with pytest.raises(ValueError, match="two frames"):
            measure(times_s[:1], keypoints[:1])
        with pytest.raises(ValueError, match="increasing"):
            measure(times_s[::-1], keypoints)


def test_the_head_is_known_without_the_nose():
    times_s, keypoints = squat()
    whole = measure(times_s, keypoints)
    keypoints[:, Coco.NOSE] = np.nan
    head = [SIGNAL_NAMES.index("head_forward"), SIGNAL_NAMES.index("head_up")]
    without = measure(times_s, keypoints).trajectory[:, head]
    assert np.isfinite(without).all()
    assert np.abs(without - whole.trajectory[:, head]).max() < 0.05
