"""One person, frame by frame: the step that every path calls."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.form_session import (
    PoseObservation,
    SessionConfig,
    initial_state,
    recognised,
    repetitions,
    step,
)
from pose_analyzer.keypoint_filters import KalmanFilter, OneEuroFilter
from pose_analyzer.skeletons import ANGLE_INDEX
from pose_analyzer.types import KeypointFlag, Phase, View

from .builders import (
    landmarks_of,
    pose_of,
    squat_exercise,
    squat_keypoints,
    squat_pose,
    squat_progress,
)

FPS = 30.0
SQUAT = squat_exercise().movement
CONFIG = SessionConfig((SQUAT,))


def squats(n, fps=FPS, **options):
    """Poses of somebody who stands, squats `n` times, stands."""
    times_s = np.arange(0.0, 1.0 + 2.0 * n, 1 / fps)
    return times_s, [squat_pose(squat_progress(t, n_repetitions=n), **options) for t in times_s]


def run(config, times_s, poses, state=None):
    state = initial_state(config) if state is None else state
    people = []
    for index, (time_s, pose) in enumerate(zip(times_s, poses, strict=True)):
        state, person = step(config, state, PoseObservation(7, index, float(time_s), pose))
        people.append(person)
    return state, people


def assert_same(one, other):
    for name in one.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        if name == "angles":
            assert_same(left, right)
        else:
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("solver", [KalmanFilter(), OneEuroFilter()], ids=["kalman", "one-euro"])
def test_squats_are_counted_and_measured(solver):
    config = SessionConfig((SQUAT,), solver)
    state, people = run(config, *squats(3))
    assert [r.number for r in repetitions(config, state)] == [1, 2, 3]
    for counted in repetitions(config, state):
        assert counted.turn_s == pytest.approx(counted.number * 2.0 - 0.5, abs=0.1)
        ranges = {r.angle: r for r in counted.ranges}
        assert ranges["left_knee"].min_deg == pytest.approx(80.0, abs=5.0)
        assert ranges["left_knee"].max_deg > 150.0
    last = people[-1]
    assert (last.track_id, last.frame_index) == (7, len(people) - 1)
    assert last.detected
    assert last.exercise == "squat"
    assert last.n_repetitions == 3
    assert last.phase is Phase.TOP
    assert last.progress == pytest.approx(0.0, abs=0.15)
    assert last.angles.values_deg[ANGLE_INDEX["left_knee"]] == pytest.approx(180.0, abs=10.0)
    assert last.view.label is View.SIDE
    assert last.angles_3d is None
    assert {p.phase for p in people} >= {Phase.TOP, Phase.ECCENTRIC, Phase.BOTTOM, Phase.CONCENTRIC}


def test_landmarks_give_angles_in_space():
    pose = replace(squat_pose(), landmarks=landmarks_of(squat_keypoints()))
    state, (person,) = run(CONFIG, [0.0], [pose])
    assert person.landmarks is pose.landmarks
    assert person.angles_3d is not None
    _, (bridged,) = run(CONFIG, [0.1], [None], state)
    assert bridged.landmarks is None
    assert bridged.angles_3d is None


def test_a_missing_pose_is_bridged_then_unknown():
    times_s = np.arange(60) / FPS
    poses = [squat_pose(0.2)] * 30 + [None] * 30
    _, people = run(CONFIG, times_s, poses)
    bridged, lost = people[33], people[-1]
    assert not bridged.detected
    assert (bridged.flags == KeypointFlag.BRIDGED).all()
    np.testing.assert_allclose(bridged.keypoints_px, squat_keypoints(0.2), atol=1.0)
    np.testing.assert_array_equal(bridged.box_px, poses[0].box_px)
    assert bridged.score == poses[0].score
    assert not lost.detected
    assert np.isnan(lost.keypoints_px).all()
    assert np.isnan(lost.angles.values_deg).all()
    assert np.isnan(lost.progress)
    assert lost.phase is Phase.UNKNOWN


def test_never_seen():
    state, people = run(CONFIG, [0.0, 0.1], [None, None])
    assert repetitions(CONFIG, state) == ()
    assert np.isnan(people[-1].keypoints_px).all()
    assert people[-1].view.label is View.UNKNOWN


def test_time_does_not_run_backwards():
    state, _ = run(CONFIG, [1.0], [squat_pose()])
    with pytest.raises(ValueError, match="time runs backwards"):
        run(CONFIG, [0.5], [squat_pose()], state)


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_a_split_recording_gives_the_same_bits(data):
    times_s, poses = squats(1, fps=15.0)
    poses = [None if i % 13 == 5 else pose for i, pose in enumerate(poses)]
    cut = data.draw(st.integers(0, len(poses)))
    whole_state, whole = run(CONFIG, times_s, poses)
    middle, first = run(CONFIG, times_s[:cut], poses[:cut])
    state, second = run(CONFIG, times_s[cut:], poses[cut:], copy.deepcopy(middle))
    second = [replace(p, frame_index=p.frame_index + cut) for p in second]
    for one, other in zip(first + second, whole, strict=True):
        assert_same(one, other)
    assert repetitions(CONFIG, state) == repetitions(CONFIG, whole_state)
    assert len(repetitions(CONFIG, state)) == 1


class TestCuts:
    """Half a repetition before a cut of the picture and half after it make none."""

    def poses(self, jump_px, gap_s=0.0):
        down_s, up_s = np.arange(0.0, 1.5, 1 / FPS), np.arange(1.5, 4.0, 1 / FPS)
        times_s = np.concatenate([down_s, up_s + gap_s])
        here = [squat_pose(squat_progress(t)) for t in down_s]
        there = [
            squat_pose(squat_progress(t, n_repetitions=1) if gap_s else 0.0, (200.0 + jump_px, 340))
            for t in up_s
        ]
        return times_s, here + there

    def test_a_leap_starts_over(self):
        state, people = run(CONFIG, *self.poses(jump_px=150.0))
        assert repetitions(CONFIG, state) == ()
        after = people[45]
        assert (after.flags == 0).all()
        np.testing.assert_array_equal(after.keypoints_px, squat_keypoints(0.0, (350.0, 340.0)))

    def test_a_leap_keeps_what_was_counted(self):
        times_s, before = squats(2)
        _, after = squats(1, ankle_px=(450.0, 340.0))
        both_s = np.arange(len(before) + len(after)) / FPS
        state, people = run(CONFIG, both_s, before + after)
        assert [r.number for r in repetitions(CONFIG, state)] == [1, 2, 3]
        assert people[len(times_s)].n_repetitions == 2

    def test_after_a_gap_somebody_may_be_elsewhere(self):
        state, _ = run(CONFIG, *self.poses(jump_px=150.0, gap_s=0.3))
        assert len(repetitions(CONFIG, state)) == 1

    def test_a_few_visible_joints_do_not_tell(self):
        times_s, poses = self.poses(jump_px=150.0)
        poses[45] = pose_of(poses[45].keypoints_px, confidences=0.2)
        _, people = run(CONFIG, times_s[:46], poses[:46])
        assert people[-1].detected


class TestRecognition:
    """Which of several movements it is."""

    deep = squat_exercise(name="deep", requires=[{"feature": "knee_deg", "max": 95}]).movement
    shallow = squat_exercise(name="shallow", requires=[{"feature": "knee_deg", "min": 95}]).movement

    def test_the_one_whose_conditions_hold(self):
        config = SessionConfig((self.shallow, self.deep))
        state, people = run(config, *squats(1))
        assert recognised(config, state) == 1
        assert people[-1].exercise == "deep"
        assert [r.exercise for r in repetitions(config, state)] == ["deep"]

    def test_nothing_yet(self):
        config = SessionConfig((self.shallow, self.deep))
        state, people = run(config, *squats(0))
        assert recognised(config, state) is None
        assert repetitions(config, state) == ()
        last = people[-1]
        assert (last.exercise, last.phase, last.n_repetitions) == (None, Phase.UNKNOWN, 0)
        assert np.isnan(last.progress)

    def test_some_need_more_repetitions(self):
        patient = replace(self.deep, recognise_after=2)
        config = SessionConfig((patient, self.shallow))
        assert recognised(config, run(config, *squats(1))[0]) is None
        assert recognised(config, run(config, *squats(2))[0]) == 0

    def test_most_repetitions_win_then_the_latest(self):
        twin = replace(self.deep, exercise="twin", min_s=0.5)
        config = SessionConfig((self.deep, twin))
        state, _ = run(config, *squats(2))
        assert recognised(config, state) == 1
        fewer = replace(
            state, counters=(state.counters[0], replace(state.counters[1], repetitions=()))
        )
        assert recognised(config, fewer) == 0
        later = replace(state.counters[0].repetitions[-1], end_s=99.0)
        latest = replace(state.counters[0], repetitions=(state.counters[0].repetitions[0], later))
        assert recognised(config, replace(state, counters=(latest, state.counters[1]))) == 0

    def test_a_single_movement_needs_no_recognition(self):
        config = SessionConfig((replace(self.deep, recognise_after=5),))
        state, people = run(config, *squats(1))
        assert recognised(config, state) == 0
        assert people[0].exercise == "deep"
        assert len(repetitions(config, state)) == 1
