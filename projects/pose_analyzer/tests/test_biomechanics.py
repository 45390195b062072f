import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pose_analyzer.biomechanics import (
    anatomical_angles_2d,
    angle_sd_2d,
    angles_from_world,
    assess_angles,
    joint_angles_2d,
    joint_angles_3d,
    limb_extension,
    measure_angles,
)
from pose_analyzer.camera_view import initial_view_state
from pose_analyzer.skeletons import (
    ANGLE_INDEX,
    BLAZEPOSE_OF_COCO,
    MIRRORED_KEYPOINTS,
    N_LANDMARKS,
    Coco,
)
from pose_analyzer.types import BlazePoseLandmarks, CameraView, View

from .builders import squat_keypoints

UP_Z = np.array([0.0, 0.0, 1.0])
MIRRORED_ANGLES = np.array([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 10, 11])
JOINTS = slice(0, 8)  # without ankles, which COCO lacks, and without the inclinations

turns = st.floats(0.0, 2 * np.pi)
scales = st.floats(0.1, 10.0)
seeds = st.integers(0, 2**32 - 1)
# On a grid this small many limbs have no length and many angles are exactly straight or folded.
grid_people = arrays(np.float64, (17, 2), elements=st.integers(0, 3))


def person(seed, n_dimensions):
    return np.random.default_rng(seed).normal(0.0, 100.0, (17, n_dimensions))


@given(seeds, turns, scales, st.floats(-500.0, 500.0))
def test_joint_angles_ignore_rotation_scale_and_translation(seed, turn, scale, shift):
    points = person(seed, 2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = scale * points @ rotation.T + shift
    np.testing.assert_allclose(
        joint_angles_2d(moved)[JOINTS], joint_angles_2d(points)[JOINTS], atol=1e-4
    )


@given(seeds, turns, scales)
def test_3d_angles_ignore_turning_about_the_vertical_and_scale(seed, turn, scale):
    points = person(seed, 3)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    moved = scale * points @ rotation.T
    np.testing.assert_allclose(
        joint_angles_3d(moved, up=UP_Z), joint_angles_3d(points, up=UP_Z), atol=1e-4
    )


@given(grid_people)
def test_mirroring_swaps_left_and_right(points):
    mirrored = (points * [-1.0, 1.0])[MIRRORED_KEYPOINTS]
    np.testing.assert_array_equal(
        joint_angles_2d(mirrored), joint_angles_2d(points)[MIRRORED_ANGLES]
    )
    sd = np.arange(1.0, 18.0)
    np.testing.assert_allclose(
        angle_sd_2d(mirrored, sd[MIRRORED_KEYPOINTS]), angle_sd_2d(points, sd)[MIRRORED_ANGLES]
    )


@given(grid_people)
def test_a_flat_body_has_the_same_angles_in_the_image_and_in_space(points):
    in_space = np.concatenate([points, np.zeros((17, 1))], axis=1)
    feet = np.array([[3.0, 4.0], [700.0, 1.0]])
    feet_in_space = np.concatenate([feet, np.zeros((2, 1))], axis=1)
    np.testing.assert_allclose(
        joint_angles_3d(in_space, feet_in_space, up=np.array([0.0, -1.0, 0.0])),
        joint_angles_2d(points, feet),
        atol=1e-9,
    )


def test_batches_equal_single_frames():
    rng = np.random.default_rng(1)
    batch = rng.normal(size=(3, 4, 17, 2))
    angles = joint_angles_2d(batch)
    assert angles.shape == (3, 4, 12)
    np.testing.assert_array_equal(angles[2, 1], joint_angles_2d(batch[2, 1]))


def test_known_postures():
    standing = joint_angles_2d(squat_keypoints(0.0))
    assert standing[ANGLE_INDEX["left_knee"]] == pytest.approx(180.0)
    assert standing[ANGLE_INDEX["trunk_inclination"]] == pytest.approx(0.0, abs=1e-6)
    squat = joint_angles_2d(squat_keypoints(1.0))
    assert squat[ANGLE_INDEX["left_knee"]] == pytest.approx(80.0)
    assert squat[ANGLE_INDEX["trunk_inclination"]] == pytest.approx(40.0)
    upside_down = joint_angles_2d(-squat_keypoints(0.0))
    assert upside_down[ANGLE_INDEX["trunk_inclination"]] == pytest.approx(180.0)


def test_ankles_are_not_invented():
    keypoints = squat_keypoints(0.5)
    ankles = [ANGLE_INDEX["left_ankle"], ANGLE_INDEX["right_ankle"]]
    assert np.isnan(joint_angles_2d(keypoints)[ankles]).all()
    assert np.isfinite(joint_angles_2d(keypoints, keypoints[[15, 16]] + [30.0, 5.0])[ankles]).all()


def test_unknown_points_and_limbs_without_length_give_nan_only_where_they_matter():
    keypoints = squat_keypoints(0.5)
    keypoints[Coco.LEFT_KNEE] = np.nan
    keypoints[Coco.RIGHT_WRIST] = keypoints[Coco.RIGHT_ELBOW]
    sd = np.ones(17)
    expected = {"left_hip", "left_knee", "right_elbow", "left_ankle", "right_ankle"}
    for values in (joint_angles_2d(keypoints), angle_sd_2d(keypoints, sd)):
        assert {name for name, i in ANGLE_INDEX.items() if np.isnan(values[i])} == expected


def test_one_ear_stands_for_both():
    keypoints = squat_keypoints(0.5)
    keypoints[Coco.LEFT_EAR] = np.nan
    neck = ANGLE_INDEX["neck_inclination"]
    assert np.isfinite(joint_angles_2d(keypoints)[neck])
    assert np.isfinite(angle_sd_2d(keypoints, np.ones(17))[neck])
    keypoints[Coco.RIGHT_EAR] = np.nan
    assert np.isnan(joint_angles_2d(keypoints)[neck])


def test_propagated_sd_matches_monte_carlo():
    rng = np.random.default_rng(2)
    keypoints = squat_keypoints(0.6) + rng.normal(0.0, 8.0, (17, 2))
    sd_px = rng.uniform(0.3, 1.2, 17)
    noise = rng.normal(size=(40_000, 17, 2)) * sd_px[:, None]
    simulated = joint_angles_2d(keypoints + noise).std(axis=0)
    known = np.isfinite(simulated)
    np.testing.assert_allclose(angle_sd_2d(keypoints, sd_px)[known], simulated[known], rtol=0.04)


def test_anatomical_angles_fall_back_to_the_image_plane():
    keypoints = squat_keypoints(0.5)
    planar = joint_angles_2d(keypoints)
    np.testing.assert_allclose(anatomical_angles_2d(keypoints, np.nan, 80.0), planar, atol=1e-9)
    np.testing.assert_allclose(anatomical_angles_2d(keypoints, 300.0, np.nan), planar, atol=1e-9)
    np.testing.assert_allclose(anatomical_angles_2d(keypoints, 300.0, 0.0), planar, atol=1e-9)


def test_anatomical_angles_bend_straight_legs_a_little_and_bent_legs_hardly():
    knee = ANGLE_INDEX["left_knee"]
    straight = anatomical_angles_2d(squat_keypoints(0.0), 300.0, 90.0)[knee]
    assert 165.0 < straight < 180.0
    bent = squat_keypoints(1.0)
    assert abs(anatomical_angles_2d(bent, 300.0, 90.0)[knee] - joint_angles_2d(bent)[knee]) < 3.0


def follow(keypoints, n=5, sd_px=2.0, confidence=0.9):
    state = initial_view_state()
    for frame in range(n):
        state, angles, view = measure_angles(
            state, keypoints, np.full(17, sd_px), np.full(17, confidence), 0.1 * frame
        )
    return angles, view


def test_a_side_view_shows_the_legs():
    angles, view = follow(squat_keypoints(0.5))
    assert view.label is View.SIDE
    assert angles.trusted[[4, 5, 6, 7, 10]].all()
    assert not angles.trusted[[8, 9]].any()
    assert np.isnan(angles.sd_deg[[8, 9]]).all()


def test_a_front_view_does_not_show_the_legs():
    keypoints = squat_keypoints(0.0)
    keypoints[Coco.LEFT_SHOULDER :: 2, 0] += 25.0
    keypoints[Coco.RIGHT_SHOULDER :: 2, 0] -= 25.0
    angles, view = follow(keypoints)
    assert view.label is View.FRONT
    assert not angles.trusted[4:].any()


@pytest.mark.parametrize("change", [{"confidence": 0.2}, {"sd_px": 40.0}])
def test_uncertain_keypoints_are_not_trusted(change):
    angles, _ = follow(squat_keypoints(0.5), **change)
    assert not angles.trusted.any()


def test_nobody_in_sight():
    _, angles, view = measure_angles(
        initial_view_state(), np.full((17, 2), np.nan), np.full(17, np.nan), np.zeros(17), 0.0
    )
    assert view.label is View.UNKNOWN
    assert np.isnan(angles.values_deg).all()
    assert not angles.trusted.any()


def test_a_limb_that_points_at_the_camera_is_uncertain_and_not_trusted():
    view = CameraView(View.SIDE, 85.0, 5.0)
    values, spread = np.full(12, 170.0), np.full(12, 4.0)
    seen = assess_angles(values, spread, np.ones(17), np.ones(12), view)
    hidden = assess_angles(values, spread, np.ones(17), np.full(12, 0.2), view)
    assert seen.trusted.all()
    assert not hidden.trusted.any()
    assert (hidden.sd_deg > seen.sd_deg).all()


def test_an_elbow_that_looks_sharper_than_elbows_bend_is_off_by_what_it_lacks():
    view = CameraView(View.SIDE, 85.0, 5.0)
    elbow = ANGLE_INDEX["left_elbow"]

    def assessed(value_deg):
        values = np.full(12, value_deg)
        return assess_angles(values, np.full(12, 4.0), np.ones(17), np.ones(12), view)

    bent, too_sharp = assessed(45.0), assessed(5.0)
    assert bent.trusted[elbow]
    assert not too_sharp.trusted[elbow]
    assert 2 * too_sharp.sd_deg[elbow] > 40.0 - 5.0
    # Extended and bent arms in the image plane, as in push-ups, are as certain as before.
    assert assessed(170.0).trusted[elbow]
    assert assessed(85.0).sd_deg[elbow] == pytest.approx(bent.sd_deg[elbow])
    knee = ANGLE_INDEX["left_knee"]
    assert too_sharp.sd_deg[knee] == pytest.approx(bent.sd_deg[knee])


@pytest.mark.shared_data
def test_recorded_people(shared_data):
    """In short what benchmarks/angle_accuracy.py measures at length."""
    with np.load(shared_data / "datasets" / "ui_prmd" / "coco17_3d_50hz.npz") as recordings:
        errors, front_trusted = [], []
        for key in ("deep_squat/s02/r03/correct", "sit_to_stand/s08/r05/incorrect"):
            points_mm = recordings[key].astype(np.float64)[::5]
            in_space = joint_angles_3d(points_mm, up=UP_Z)
            assert np.nanmax(np.abs(in_space[:, :8] - by_arccos(points_mm))) < 1e-3
            side, _ = measure_all(seen_from(points_mm, 90.0))
            errors.append((side - in_space)[:, 4:8])
            front_trusted.append(measure_all(seen_from(points_mm, 0.0))[1][:, 4:8])
    assert np.sqrt(np.nanmean(np.square(np.concatenate(errors)))) < 5.0
    assert not np.concatenate(front_trusted).any()


def by_arccos(points):
    triplets = [(7, 5, 11), (8, 6, 12), (5, 7, 9), (6, 8, 10)]
    triplets += [(5, 11, 13), (6, 12, 14), (11, 13, 15), (12, 14, 16)]
    first = points[:, [a for a, _, _ in triplets]] - points[:, [b for _, b, _ in triplets]]
    second = points[:, [c for _, _, c in triplets]] - points[:, [b for _, b, _ in triplets]]
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.degrees(np.arccos((first * second).sum(axis=-1) / lengths))


def seen_from(points_mm, yaw_deg):
    """Perspective image from 3 m, 1 m above the floor."""
    left = np.nanmedian(points_mm[:, Coco.LEFT_HIP] - points_mm[:, Coco.RIGHT_HIP], axis=0)
    left = np.array([left[0], left[1], 0.0]) / np.hypot(left[0], left[1])
    yaw = np.radians(yaw_deg)
    towards = np.cos(yaw) * np.cross(left, UP_Z) + np.sin(yaw) * left
    camera = np.nanmedian(points_mm[:, Coco.LEFT_HIP], axis=0) + 3000.0 * towards
    camera[2] = 1000.0
    seen = (points_mm - camera) @ np.stack([np.cross(-towards, UP_Z), -UP_Z, -towards]).T
    return 1500.0 * seen[..., :2] / seen[..., 2:]


def measure_all(keypoints_px):
    state, values, trusted = initial_view_state(), [], []
    for frame, keypoints in enumerate(keypoints_px):
        state, angles, _ = measure_angles(
            state, keypoints, np.full(17, 5.0), np.full(17, 0.9), 0.1 * frame
        )
        values.append(angles.values_deg)
        trusted.append(angles.trusted)
    return np.array(values), np.array(trusted)


def test_limb_extension_is_one_in_the_image_plane_and_scales():
    keypoints = squat_keypoints(0.0)
    knee = ANGLE_INDEX["left_knee"]
    # The stick figure's shank is a quarter of its 300 px.
    assert limb_extension(keypoints, 75.0 / 0.246)[knee] == pytest.approx(1.0, abs=0.01)
    assert limb_extension(keypoints, 150.0 / 0.246)[knee] == pytest.approx(0.5, abs=0.01)


def world_landmarks(visibility=1.0):
    flat = np.concatenate([squat_keypoints(0.5) / 200.0, np.zeros((17, 1))], axis=1)
    world = np.zeros((N_LANDMARKS, 3))
    world[BLAZEPOSE_OF_COCO] = flat
    world[[31, 32]] = flat[[15, 16]] + [0.15, 0.03, 0.0]
    seen = np.full(N_LANDMARKS, visibility)
    return BlazePoseLandmarks(np.zeros((N_LANDMARKS, 3)), world, seen, seen)


def test_world_landmarks_give_all_angles_with_error_bars():
    angles = angles_from_world(world_landmarks())
    plane = joint_angles_2d(squat_keypoints(0.5))
    known = np.isfinite(plane)
    np.testing.assert_allclose(angles.values_deg[known], plane[known])
    assert np.isfinite(angles.values_deg).all()
    assert (angles.sd_deg > 0.0).all()
    assert angles.trusted[[4, 5, 6, 7]].all()


def test_hidden_world_landmarks_are_not_trusted():
    assert not angles_from_world(world_landmarks(visibility=0.1)).trusted.any()
