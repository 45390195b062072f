"""What the features say of known postures, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.movement_features import (
    FEATURE_INDEX,
    FEATURE_NAMES,
    ScaleState,
    measure_movement,
)
from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, N_KEYPOINTS, Coco

from .builders import squat_keypoints, standing_keypoints

SURE = np.full(N_KEYPOINTS, 0.9)
ANGLES = [name for name in FEATURE_NAMES if name.endswith("_deg")]


def measure(keypoints, confidences=SURE):
    """Features of one frame by name."""
    _, values = measure_movement(ScaleState(), 0.0, keypoints, confidences)
    return dict(zip(FEATURE_NAMES, values.tolist(), strict=True))


def moved(keypoints, **joints):
    """A copy with some joints elsewhere, in trunk lengths of the standing person."""
    keypoints = keypoints.copy()
    for name, (right, up) in joints.items():
        keypoints[Coco[name.upper()]] += 0.35 * 300.0 * np.array([right, -up])
    return keypoints


def left_arm_up():
    return moved(standing_keypoints(), left_elbow=(0.0, 0.38 / 0.35), left_wrist=(0.0, 0.74 / 0.35))


class TestPostures:
    def test_standing(self):
        features = measure(standing_keypoints())
        # Trunk 0.35, hip to ankle 0.46, shoulder to wrist 0.37 of the figure's height.
        assert features["hip_height"] == pytest.approx(0.46 / 0.35, abs=0.01)
        assert features["shoulder_height"] == pytest.approx(0.81 / 0.35, abs=0.01)
        assert features["hand_rise"] == pytest.approx(-0.37 / 0.35, abs=0.01)
        assert features["lower_hand_rise"] == pytest.approx(features["hand_rise"])
        assert features["hand_height"] == pytest.approx(0.44 / 0.35, abs=0.01)
        assert features["ankle_spread"] == pytest.approx(0.2 / 0.35, abs=0.01)
        assert features["leg_split"] < 0.5
        assert features["trunk_lean_deg"] == pytest.approx(0.0, abs=1e-9)
        assert features["knee_deg"] > 175
        assert features["elbow_deg"] > 170

    def test_squatting(self):
        standing, squatting = (measure(squat_keypoints(progress)) for progress in (0.0, 1.0))
        assert squatting["hip_height"] < standing["hip_height"] - 0.5
        assert standing["knee_deg"] == pytest.approx(180.0, abs=1e-6)
        assert squatting["knee_deg"] == pytest.approx(80.0, abs=1e-6)
        assert squatting["hip_deg"] == pytest.approx(65.0, abs=1e-6)
        assert squatting["trunk_lean_deg"] == pytest.approx(40.0, abs=1e-6)
        assert squatting["hand_height"] > squatting["hip_height"]

    def test_one_raised_hand(self):
        features = measure(left_arm_up())
        assert features["lower_hand_rise"] == pytest.approx(-0.37 / 0.35, abs=0.01)
        assert features["hand_rise"] == pytest.approx(0.0, abs=0.01)

    def test_lying(self):
        standing = standing_keypoints()
        lying = (standing - standing[0]) @ np.array([[0.0, 1.0], [-1.0, 0.0]])
        assert measure(lying)["trunk_lean_deg"] == pytest.approx(90.0)

    @pytest.mark.parametrize(
        "legs",
        [
            {"left_ankle": (1.0, 0.0), "right_ankle": (-1.0, 0.0)},
            {"left_ankle": (-0.25, 0.0), "right_ankle": (0.25, 0.0)},
            {"left_knee": (0.0, 0.5)},
        ],
        ids=["far apart", "in line with the camera", "one knee low"],
    )
    def test_legs_that_stand_unequally_are_split(self, legs):
        assert measure(moved(standing_keypoints(), **legs))["leg_split"] > 0.8


@st.composite
def postures(draw):
    """A standing or squatting person, shaken, with any confidences."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    base = draw(st.sampled_from([standing_keypoints(), squat_keypoints(0.3), squat_keypoints(1.0)]))
    return base + rng.normal(0, 15.0, base.shape), rng.uniform(0.05, 1.0, N_KEYPOINTS)


@given(postures(), st.floats(0.05, 20.0), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_place_and_size_in_the_picture_do_not_matter(posture, scale, dx, dy):
    keypoints, confidences = posture
    elsewhere = measure(keypoints * scale + np.array([dx, dy]), confidences)
    assert elsewhere == pytest.approx(measure(keypoints, confidences), rel=1e-6, abs=1e-6)


@given(postures())
def test_a_mirror_does_not_matter(posture):
    keypoints, confidences = posture
    flipped = keypoints[MIRRORED_KEYPOINTS] * [-1.0, 1.0]
    mirrored = measure(flipped, confidences[MIRRORED_KEYPOINTS])
    assert mirrored == pytest.approx(measure(keypoints, confidences), rel=1e-9, abs=1e-9)


@given(postures(), st.lists(st.sampled_from(list(Coco)), unique=True))
def test_unknown_joints_make_nothing_but_nan(posture, missing):
    keypoints, confidences = posture
    keypoints[missing], confidences[missing] = np.nan, 0.0
    state, values = measure_movement(ScaleState(), 0.0, keypoints, confidences)
    assert not np.isinf(values).any()
    assert not math.isinf(state.trunk_px)


class TestUnknownJoints:
    def test_nobody(self):
        nobody = np.full((N_KEYPOINTS, 2), np.nan)
        assert all(math.isnan(value) for value in measure(nobody, np.zeros(N_KEYPOINTS)).values())

    def test_the_hidden_side_is_left_to_the_other(self):
        half = squat_keypoints(0.5)
        half[[Coco.LEFT_ELBOW, Coco.LEFT_WRIST, Coco.LEFT_KNEE, Coco.LEFT_ANKLE]] = np.nan
        features = measure(half)
        both = measure(squat_keypoints(0.5))
        for name in ("hip_height", "hand_rise", "lower_hand_rise", "knee_deg", "elbow_deg"):
            assert features[name] == pytest.approx(both[name], abs=1e-6)
        assert math.isnan(features["ankle_spread"])

    def test_a_badly_seen_side_counts_for_little(self):
        keypoints, confidences = left_arm_up(), SURE.copy()
        confidences[Coco.LEFT_WRIST] = 0.3
        features = measure(keypoints, confidences)
        assert features["hand_rise"] == pytest.approx(-0.37 / 0.35, abs=0.05)
        confidences[[Coco.LEFT_WRIST, Coco.RIGHT_WRIST]] = 0.9, 0.3
        assert measure(keypoints, confidences)["lower_hand_rise"] > 0

    def test_without_ankles_heights_are_unknown_but_angles_stay(self):
        keypoints = squat_keypoints(0.5)
        keypoints[[Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE]] = np.nan
        features = measure(keypoints)
        unknown = {name for name, value in features.items() if math.isnan(value)}
        assert unknown == {
            "hip_height",
            "shoulder_height",
            "hand_height",
            "ankle_spread",
            "knee_deg",
        }

    def test_all_points_in_one_place(self):
        features = measure(np.full((N_KEYPOINTS, 2), 50.0))
        assert not any(math.isinf(value) for value in features.values())
        assert math.isnan(features["hip_height"])


class TestScale:
    def follow(self, frames, fps=30.0):
        """Features and scale of (keypoints, n_frames) parts in a row."""
        state, time_s, values = ScaleState(), 0.0, None
        for keypoints, n_frames in frames:
            for _ in range(n_frames):
                time_s += 1 / fps
                state, values = measure_movement(state, time_s, keypoints, SURE)
        return state, values

    def test_bending_towards_the_camera_keeps_the_scale(self):
        standing = standing_keypoints()
        bent = standing.copy()
        upper = [*range(Coco.LEFT_ELBOW), Coco.LEFT_ELBOW, Coco.RIGHT_ELBOW]
        upper += [Coco.LEFT_WRIST, Coco.RIGHT_WRIST]
        bent[upper, 1] += 0.7 * 105.0
        before, _ = self.follow([(standing, 30)])
        after, _ = self.follow([(standing, 30), (bent, 60)])
        assert after.trunk_px == pytest.approx(before.trunk_px, rel=0.1)

    def test_it_grows_fast_and_shrinks_slowly(self):
        small, large = standing_keypoints(height_px=150.0), standing_keypoints(height_px=300.0)
        grown, _ = self.follow([(small, 30), (large, 30)])
        shrunk, _ = self.follow([(large, 30), (small, 30)])
        full, _ = self.follow([(large, 30)])
        assert grown.trunk_px > 0.95 * full.trunk_px
        assert shrunk.trunk_px > 0.8 * full.trunk_px

    def test_it_survives_a_gap(self):
        nobody = np.full((N_KEYPOINTS, 2), np.nan)
        before, expected = self.follow([(squat_keypoints(), 30)])
        after, values = self.follow([(squat_keypoints(), 30), (nobody, 30), (squat_keypoints(), 1)])
        assert after.trunk_px == pytest.approx(before.trunk_px)
        np.testing.assert_allclose(values, expected)

    def test_frame_rate_does_not_matter(self):
        small, large = standing_keypoints(height_px=150.0), standing_keypoints(height_px=300.0)
        slow, _ = self.follow([(small, 10), (large, 2)], fps=10.0)
        fast, _ = self.follow([(small, 60), (large, 12)], fps=60.0)
        assert fast.trunk_px == pytest.approx(slow.trunk_px)


def test_every_feature_has_its_place():
    assert [FEATURE_INDEX[name] for name in FEATURE_NAMES] == list(range(len(FEATURE_NAMES)))
    assert all(0 <= measure(standing_keypoints())[name] <= 180 for name in ANGLES)


def test_one_curled_arm_is_the_bent_one():
    """Curls with one arm at a time move the bent elbow, whichever arm it is."""
    standing = standing_keypoints()
    for side in ("LEFT", "RIGHT"):
        curled = standing.copy()
        curled[Coco[f"{side}_WRIST"]] = curled[Coco[f"{side}_SHOULDER"]] + (20.0, 10.0)
        features = measure(curled)
        assert features["bent_elbow_deg"] < 60
        assert features["elbow_deg"] > 90
    assert measure(standing)["bent_elbow_deg"] > 170
    hidden = SURE.copy()
    hidden[Coco.RIGHT_WRIST] = 0.1
    assert measure(curled, hidden)["bent_elbow_deg"] > 170
