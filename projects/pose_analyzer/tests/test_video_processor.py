"""Whole recordings: who is in them, what is counted, what goes wrong."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.form_session import repetitions
from pose_analyzer.regions import roi_pixels
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.types import Frame, KeypointFlag, Pose
from pose_analyzer.video_processor import process_video

from .builders import (
    FakeDetector,
    FakeSource,
    landmarks_of,
    squat_exercise,
    squat_keypoints,
    squat_pose,
    squat_progress,
)

FPS = 20.0
CONFIG = AnalysisConfig(exercises=(squat_exercise(),), exercise_requested="squat")


def times(duration_s: float, fps: float = FPS) -> np.ndarray:
    return np.arange(round(duration_s * fps)) / fps


def squatter(n: int, x_px: float = 200.0, begin_s: float = 0.5, **options):
    """What a detector sees of somebody who squats `n` times."""

    def people(time_s: float) -> list[Pose]:
        progress = squat_progress(time_s, begin_s, n)
        return [squat_pose(progress, (x_px, 340.0), **options)]

    return people


def together(*scripts):
    return lambda time_s: [pose for script in scripts for pose in script(time_s)]


def absent(script, *intervals):
    """The same script, nobody seen in the given (from, to) times."""

    def people(time_s: float) -> list[Pose]:
        gone = any(begin <= time_s < end for begin, end in intervals)
        return [] if gone else script(time_s)

    return people


def process(people, times_s, config=CONFIG, on_frame=None, **source):
    return process_video(FakeSource(times_s, **source), FakeDetector(people), config, on_frame)


def decoder_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decoder"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert decoder_threads() == []


class TestOnePerson:
    def test_squats_are_counted(self):
        analysis = process(squatter(2), times(5.5))
        (person,) = analysis.people
        assert (person.track_id, person.exercise) == (1, "squat")
        assert [r.number for r in person.repetitions] == [1, 2]
        assert [r.turn_s for r in person.repetitions] == pytest.approx([1.5, 3.5], abs=0.15)
        assert person.detected.all()
        assert person.angles_3d_deg is None
        assert analysis.n_frames == 110
        assert analysis.exercise_requested == "squat"
        assert (analysis.detector, analysis.device) == ("fake", "cpu")
        assert analysis.problems == ()
        assert sum(analysis.stage_s.values()) == pytest.approx(analysis.elapsed_s)
        assert all(seconds >= 0 for seconds in analysis.stage_s.values())

    def test_columns_belong_to_the_frames(self):
        (person,) = process(squatter(1), times(2.5)).people
        n = len(person.time_s)
        np.testing.assert_allclose(person.time_s, person.frame_index / FPS)
        assert (np.diff(person.frame_index) > 0).all()
        for name in person.__slots__:
            column = getattr(person, name)
            if isinstance(column, np.ndarray) or name == "phase":
                assert len(column) == n
        truth = np.array([squat_keypoints(squat_progress(t, 0.5, 1)) for t in person.time_s])
        assert np.abs(person.keypoints_px - truth).mean() < 8.0

    def test_the_detector_gets_each_frame_once_in_order(self):
        detector = FakeDetector(squatter(1))
        source = FakeSource(times(1.0))
        process_video(source, detector, replace(CONFIG, sample_fps=12.5))
        assert source.sample_fps == 12.5
        np.testing.assert_array_equal(detector.times_s, times(1.0))
        assert set(detector.shapes) == {(400, 640, 3)}

    def test_missed_frames_are_bridged(self):
        gaps = [(1.0 + k, 1.0 + k + 0.25) for k in range(4)]
        (person,) = process(absent(squatter(2), *gaps), times(5.5)).people
        assert len(person.repetitions) == 2
        missing = ~person.detected
        assert missing.sum() == 4 * 5
        assert (person.flags[missing] & KeypointFlag.BRIDGED).all()
        assert np.isfinite(person.keypoints_px).all()
        assert (person.confidences[missing] == 0).all()

    def test_a_longer_absence_is_a_hole_in_the_same_track(self):
        (person,) = process(absent(squatter(0), (2.0, 3.0)), times(5.0)).people
        hole = np.flatnonzero(np.diff(person.time_s) > 1.5 / FPS)
        assert len(hole) == 1
        assert person.time_s[hole[0]] == pytest.approx(2.0 + CONFIG.bridge_s, abs=0.11)
        assert person.time_s[hole[0] + 1] == pytest.approx(3.0, abs=1e-6)
        assert not person.detected[hole[0]]

    def test_nobody_sees_a_repetition_in_a_cut(self):
        """Down in one place, up in another: neither a leap nor a new scene is half a squat."""
        for x_px in (330.0, 560.0):

            def cut(time_s, x_px=x_px):
                before = squatter(1)(time_s)
                return before if time_s < 1.5 else [squat_pose(0.0, (x_px, 340.0))]

            analysis = process(cut, times(4.0))
            assert all(person.repetitions == () for person in analysis.people)

    def test_landmarks_give_a_column_of_angles_in_space(self):
        def people(time_s):
            (pose,) = squatter(1)(time_s)
            return [replace(pose, landmarks=landmarks_of(pose.keypoints_px))]

        script = absent(people, (1.0, 1.2))
        (person,) = process(script, times(2.0)).people
        assert person.angles_3d_deg is not None
        known = np.isfinite(person.angles_3d_deg).any(axis=1)
        np.testing.assert_array_equal(known, person.detected)


class TestSeveralPeople:
    def test_two_people_keep_their_ids_and_counts(self):
        left, right = squatter(3, 150.0), squatter(1, 480.0, begin_s=1.1)

        def people(time_s):
            both = left(time_s) + right(time_s)
            return both[::-1] if round(time_s * FPS) % 2 else both

        analysis = process(people, times(7.0))
        by_place = sorted(analysis.people, key=lambda person: person.box_px[:, 0].mean())
        assert len(by_place) == 2
        assert [len(person.repetitions) for person in by_place] == [3, 1]
        for person in by_place:
            assert np.abs(np.diff(person.keypoints_px[:, 15, 0])).max() < 20.0

    def test_one_is_hidden_for_a_while(self):
        script = together(squatter(2, 150.0), absent(squatter(0, 480.0), (1.5, 2.5)))
        analysis = process(script, times(5.5))
        assert sorted(person.track_id for person in analysis.people) == [1, 2]

    def test_who_exercises_comes_first_then_who_is_largest(self):
        script = together(
            squatter(0, 120.0, height_px=330.0),
            squatter(0, 320.0, height_px=120.0),
            squatter(1, 500.0, height_px=200.0),
        )
        analysis = process(script, times(3.5))
        assert len(analysis.people[0].repetitions) == 1
        heights = [np.ptp(person.box_px[:, 1::2], axis=1).max() for person in analysis.people]
        assert heights[1] > heights[2]

    def test_who_passes_by_in_a_flash_is_left_out(self):
        flash = absent(squatter(0, 500.0), (0.0, 1.0), (1.2, 9.0))
        config = replace(CONFIG, bridge_s=0.0)
        analysis = process(together(squatter(0), flash), times(2.0), config)
        assert [person.track_id for person in analysis.people] == [1]
        short = process(squatter(0), times(0.2), config)
        assert len(short.people) == 1

    def test_nobody(self):
        analysis = process(lambda _: [], times(1.0), problems=("stream ends early",))
        assert analysis.people == ()
        assert analysis.n_frames == 20
        assert analysis.problems == ("stream ends early", "Nobody was found in any frame.")

    def test_no_frames(self):
        analysis = process(squatter(1), [])
        assert (analysis.n_frames, analysis.people) == (0, ())


class TestRegion:
    def test_pixels(self):
        assert roi_pixels((0.0, 0.0, 1.0, 1.0), 640, 400) == (0, 0, 640, 400)
        assert roi_pixels((0.25, 0.1, 0.5, 0.9), 640, 400) == (160, 40, 320, 360)
        assert roi_pixels((0.5, 0.5, 0.5001, 0.5001), 640, 400) == (320, 200, 322, 202)

    @pytest.mark.parametrize("roi", [(0.999, 0.999, 1.0, 1.0), (0.9999, 0.0, 1.0, 0.001)])
    def test_even_the_smallest_has_pixels(self, roi):
        x0, y0, x1, y1 = roi_pixels(roi, 640, 400)
        assert x1 - x0 >= 2
        assert y1 - y0 >= 2
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 400

    def test_coordinates_are_those_of_the_whole_image(self):
        def people(time_s):
            (pose,) = squatter(1, 150.0)(time_s)
            return [replace(pose, landmarks=landmarks_of(pose.keypoints_px))]

        shown = []
        detector = FakeDetector(people)
        config = replace(CONFIG, roi=(0.25, 0.05, 0.9, 1.0))
        analysis = process_video(
            FakeSource(times(2.5)), detector, config, lambda _, found: shown.extend(found)
        )
        assert set(detector.shapes) == {(380, 416, 3)}
        (inside,) = process(people, times(2.5)).people
        (person,) = analysis.people
        shift = np.array([160.0, 20.0])
        np.testing.assert_allclose(person.keypoints_px, inside.keypoints_px + shift, atol=1e-2)
        np.testing.assert_allclose(person.box_px, inside.box_px + np.tile(shift, 2), atol=1e-3)
        np.testing.assert_allclose(person.angles_deg, inside.angles_deg, atol=0.1)
        assert len(person.repetitions) == len(inside.repetitions) == 1
        (pose,) = people(shown[-1].time_s)
        landmarks = shown[-1].landmarks
        np.testing.assert_allclose(
            landmarks.image_px, pose.landmarks.image_px + np.append(shift, 0.0)
        )
        np.testing.assert_array_equal(landmarks.world_m, pose.landmarks.world_m)
        assert analysis.roi == config.roi


class TestStreaming:
    def test_frame_by_frame_equals_the_recording_bit_for_bit(self):
        script = together(absent(squatter(1), (1.0, 1.2)), squatter(1, 480.0, begin_s=0.8))
        batch = process(script, times(3.5))
        analyzer = StreamAnalyzer(FakeDetector(script), CONFIG)
        live = [analyzer.analyse(frame) for frame in FakeSource(times(3.5)).frames()]
        for person in batch.people:
            rows = [p for people in live for p in people if p.track_id == person.track_id]
            state = analyzer.state(person.track_id)
            assert person.repetitions == state.counters[0].repetitions
            assert person.repetitions[0].number == 1
            assert person.phase == tuple(row.phase for row in rows)
            for column, values in {
                "time_s": [row.time_s for row in rows],
                "frame_index": [row.frame_index for row in rows],
                "detected": [row.detected for row in rows],
                "flags": [row.flags for row in rows],
                "box_px": [row.box_px for row in rows],
                "keypoints_px": [row.keypoints_px for row in rows],
                "keypoints_sd_px": [row.keypoints_sd_px for row in rows],
                "confidences": [row.confidences for row in rows],
                "angles_deg": [row.angles.values_deg for row in rows],
                "angles_sd_deg": [row.angles.sd_deg for row in rows],
                "angles_trusted": [row.angles.trusted for row in rows],
                "yaw_deg": [row.view.yaw_deg for row in rows],
                "progress": [row.progress for row in rows],
            }.items():
                stored = getattr(person, column)
                np.testing.assert_array_equal(stored, np.array(values).astype(stored.dtype))

    def test_on_frame_sees_every_frame_in_order_in_the_callers_thread(self):
        seen, threads = [], set()

        def on_frame(frame, people):
            seen.append((frame.index, frame.time_s, [p.frame_index for p in people]))
            threads.add(threading.current_thread())

        process(squatter(1), times(1.0), on_frame=on_frame)
        assert [index for index, _, _ in seen] == list(range(20))
        assert all(people in ([], [index]) for index, _, people in seen)
        assert threads == {threading.current_thread()}


class TestFailures:
    def test_an_error_of_the_source_reaches_the_caller(self):
        error = OSError("the disk is gone")
        with pytest.raises(OSError, match="the disk is gone") as raised:
            process(squatter(1), times(1.0), error=error)
        assert raised.value is error
        assert decoder_threads() == []

    def test_an_error_of_the_detector_ends_the_decoder(self):
        def people(time_s):
            if time_s > 0.5:
                raise BackendFailedError("fake", "it broke")
            return squatter(1)(time_s)

        with pytest.raises(BackendFailedError):
            process(people, times(60.0))
        assert decoder_threads() == []

    def test_an_error_of_the_callback_ends_the_decoder(self):
        def on_frame(frame: Frame, _):
            if frame.index == 3:
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            process(squatter(1), times(60.0), on_frame=on_frame)
        assert decoder_threads() == []

    def test_a_source_that_is_left_early_is_closed(self):
        read, closed = [], threading.Event()

        class Source(FakeSource):
            def frames(self, sample_fps=None):
                try:
                    for frame in super().frames(sample_fps):
                        read.append(frame.index)
                        yield frame
                finally:
                    closed.set()

        def on_frame(*_):
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError):
            process_video(Source(times(60.0)), FakeDetector(squatter(1)), CONFIG, on_frame)
        assert closed.is_set()
        assert len(read) < 20


class TestForgetting:
    def test_who_left_is_forgotten_by_the_stream_but_not_by_the_recording(self):
        script = together(absent(squatter(1), (2.5, 60.0)), squatter(0, 480.0))
        analyzer = StreamAnalyzer(FakeDetector(script), CONFIG)
        for frame in FakeSource(times(9.0)).frames():
            last = analyzer.analyse(frame)
        assert [person.track_id for person in last] == [2]
        with pytest.raises(KeyError):
            analyzer.state(1)
        first = process(script, times(9.0)).people[0]
        assert first.track_id == 1
        assert len(first.repetitions) == 1

    def test_poses_may_come_from_elsewhere(self):
        script = squatter(1)
        analyzer = StreamAnalyzer(None, CONFIG)
        own = StreamAnalyzer(FakeDetector(script), CONFIG)
        for frame in FakeSource(times(3.0)).frames():
            handed = analyzer.observe(script(frame.time_s), frame.index, frame.time_s)
            seen = own.analyse(frame)
            assert [p.n_repetitions for p in handed] == [p.n_repetitions for p in seen]
        assert handed[0].n_repetitions == 1
        with pytest.raises(TypeError, match="observe"):
            analyzer.analyse(frame)

    def test_a_single_sighting_is_said_to_be_one(self):
        analysis = process(absent(squatter(0), (0.0, 1.0), (1.04, 9.0)), times(2.0))
        assert analysis.people == ()
        assert analysis.problems == ("Nobody was seen for long enough to be followed.",)

    def test_a_single_frame_shows_who_is_there(self):
        analysis = process(squatter(0), times(0.05))
        assert [len(person.time_s) for person in analysis.people] == [1]
        assert not analysis.people[0].angles_trusted.any()

    def test_a_stray_detection_is_not_bridged(self):
        script = absent(squatter(0), (0.5, 2.0), (2.04, 9.0))
        (person,) = process(script, times(4.0)).people
        gone = person.time_s > 1.0
        assert person.detected[gone].all()


@pytest.mark.parametrize("gap_s", [0.4, 1.0, 4.0, 60.0])
def test_people_are_known_again_after_frames_were_missing(gap_s: float) -> None:
    """A lost connection in the middle of a squat, when the body moves fastest."""
    analyzer = StreamAnalyzer(None, CONFIG)
    seen = squatter(4)
    ids = []
    for index, time_s in enumerate(times(9.0)):
        late_s = time_s if time_s < 4.2 else time_s + gap_s
        ids += [one.track_id for one in analyzer.observe(seen(time_s), index, late_s)]
    assert set(ids) == {1}
    assert len(repetitions(analyzer.session, analyzer.state(1))) >= 3
