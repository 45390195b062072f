"""Chunked equals whole: whatever is cut, in whatever order it comes back, every bit is the same."""

import math
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_analyzer.backends import MediaPipePoseDetector
from pose_analyzer.chunk_aggregation import (
    ChunkPoses,
    DetectionSettings,
    merge_all,
    merge_chunks,
)
from pose_analyzer.chunk_detection import extract_pose_landmarks
from pose_analyzer.chunk_files import decode_chunk, encode_chunk
from pose_analyzer.exercises import load_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.form_types import NO_CHOICE
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_chunk, plan_video
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import Frame, Pose
from pose_analyzer.video_chunking import ChunkSpec, PictureTable, create_chunk_specs
from pose_analyzer.video_processor import analyse_poses, process_video

from .builders import (
    FakeDetector,
    FakeSource,
    landmarks_of,
    pose_of,
    squat_exercise,
    squat_keypoints,
    squat_pose,
    squat_progress,
)
from .video_files import at_rate, write_video

FPS = 20.0
DURATION_S = 11.0
CONFIG = AnalysisConfig(exercises=(squat_exercise(),), exercise_requested="squat", sample_fps=10.0)
SETTINGS = DetectionSettings("fake", 10.0)


def same(one, other) -> bool:
    """Whether two values are equal in every bit, NaN included; times of computing aside."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        equal_nan = isinstance(one, np.ndarray) and one.dtype.kind == "f"
        return np.array_equal(one, other, equal_nan=equal_nan)
    if is_dataclass(one):
        names = {field.name for field in fields(one)} - {"elapsed_s", "stage_s"}
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in names
        )
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


class FakeChunks:
    """The frames of a `FakeSource` that a chunk asks for."""

    def __init__(self, chunk: ChunkSpec, source: FakeSource):
        self._chunk, self._source = chunk, source
        self.info, self.problems = source.info, ()

    def frames(self, sample_fps=None):
        wanted = self._chunk.pictures.frame_indices
        return (frame for frame in FakeSource.frames(self._source) if frame.index in wanted)


class Sampled(FakeSource):
    """A `FakeSource` that samples as a file does."""

    def frames(self, sample_fps=None):
        (chunk,) = create_chunk_specs(table(), math.inf, sample_fps)
        return FakeChunks(chunk, self).frames()


class Follower(FakeDetector):
    """Remembers the frames before, as far as a detector for chunks may."""

    def __init__(self, people):
        super().__init__(people)
        self.restart()

    def restart(self):
        self._stretch, self._n_seen = -1, 0

    def detect(self, images_bgr, times_s=None):
        found = super().detect(images_bgr, times_s)
        for time_s, poses in zip(times_s, found, strict=True):
            if math.floor(time_s / 5.0) != self._stretch:
                self._stretch, self._n_seen = math.floor(time_s / 5.0), 0
            self._n_seen += 1
            for pose in poses:
                pose.keypoints_px[:] += 0.01 * self._n_seen
        return found


def table() -> PictureTable:
    stamps = np.arange(round(DURATION_S * FPS), dtype=np.int64)
    return PictureTable(stamps, stamps[::13].copy(), Fraction(1, round(FPS)), FPS)


def source() -> Sampled:
    return Sampled(np.arange(round(DURATION_S * FPS)) / FPS)


def people(time_s: float) -> list[Pose]:
    """One squats, is missed for a while and has landmarks; one stands beside and comes late."""
    keypoints = squat_keypoints(squat_progress(time_s, 0.5, 5), (200.0, 340.0))
    found = [pose_of(keypoints, landmarks=landmarks_of(keypoints))]
    if 3.1 <= time_s < 3.35:
        found = []
    if time_s > 2.0:
        found.append(squat_pose(0.1 * math.sin(7.0 * time_s), (480.0, 340.0)))
    return found


def detected(chunk: ChunkSpec, detector: FakeDetector) -> ChunkPoses:
    poses = extract_pose_landmarks(FakeChunks(chunk, source()), detector, chunk, SETTINGS)
    return decode_chunk(encode_chunk(poses))


class TestCutsAndOrder:
    @settings(max_examples=15)
    @given(chunk_s=st.floats(0.6, 12.0), data=st.data())
    def test_split_is_no_split(self, chunk_s, data):
        chunks = create_chunk_specs(table(), chunk_s, 10.0)
        detector = Follower(people)
        waiting = [detected(chunk, detector) for chunk in data.draw(st.permutations(chunks))]
        while len(waiting) > 1:
            a = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            b = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            waiting.append(merge_chunks(a, b))

        (whole,) = create_chunk_specs(table(), math.inf, 10.0)
        found = [replace(frame, chunk=0) for frame in waiting[0].frames]
        assert same(found, list(detected(whole, Follower(people)).frames))

    def test_the_same_poses_give_the_same_analysis(self):
        expected = process_video(source(), Follower(people), CONFIG)
        detector = Follower(people)
        chunks = create_chunk_specs(table(), 2.3, 10.0)
        merged = merge_all(detected(chunk, detector) for chunk in reversed(chunks))

        analysis = analyse_poses(merged, CONFIG)

        assert same(analysis, expected)
        assert len(analysis.people) == 2
        assert analysis.people[0].angles_3d_deg is not None
        assert len(analysis.people[0].repetitions) == 5

    def test_score_and_cues_too(self):
        exercises = load_exercises(Settings().exercises_dir)
        library = load_form_library(folders_of(Settings()))
        config = replace(
            CONFIG,
            exercises=(exercises["squat"],),
            judge=library.judge_config((exercises["squat"],), NO_CHOICE),
        )
        forms, told = [], []
        expected = process_video(source(), FakeDetector(people), config, on_form=forms.append)
        detector = FakeDetector(people)
        merged = merge_all(
            detected(chunk, detector) for chunk in create_chunk_specs(table(), 1.3, 10.0)
        )
        analysis = analyse_poses(merged, config, on_form=told.append)
        assert same(analysis, expected)
        assert same(told, forms)
        assert any(form.score is not None for form in forms)

    def test_everybody_is_told_frame_by_frame(self):
        seen, told = [], []
        process_video(
            source(),
            FakeDetector(people),
            CONFIG,
            lambda frame, who: seen.append((frame.index, who)),
        )
        detector = FakeDetector(people)
        chunks = create_chunk_specs(table(), 4.0, 10.0)
        merged = merge_all(detected(chunk, detector) for chunk in chunks)
        analyse_poses(merged, CONFIG, lambda index, who: told.append((index, list(who))))
        assert same(told, seen)
        assert detector.n_restarts == len(chunks)


class TestOneChunk:
    def test_each_begins_at_its_own_time(self):
        for chunk in create_chunk_specs(table(), 3.0, 10.0):
            detector = FakeDetector(people)
            found = detected(chunk, detector)
            assert found.frames[0].time_s == pytest.approx(chunk.start_s, abs=0.1)
            assert found.frames[-1].time_s == pytest.approx(chunk.end_s, abs=0.11)
            # What it warms up with is not its own, nor the beginning of the video.
            assert detector.times_s[0] == 5.0 * math.floor(chunk.start_s / 5.0)

    def test_frames_that_are_missing_are_counted(self):
        chunk = create_chunk_specs(table(), 3.0, 10.0)[2]
        short = replace(
            chunk, pictures=replace(chunk.pictures, frame_indices=chunk.pictures.frame_indices[:-4])
        )
        poses = extract_pose_landmarks(
            FakeChunks(short, source()), FakeDetector(people), chunk, SETTINGS
        )
        assert poses.spans[0].n_lost == 4
        assert poses.problems == ("skipped: damaged frames (4)",)

    def test_a_video_in_one_piece(self):
        chunk = ChunkSpec(0, 0.0, DURATION_S, None, ("it is damaged",))
        poses = extract_pose_landmarks(source(), FakeDetector(people), chunk, SETTINGS)
        expected = process_video(source(), FakeDetector(people), CONFIG)
        analysis = analyse_poses(poses, CONFIG)
        assert same(replace(analysis, problems=()), expected)
        assert analysis.problems == ("it is damaged",)

    def test_another_detector_or_sampling_is_refused(self):
        chunk, *_ = create_chunk_specs(table(), 3.0, 10.0)
        other = DetectionSettings("another", 10.0)
        with pytest.raises(ValueError, match="another"):
            extract_pose_landmarks(source(), FakeDetector(people), chunk, other)
        poses = detected(chunk, FakeDetector(people))
        with pytest.raises(ValueError, match="analysed"):
            analyse_poses(poses, replace(CONFIG, sample_fps=5.0))

    def test_work_can_be_ended(self):
        def stop():
            raise InterruptedError

        chunk, *_ = create_chunk_specs(table(), 3.0, 10.0)
        with pytest.raises(InterruptedError):
            extract_pose_landmarks(
                FakeChunks(chunk, source()), FakeDetector(people), chunk, SETTINGS, stop
            )


class BrightnessDetector:
    """Finds somebody whose place tells how bright the picture is: which picture was looked at."""

    name, device = "brightness", "cpu"

    def detect(self, images_bgr, times_s=None):
        places = [np.array([image.mean(), image[::7, ::5].std()]) for image in images_bgr]
        return [[pose_of(squat_keypoints() + place)] for place in places]

    def restart(self):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("roi", [None, (0.25, 0.0, 1.0, 0.5)])
def test_workers_analyse_their_own_pictures_of_a_file(tmp_path: Path, roi) -> None:
    """Fails if a worker analyses the beginning again, or any other part than its own."""
    path = write_video(tmp_path / "clip.mp4", at_rate(29, 16), size=(320, 180))
    config = replace(CONFIG, roi=roi)
    source = VideoFileSource(path, max_width_px=100)
    expected = process_video(source, BrightnessDetector(), config)
    asked = DetectionSettings("brightness", 10.0, 100, roi)
    for chunk_s in (4.0, 5.3):
        plan = plan_video(path, chunk_s, 10.0)
        assert len(plan.chunks) > 2
        parts = [
            extract_pose_landmarks(
                open_chunk(path, chunk, max_width_px=100), BrightnessDetector(), chunk, asked
            )
            for chunk in plan.chunks
        ]
        for part, chunk in zip(parts, plan.chunks, strict=True):
            assert part.frames[0].time_s == pytest.approx(chunk.start_s, abs=0.05)
        firsts = [part.frames[0].poses[0].keypoints_px[0].tolist() for part in parts]
        assert len({tuple(first) for first in firsts}) == len(parts)
        assert same(analyse_poses(merge_all(reversed(parts)), config), expected)


@pytest.mark.shared_data
class TestMediaPipe:
    def test_what_came_before_a_restart_does_not_matter(self, shared_data: Path) -> None:
        model = shared_data / "models" / "pose_landmarker_lite.task"
        clip = VideoFileSource(shared_data / "videos" / "squat_air_34view_360p24.mp4")
        frames = [frame for frame in clip.frames(4.0) if 3.0 < frame.time_s < 7.0]
        detector = MediaPipePoseDetector(model, restarting=True)

        def detect(frames: list[Frame]) -> list[list[Pose]]:
            return [detector.detect([one.image_bgr], [one.time_s])[0] for one in frames]

        after = [frame for frame in frames if frame.time_s >= 5.0]
        whole = detect(frames)[-len(after) :]
        detector.restart()
        alone = detect(after)
        detector.restart()
        again = detect(after[:1])
        detector.restart()
        again += detect(after)[1:]
        detector.close()
        assert same(alone, whole)
        assert same(again, whole)

    def test_chunks_of_a_real_video_equal_the_whole(
        self, shared_data: Path, tmp_path: Path
    ) -> None:
        path = joined_clips(shared_data / "videos", tmp_path / "both.mp4")
        exercises = load_exercises(Settings().exercises_dir)
        config = AnalysisConfig(tuple(exercises.values()), sample_fps=10.0)
        detector = MediaPipePoseDetector(
            shared_data / "models" / "pose_landmarker_lite.task", restarting=True
        )
        expected = process_video(VideoFileSource(path, max_width_px=320), detector, config)
        asked = DetectionSettings(detector.name, 10.0, 320)
        plan = plan_video(path, 7.0, 10.0)
        stored = [
            encode_chunk(
                extract_pose_landmarks(
                    open_chunk(path, chunk, max_width_px=320, n_threads=1), detector, chunk, asked
                )
            )
            for chunk in reversed(plan.chunks)
        ]
        detector.close()

        analysis = analyse_poses(merge_all(map(decode_chunk, stored)), config)

        assert len(plan.chunks) == 3
        assert same(analysis, expected)
        counted = {
            repetition.exercise for person in analysis.people for repetition in person.repetitions
        }
        assert {"squat", "push_up"} <= counted


def joined_clips(folder: Path, path: Path) -> Path:
    """Two people one after the other, at their own frame rates, in one small video."""
    clips = [("squat_air_34view_360p24.mp4", 10.0), ("pushup_34view_reps_562p30.mp4", 10.0)]
    width, height, start_s, time_base = 480, 270, 0.0, Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for name, seconds in clips:
            for frame in VideoFileSource(folder / name, max_width_px=width).frames():
                if frame.time_s >= seconds:
                    break
                picture = np.zeros((height, width, 3), np.uint8)
                shown = frame.image_bgr[:height]
                picture[: shown.shape[0], : shown.shape[1]] = shown
                image = av.VideoFrame.from_ndarray(picture, format="bgr24")
                image.pts = round((start_s + frame.time_s) / time_base)
                image.time_base = time_base
                container.mux(stream.encode(image))
            start_s += seconds
        container.mux(stream.encode(None))
    return path
