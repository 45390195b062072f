import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.camera_view import initial_view_state, update_view
from pose_analyzer.skeletons import Coco
from pose_analyzer.types import View

from .builders import HEIGHT_PX, squat_keypoints

SEEN, SD_PX = np.full(17, 0.9), np.full(17, 2.0)


def seen_from(yaw_deg, progress=0.0, lying=False):
    """The stick figure with a body's width, seen from `yaw_deg` by a distant camera."""
    side = squat_keypoints(progress)
    points = np.concatenate([side, np.zeros((17, 1))], axis=1)
    points[:, 0] -= points[:, 0].mean()
    stature = HEIGHT_PX / 4 / 0.2455
    half_widths = {Coco.LEFT_SHOULDER: 0.0825, Coco.LEFT_ELBOW: 0.09, Coco.LEFT_WRIST: 0.09}
    half_widths |= dict.fromkeys((Coco.LEFT_HIP, Coco.LEFT_KNEE, Coco.LEFT_ANKLE), 0.0575)
    for left, half in half_widths.items():
        points[left : left + 2, 0] = points[left : left + 2, 0].mean()
        points[left, 2], points[left + 1, 2] = half * stature, -half * stature
    if lying:
        points = points[:, [1, 0, 2]]
    # The camera turns about the axis the figure was drawn with as vertical.
    turn = np.radians(90.0 - yaw_deg)
    along = 1 if lying else 0
    image = points[:, :2].copy()
    image[:, along] = np.cos(turn) * points[:, along] + np.sin(turn) * points[:, 2]
    return image + 400.0


def view_of(keypoints, n=10):
    state = initial_view_state()
    for frame in range(n):
        state, view = update_view(state, keypoints, SD_PX, SEEN, 0.1 * frame)
    return view


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("progress", [0.0, 0.7])
@pytest.mark.parametrize("yaw_deg", [0.0, 20.0, 45.0, 70.0, 90.0])
def test_yaw_is_found_standing_squatting_and_lying(yaw_deg, progress, lying):
    view = view_of(seen_from(yaw_deg, progress, lying))
    assert view.yaw_deg == pytest.approx(yaw_deg, abs=20.0 if yaw_deg < 30.0 else 8.0)
    expected = View.FRONT if yaw_deg < 30.0 else View.SIDE if yaw_deg > 60.0 else View.THREE_QUARTER
    assert view.label is expected


@given(st.floats(0.2, 5.0), st.floats(-300.0, 300.0))
def test_distance_and_place_do_not_matter(scale, shift):
    keypoints = seen_from(45.0)
    state = initial_view_state()
    _, near = update_view(state, scale * keypoints + shift, scale * SD_PX, SEEN, 0.0)
    _, reference = update_view(state, keypoints, SD_PX, SEEN, 0.0)
    assert near.yaw_deg == pytest.approx(reference.yaw_deg, abs=1e-6)
    assert near.yaw_sd_deg == pytest.approx(reference.yaw_sd_deg, abs=1e-6)


def test_noise_around_the_side_is_not_taken_for_a_turn():
    rng = np.random.default_rng(3)
    state = initial_view_state()
    yaws = []
    for frame in range(120):
        noisy = seen_from(90.0) + rng.normal(0.0, 4.0, (17, 2))
        state, view = update_view(state, noisy, np.full(17, 4.0), SEEN, frame / 30.0)
        yaws.append(view.yaw_deg)
    assert min(yaws[30:]) > 75.0


def test_the_scale_survives_limbs_that_point_at_the_camera():
    state = initial_view_state()
    for frame in range(30):
        state, _ = update_view(state, seen_from(0.0), SD_PX, SEEN, frame / 30.0)
    before_px = state.stature_px
    squatting = seen_from(0.0, progress=1.0)
    for frame in range(30, 60):
        state, view = update_view(state, squatting, SD_PX, SEEN, frame / 30.0)
    assert state.stature_px == pytest.approx(before_px, rel=0.1)
    assert view.label is View.FRONT


def test_cutting_the_stream_changes_nothing():
    frames = [seen_from(yaw) for yaw in (80.0, 70.0, 60.0, 50.0)]
    state = initial_view_state()
    whole = []
    for index, keypoints in enumerate(frames):
        state, view = update_view(state, keypoints, SD_PX, SEEN, 0.1 * index)
        whole.append((state, view))
    resumed, _ = whole[1]
    for index in (2, 3):
        resumed, view = update_view(resumed, frames[index], SD_PX, SEEN, 0.1 * index)
        assert (resumed, view) == whole[index]


def test_the_view_is_unknown_until_a_body_is_seen_and_kept_while_it_is_hidden():
    nothing = np.full((17, 2), np.nan)
    state, view = update_view(initial_view_state(), nothing, np.full(17, np.nan), 0 * SEEN, 0.0)
    assert view.label is View.UNKNOWN
    assert math.isnan(view.yaw_deg)
    state, seen = update_view(state, seen_from(90.0), SD_PX, SEEN, 0.1)
    _, hidden = update_view(state, nothing, np.full(17, np.nan), 0 * SEEN, 0.2)
    assert hidden == seen
