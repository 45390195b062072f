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
from pose_analyzer.fault_measures import MEASURES
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


@given(
    keypoints=arrays.arrays(
        np.float64, (5, 17, 2), elements=st.floats(allow_nan=True, allow_infinity=True)
    ),
    confidences=arrays.arrays(np.float64, (5, 17), elements=st.floats(0.0, 1.0)),
    view=st.sampled_from(View),
)
def test_any_keypoints_give_a_clear_result(keypoints, confidences, view):
    every_rule = [
        FaultRule("any", "body", measure, "all", "high", mild=1.0, clear=2.0, priority=1)
        for measure in MEASURES
    ]
    track = track_with(np.arange(5) / 30.0, squat_track().keypoints_px[:5])
    track = replace(track, keypoints_px=keypoints, confidences=confidences, view=view)
    for fault in look_for_faults(track, every_rule).faults:
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
