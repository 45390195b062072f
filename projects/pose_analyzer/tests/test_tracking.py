"""Who is who: stable ids through motion, gaps and doubt."""

import numpy as np
import pytest

from pose_analyzer.tracking import PersonTracker, TrackingConfig

from .builders import squat_pose

FPS = 30.0


def at(x_px, **options):
    return squat_pose(ankle_px=(x_px, 340.0), **options)


def ids_of(tracked, poses):
    """Id of each pose, None where it has none; by identity, so that nothing may be mixed up."""
    found = {id(pose): track_id for track_id, pose in tracked.items()}
    return [found.get(id(pose)) for pose in poses]


def test_ids_start_at_one_in_the_first_frame_and_stay_whatever_the_order():
    tracker, rng = PersonTracker(), np.random.default_rng(0)
    for index in range(90):
        people = [at(150.0 + index), at(600.0 - index / 2), at(900.0)]
        order = rng.permutation(3) if index > 1 else [0, 1, 2]
        tracked = tracker.update([people[i] for i in order], index / FPS)
        assert ids_of(tracked, people) == [1, 2, 3]


def test_who_comes_later_is_named_at_the_second_sighting():
    tracker = PersonTracker()
    tracker.update([at(150.0)], 0.0)
    both = [at(150.0), at(600.0)]
    assert ids_of(tracker.update(both, 1 / FPS), both) == [1, None]
    assert ids_of(tracker.update(both, 2 / FPS), both) == [1, 2]


def test_nobody():
    tracker = PersonTracker()
    assert tracker.update([], 0.0) == {}
    tracker.update([at(200.0)], 1 / FPS)
    assert tracker.update([], 2 / FPS) == {}


@pytest.mark.parametrize(("absence_s", "expected"), [(1.0, 1), (2.5, 2)])
@pytest.mark.parametrize("fps", [15.0, 60.0])
def test_patience_is_counted_in_seconds(absence_s, expected, fps):
    tracker = PersonTracker(TrackingConfig(lost_s=1.5))
    for index in range(10):
        tracker.update([at(200.0)], index / fps)
    n_absent = round(absence_s * fps)
    for index in range(10, 10 + n_absent):
        assert tracker.update([], index / fps) == {}
    tracker.update([at(200.0)], (10 + n_absent) / fps)
    assert list(tracker.update([at(200.0)], (11 + n_absent) / fps)) == [expected]


def test_doubtful_people_continue_a_track_but_start_none():
    tracker = PersonTracker(TrackingConfig(new_track_score=0.4))
    for index in range(5):
        assert tracker.update([at(200.0, score=0.3)], index / FPS) == {}
    for index in range(5, 7):
        tracker.update([at(200.0, score=0.9)], index / FPS)
    assert list(tracker.update([at(200.0, score=0.3)], 7 / FPS)) == [1]


def test_somebody_elsewhere_is_somebody_else():
    tracker = PersonTracker()
    for index in range(5):
        tracker.update([at(200.0)], index / FPS)
    tracker.update([at(700.0)], 5 / FPS)
    assert list(tracker.update([at(700.0)], 6 / FPS)) == [2]
