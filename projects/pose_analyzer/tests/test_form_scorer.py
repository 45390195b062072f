"""What a score must not depend on, what it must show, and what it must bear."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pose_analyzer.form_measures import log_dimensionless_jerk
from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_scorer import score_repetition, score_set
from pose_analyzer.form_types import Component, Reason
from pose_analyzer.skeletons import MIRRORED_KEYPOINTS, Coco
from pose_analyzer.types import View

from .form_tracks_of_squats import LEGS, squat_track, track_with

REFERENCE = taught_reference(TeachingSpec("good", "squat", LEGS, {}), [squat_track()])
FAULTY = {"depth": 0.7, "lean_px": 25.0}
MAX_POINTS = 2.0


def points(track):
    total = score_repetition(track, REFERENCE).total
    assert total is not None
    return total


def moved(track, keypoints_px):
    return track_with(track.times_s, keypoints_px)


class TestInvariance:
    def test_the_fault_costs_some_points_but_not_all(self):
        assert 20.0 < points(squat_track(**FAULTY)) < 80.0

    @given(
        scale=st.floats(0.5, 2.0),
        right_px=st.floats(-2000, 2000),
        down_px=st.floats(-2000, 2000),
        roll_deg=st.floats(-180, 180),
    )
    def test_height_place_and_roll(self, scale, right_px, down_px, roll_deg):
        track = squat_track(**FAULTY)
        cosine, sine = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
        turned = track.keypoints_px @ np.array([[cosine, sine], [-sine, cosine]])
        shown = moved(track, scale * turned + np.array([right_px, down_px]))
        assert points(shown) == pytest.approx(points(track), abs=MAX_POINTS)

    @pytest.mark.parametrize("other_leg", [False, True])
    @pytest.mark.parametrize("other_side", [False, True])
    def test_mirror_side(self, other_leg, other_side):
        track = squat_track(**FAULTY)
        keypoints = track.keypoints_px[:, MIRRORED_KEYPOINTS] if other_leg else track.keypoints_px
        shown = moved(track, keypoints * [-1.0 if other_side else 1.0, 1.0])
        assert points(shown) == pytest.approx(points(track), abs=MAX_POINTS)

    @given(fps=st.floats(24.0, 60.0), duration_s=st.floats(1.5, 2.8))
    def test_frame_rate_and_tempo(self, fps, duration_s):
        shown = squat_track(fps, duration_s, **FAULTY)
        assert points(shown) == pytest.approx(points(squat_track(**FAULTY)), abs=MAX_POINTS)


class TestReasons:
    def test_the_taught_repetition_is_worth_all_points(self):
        score = score_repetition(squat_track(), REFERENCE)
        assert score.total == pytest.approx(100.0)
        assert score.losses == ()

    @given(depth=st.floats(0.5, 1.2), lean_px=st.floats(-40.0, 40.0))
    def test_losses_add_up_to_what_is_missing(self, depth, lean_px):
        score = score_repetition(squat_track(depth=depth, lean_px=lean_px), REFERENCE)
        assert sum(loss.points for loss in score.losses) == pytest.approx(100.0 - score.total)
        assert all(0.0 <= value <= 100.0 for value in score.components.values() if value)
        costs = [loss.points for loss in score.losses]
        assert costs == sorted(costs, reverse=True)

    def test_a_lean_is_named_with_joint_degrees_phase_and_time(self):
        track = squat_track(lean_px=60.0, number=3)
        score = score_repetition(track, REFERENCE)
        (lean,) = (
            loss
            for loss in score.losses
            if (loss.joint, loss.component) == ("right_hip", Component.DEVIATION)
        )
        hips = track.keypoints_px[:, [Coco.LEFT_HIP, Coco.RIGHT_HIP]].mean(axis=1)
        assert lean.repetition == 3
        assert lean.unit == "deg"
        assert -40.0 < lean.amount < -10.0
        bottom_s = track.times_s[int(np.argmax(hips[:, 1]))]
        assert lean.at_s == pytest.approx(bottom_s, abs=0.3)
        assert lean.from_s <= lean.at_s <= lean.to_s

    def test_a_shallow_squat_lacks_range(self):
        score = score_repetition(squat_track(depth=0.5), REFERENCE)
        lacking = {loss.joint for loss in score.losses if loss.component is Component.RANGE}
        assert {"right_knee", "right_hip", "pelvis_height"} <= lacking

    def test_one_leg_less_bent_is_named_as_the_persons_own(self):
        track = squat_track()
        keypoints = track.keypoints_px.copy()
        keypoints[:, Coco.RIGHT_KNEE, 0] -= (
            40.0 * (track.progress > -1) * np.sin(np.pi * np.linspace(0.0, 1.0, len(keypoints)))
        )
        score = score_repetition(moved(track, keypoints), REFERENCE)
        assert score.losses[0].joint.startswith("right_knee")

    def test_half_the_tempo_costs(self):
        score = score_repetition(squat_track(duration_s=5.0), REFERENCE)
        assert score.components[Component.TEMPO] < 100.0
        assert {loss.text_key for loss in score.losses} == {"tempo.slower"}

    def test_a_jerk_is_less_smooth(self):
        times_s = np.linspace(0.0, 1.0, 50)
        smooth = 0.5 - 0.5 * np.cos(np.pi * times_s)[:, None]
        trembling = smooth + 0.01 * np.sin(60.0 * times_s)[:, None]
        one, other = (log_dimensionless_jerk(times_s, p) for p in (smooth, trembling))
        assert other < one
        assert log_dimensionless_jerk(3.0 * times_s, 7.0 * smooth) == pytest.approx(one)


class TestCannotJudge:
    def test_untrusted_angles_cost_nothing_and_are_listed(self):
        track = squat_track(**FAULTY)
        hidden = replace(track, angles_trusted=np.zeros_like(track.angles_trusted))
        score = score_repetition(hidden, REFERENCE)
        assert {"left_knee", "right_hip", "trunk_inclination"} <= {
            item.what for item in score.cannot_judge
        }
        assert not {loss.joint for loss in score.losses} & {
            "left_knee",
            "right_knee",
            "left_hip",
            "right_hip",
            "trunk_inclination",
        }

    def test_an_unsure_leg_costs_nothing(self):
        track = squat_track()
        keypoints, confidences = track.keypoints_px.copy(), track.confidences.copy()
        keypoints[:, Coco.LEFT_ANKLE] += 80.0
        confidences[:, Coco.LEFT_ANKLE] = 0.2
        score = score_repetition(track_with(track.times_s, keypoints, confidences), REFERENCE)
        assert not any(loss.joint.startswith("left_ankle") for loss in score.losses)

    def test_no_reference_or_another_view(self):
        front = replace(squat_track(), view=View.FRONT, yaw_deg=10.0)
        for score in (
            score_repetition(squat_track(), None),
            score_repetition(front, REFERENCE),
        ):
            assert score.total is None
            assert {item.reason for item in score.cannot_judge} == {Reason.NO_REFERENCE}


class TestSet:
    def test_means_and_all_losses(self):
        scores = [score_repetition(squat_track(number=n, **FAULTY), REFERENCE) for n in (1, 2)]
        good = score_repetition(squat_track(number=3), REFERENCE)
        whole = score_set([*scores, good])
        assert whole.total == pytest.approx(np.mean([s.total for s in (*scores, good)]))
        assert sum(loss.points for loss in whole.losses) == pytest.approx(100.0 - whole.total)
        assert {loss.repetition for loss in whole.losses} == {1, 2}

    def test_what_could_not_be_scored_does_not_count(self):
        unseen = score_repetition(squat_track(), None)
        good = score_repetition(squat_track(), REFERENCE)
        assert score_set([unseen, good]).total == good.total
        assert score_set([unseen]).total is None
        assert score_set([]).total is None


class TestBadInput:
    @given(
        values=arrays.arrays(
            np.float64,
            (12, 17, 2),
            elements=st.one_of(st.just(np.nan), st.floats(-1e4, 1e4), st.just(np.inf)),
        ),
        confidence=st.floats(0.0, 1.0),
    )
    def test_any_keypoints_give_a_result(self, values, confidence):
        whole = squat_track(fps=5.5)
        track = replace(whole, keypoints_px=values, confidences=np.full((12, 17), confidence))
        score = score_repetition(track, REFERENCE)
        assert score.total is None or 0.0 <= score.total <= 100.0

    def test_one_frame_or_standing_still_in_time(self):
        track = squat_track()
        first = track_with(track.times_s[:1], track.keypoints_px[:1])
        still = track_with(np.zeros(3), track.keypoints_px[:3])
        for short in (first, still):
            assert score_repetition(short, REFERENCE).total is None

    def test_all_confidences_zero(self):
        track = squat_track()
        blind = replace(track, confidences=np.zeros_like(track.confidences))
        assert score_repetition(blind, REFERENCE).total is None
