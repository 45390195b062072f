"""Faults are found where they are, on trusted evidence only; every rule has a source."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pose_analyzer.errors import InvalidFormFileError
from pose_analyzer.exercises import load_exercises
from pose_analyzer.fault_files import load_coaching, load_faults, rules_for
from pose_analyzer.fault_measures import MEASURES, Body
from pose_analyzer.form_faults import FaultRule, look_for_faults
from pose_analyzer.form_types import Reason
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import Coco
from pose_analyzer.types import View

from .form_tracks_of_squats import squat_track, track_with

FAULTS = load_faults(Settings().faults_dir)
RULES = rules_for(FAULTS, "squat")


def found(track):
    return {fault.name: fault for fault in look_for_faults(track, RULES).faults}


def from_the_front(knee_px):
    """Somebody seen from the front whose knees are `knee_px` from the middle at the bottom."""
    times_s = np.arange(0.0, 2.01, 1 / 30)
    progress = 0.5 - 0.5 * np.cos(np.pi * times_s)
    keypoints = np.zeros((len(times_s), 17, 2))
    for name, x_px, y_px in (("SHOULDER", 45, 100), ("HIP", 30, 220), ("ANKLE", 40, 400)):
        for side, sign in (("LEFT", 1), ("RIGHT", -1)):
            keypoints[:, Coco[f"{side}_{name}"]] = 300 + sign * x_px, y_px
    for side, sign in ((Coco.LEFT_KNEE, 1), (Coco.RIGHT_KNEE, -1)):
        keypoints[:, side, 0] = 300 + sign * (35 + progress * (knee_px - 35))
        keypoints[:, side, 1] = 310
    keypoints[:, [Coco.LEFT_HIP, Coco.RIGHT_HIP], 1] += 70 * progress[:, None]
    keypoints[:, : Coco.LEFT_HIP, 1] += 70 * progress[:, None]
    return replace(track_with(times_s, keypoints), view=View.FRONT, yaw_deg=10.0)


class TestSquats:
    def test_a_deep_one_is_deep(self):
        findings = look_for_faults(squat_track(), RULES)
        assert "insufficient_depth" in findings.absent

    def test_a_shallow_one_is_not(self):
        fault = found(squat_track(depth=0.5))["insufficient_depth"]
        assert fault.severity > 0.0
        assert fault.repetition == 1
        assert 0.7 < fault.at_s < 1.3

    def test_knees_that_cave_in_from_the_front(self):
        assert found(from_the_front(15.0))["knees_caving_in"].severity == 1.0
        assert "knees_caving_in" not in found(from_the_front(45.0))

    def test_a_heel_that_lifts(self):
        track = squat_track()
        keypoints = track.keypoints_px.copy()
        rise = 60.0 * np.sin(np.pi * track.times_s / track.times_s[-1])
        keypoints[:, Coco.LEFT_ANKLE, 1] -= rise
        assert "heels_lifting" in found(track_with(track.times_s, keypoints))
        assert "heels_lifting" not in found(track)

    def test_what_the_view_hides_is_no_fault(self):
        findings = look_for_faults(squat_track(depth=0.5), RULES)
        assert ("knees_caving_in", Reason.VIEW) in {
            (item.what, item.reason) for item in findings.cannot_judge
        }

    def test_what_is_not_trusted_is_no_fault(self):
        track = squat_track(depth=0.5, lean_px=80.0)
        hidden = replace(track, confidences=np.zeros_like(track.confidences))
        hidden = replace(hidden, angles_trusted=np.zeros_like(track.angles_trusted))
        findings = look_for_faults(hidden, RULES)
        assert not findings.faults
        assert not findings.absent
        assert {item.what for item in findings.cannot_judge} == {rule.fault for rule in RULES}


LUNGE = {"shank_deg": 10.0, "lean_deg": 5.0, "rear_knee_px": 25.0, "step_px": 170.0}


def lunge_track(front="left", view=View.SIDE, **changes):
    """A lunge to the right of the picture, or towards the camera, as described at its bottom."""
    shape = LUNGE | changes
    times_s = np.arange(0.0, 2.01, 1 / 30)
    progress = 0.5 - 0.5 * np.cos(np.pi * times_s)
    keypoints = np.full((len(times_s), 17, 2), np.nan)

    def up(angle_deg):
        angle = np.radians(angle_deg) * np.ones_like(times_s)
        return np.stack([np.sin(angle), -np.cos(angle)], axis=1)

    rear = {"left": "right", "right": "left"}[front]
    across_px = {"left": 15.0, "right": -15.0}
    places = {}
    ankle = np.array([400.0, 400.0]) + np.zeros((len(times_s), 2))
    knee = ankle + 100.0 * up(shape["shank_deg"] * progress)
    hip = knee + 100.0 * up(-80.0 * progress)
    places |= {(front, "ANKLE"): ankle, (front, "KNEE"): knee}
    places[rear, "ANKLE"] = ankle - [shape["step_px"], 0.0]
    places[rear, "KNEE"] = np.stack(
        [
            400.0 - 0.6 * shape["step_px"] * np.ones_like(times_s),
            300.0 + progress * (100.0 - shape["rear_knee_px"]),
        ],
        axis=1,
    )
    shoulder = hip + 130.0 * up(shape["lean_deg"] * progress)
    for side in (front, rear):
        places |= {(side, "HIP"): hip, (side, "SHOULDER"): shoulder}
        places[side, "EAR"] = shoulder + np.array([5.0, -40.0])
    for (side, name), points in places.items():
        aside = [across_px[side] if view is View.FRONT else 0.0, 0.0]
        keypoints[:, Coco[f"{side}_{name}".upper()]] = points + aside
    keypoints[:, Coco.NOSE] = shoulder + np.array([20.0, -40.0])
    track = track_with(times_s, keypoints)
    return replace(track, view=view, yaw_deg=85.0 if view is View.SIDE else 5.0)


class TestLunges:
    RULES = rules_for(FAULTS, "lunge")

    def found(self, track, amounts=None):
        findings = look_for_faults(track, self.RULES, amounts or {})
        return {fault.name: fault for fault in findings.faults}

    @pytest.mark.parametrize("front", ["left", "right"])
    def test_a_good_one(self, front):
        findings = look_for_faults(lunge_track(front), self.RULES)
        assert not findings.faults
        assert {"knees_past_toes", "leaning_forward", "insufficient_depth"} <= set(findings.absent)

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("knees_past_toes", {"shank_deg": 65.0}),
            ("leaning_forward", {"lean_deg": 40.0}),
            ("insufficient_depth", {"rear_knee_px": 90.0}),
        ],
    )
    def test_each_fault_alone(self, name, changes):
        assert set(self.found(lunge_track(**changes))) == {name}
        assert name not in self.found(lunge_track(view=View.THREE_QUARTER, **changes))

    @pytest.mark.parametrize("front", ["left", "right"])
    def test_a_knee_that_caves_in_from_the_front(self, front):
        inward = -50.0 if front == "left" else 50.0
        straight = lunge_track(front, View.FRONT, step_px=10.0)
        caving = lunge_track(front, View.FRONT, step_px=10.0, shank_deg=inward)
        aside = lunge_track(front, View.FRONT, step_px=200.0, shank_deg=inward)
        assert "knees_caving_in" not in self.found(straight)
        assert self.found(caving)["knees_caving_in"].side == front
        assert "knees_caving_in" not in self.found(aside)

    def test_steps_are_compared_with_those_of_the_other_side(self):
        first = look_for_faults(lunge_track("left"), self.RULES)
        assert ("uneven_steps", Reason.NO_REFERENCE) in {
            (item.what, item.reason) for item in first.cannot_judge
        }
        same_side = look_for_faults(lunge_track("left", step_px=90.0), self.RULES, first.amounts)
        assert not same_side.faults
        shorter = self.found(lunge_track("right", step_px=90.0), first.amounts)
        assert shorter["uneven_steps"].side == "right"
        even = look_for_faults(lunge_track("right", step_px=160.0), self.RULES, first.amounts)
        assert "uneven_steps" in even.absent


def hinge_track(neck_deg):
    """Lifting something: the trunk comes up from 60 degrees, the neck stays at `neck_deg` more."""
    times_s = np.arange(0.0, 1.51, 1 / 30)
    lean = np.radians(60.0 * (1.0 - times_s / times_s[-1]))
    keypoints = np.full((len(times_s), 17, 2), np.nan)
    hip, neck = np.array([300.0, 250.0]), lean + np.radians(neck_deg)
    shoulder = hip + 130.0 * np.stack([np.sin(lean), -np.cos(lean)], axis=1)
    ear = shoulder + 40.0 * np.stack([np.sin(neck), -np.cos(neck)], axis=1)
    for place, points in (("SHOULDER", shoulder), ("HIP", hip), ("EAR", ear)):
        for side in ("LEFT", "RIGHT"):
            keypoints[:, Coco[f"{side}_{place}"]] = points
    track = track_with(times_s, keypoints)
    return replace(track, repetition=replace(track.repetition, turn_s=0.0, eccentric_s=0.0))


@pytest.mark.parametrize(("neck_deg", "rounded"), [(-10.0, False), (10.0, False), (45.0, True)])
def test_a_head_that_hangs_shows_a_rounded_back(neck_deg, rounded):
    findings = look_for_faults(hinge_track(neck_deg), rules_for(FAULTS, "deadlift"))
    assert ("rounded_back" in {fault.name for fault in findings.faults}) is rounded


@pytest.mark.parametrize("facing", [1.0, -1.0])
@pytest.mark.parametrize("looking", [1.0, -1.0])
def test_bent_knees_tell_where_somebody_faces_wherever_they_look(facing, looking):
    keypoints = squat_track().keypoints_px.copy()
    keypoints[:, Coco.NOSE, 0] = keypoints[:, Coco.LEFT_EAR, 0] + looking * 30.0
    keypoints[..., 0] *= facing
    assert Body(track_with(squat_track().times_s, keypoints)).forward() == facing


@given(
    keypoints=arrays.arrays(
        np.float64, (5, 17, 2), elements=st.floats(allow_nan=True, allow_infinity=True)
    ),
    confidences=arrays.arrays(np.float64, (5, 17), elements=st.floats(0.0, 1.0)),
    view=st.sampled_from(View),
)
def test_any_keypoints_give_a_clear_result(keypoints, confidences, view):
    every_rule = [
        FaultRule("any", "body", measure, "all", "high", 1.0, 2.0, priority=1, versus=versus)
        for measure in MEASURES
        for versus in (None, "other_side")
    ]
    amounts = {measure: {"left": 1.0, "right": -1.0} for measure in MEASURES}
    track = track_with(np.arange(5) / 30.0, squat_track().keypoints_px[:5])
    track = replace(track, keypoints_px=keypoints, confidences=confidences, view=view)
    for fault in look_for_faults(track, every_rule, amounts).faults:
        assert 0.0 <= fault.severity <= 1.0


def test_one_frame_shows_nothing():
    track = squat_track()
    findings = look_for_faults(track_with(track.times_s[:1], track.keypoints_px[:1]), RULES)
    assert not findings.faults
    assert findings.cannot_judge


def test_every_rule_is_of_an_exercise_and_every_fault_is_spoken_of():
    exercises = load_exercises(Settings().exercises_dir)
    for fault in FAULTS.values():
        assert fault.source
        for rule in fault.rules:
            assert set(rule.exercises) <= set(exercises)
    texts = load_coaching(Settings().coaching_dir)
    assert {"en", "de"} <= set(texts)
    for spoken in texts.values():
        assert set(spoken.corrections) == set(FAULTS)
        assert set(spoken.praise) <= {*FAULTS, "mended"}
        assert "mended" in spoken.praise


@pytest.mark.parametrize(
    "text",
    [
        "name: x",
        "- 1",
        "name: x\ntitle: X\npriority: 5\nsource: a book of some kind\nrules:\n"
        "  - {exercises: [squat], joint: hip, measure: nothing, part: all, statistic: low,"
        " mild: 1, clear: 2}\n",
        "\x00",
    ],
)
def test_what_is_no_fault_file(tmp_path, text):
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(InvalidFormFileError, match=r"x\.yml"):
        load_faults(tmp_path)
