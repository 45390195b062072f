"""One recorded source, end to end: frames -> poses -> people -> their movement.

A recording is analysed in one go, or from poses that were detected in chunks. What follows
detection is the same code, so both give the same.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pose_analyzer.chunk_aggregation import ChunkPoses
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.person_recorder import PersonRecorder
from pose_analyzer.ports import FrameSource, PoseDetector
from pose_analyzer.prefetching import Prefetcher
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer, detect_people
from pose_analyzer.types import (
    Frame,
    PersonAnalysis,
    PersonFrame,
    Pose,
    SourceInfo,
    VideoAnalysis,
)

OnFrame = Callable[[Frame, Sequence[PersonFrame]], None]
OnPeople = Callable[[int, Sequence[PersonFrame]], None]
"""Is told the frame's index, and everybody in it."""
OnForm = Callable[[FormUpdate], None]


def process_video(
    source: FrameSource,
    detector: PoseDetector,
    config: AnalysisConfig,
    on_frame: OnFrame | None = None,
    on_form: OnForm | None = None,
) -> VideoAnalysis:
    """Analyse a recording from its first to its last frame.

    Parameters
    ----------
    source
        The recording. Keypoints are in pixels of the size its `info` tells, even if its pictures
        are smaller.
    detector
        In video mode, fresh: detectors that track between frames must not have seen another one.
    config
        Exercises, sampling, region.
    on_frame
        Called with every analysed frame, in order, from this thread.
    on_form
        Called with what is said of each judged repetition, before `on_frame` of the frame in which
        counting was done with it; of the last ones after all frames. Only if `config.judge` is set.

    Raises
    ------
    UnreadableSourceError
        If the source finds that it holds no picture.
    """
    began = time.perf_counter()
    recording = _Recording(config, on_form)
    size_px = source.info.width_px, source.info.height_px
    detect_s = analyse_s = on_frame_s = 0.0
    with Prefetcher(source.frames(config.sample_fps)) as frames:
        for frame in frames:
            started = time.perf_counter()
            [poses] = detect_people(
                detector, [frame.image_bgr], [frame.time_s], config.roi, size_px
            )
            detected = time.perf_counter()
            people = recording.add(poses, frame.index, frame.time_s)
            analysed = time.perf_counter()
            if on_frame is not None:
                on_frame(frame, people)
            detect_s += detected - started
            analyse_s += analysed - detected
            on_frame_s += time.perf_counter() - analysed
    recording.finish()
    elapsed_s = time.perf_counter() - began
    stage_s = {
        "detect": detect_s,
        "analyse": analyse_s,
        "write": on_frame_s,
        "wait_for_frames": elapsed_s - detect_s - analyse_s - on_frame_s,
    }
    seen_by = _SeenBy(source.info, detector.name, detector.device, source.problems)
    return recording.analysis(seen_by, elapsed_s, stage_s)


def analyse_poses(
    chunks: ChunkPoses,
    config: AnalysisConfig,
    on_people: OnPeople | None = None,
    on_form: OnForm | None = None,
) -> VideoAnalysis:
    """Analyse a recording from the poses of its chunks: what `process_video` does after detection.

    With a detector that does not depend on where chunks begin, and the same sampling, region and
    scaling, the answer is that of `process_video`, times of computing aside.

    Parameters
    ----------
    chunks
        Merged poses of all chunks.
    config
        As for `process_video`.
    on_people
        Called with every frame, in order.
    on_form
        As for `process_video`, before `on_people`.

    Raises
    ------
    ValueError
        The poses were sampled, or looked for, otherwise than `config` says.
    """
    settings = chunks.settings
    if (settings.sample_fps, settings.roi) != (config.sample_fps, config.roi):
        raise ValueError(
            f"poses at {settings.sample_fps} frames/s in region {settings.roi} cannot be analysed "
            f"as {config.sample_fps} frames/s in region {config.roi}"
        )
    began = time.perf_counter()
    recording = _Recording(config, on_form)
    on_people_s = 0.0
    for frame in chunks.frames:
        people = recording.add(frame.poses, frame.frame_index, frame.time_s)
        if on_people is not None:
            analysed = time.perf_counter()
            on_people(frame.frame_index, people)
            on_people_s += time.perf_counter() - analysed
    recording.finish()
    elapsed_s = time.perf_counter() - began
    stage_s = {"analyse": elapsed_s - on_people_s, "write": on_people_s}
    seen_by = _SeenBy(chunks.source, settings.detector, chunks.devices, chunks.problems)
    return recording.analysis(seen_by, elapsed_s, stage_s)


@dataclass(frozen=True, slots=True)
class _SeenBy:
    """Where poses came from."""

    source: SourceInfo
    detector: str
    device: str
    problems: tuple[str, ...]


class _Recording:
    """Everything after detection. Frames must come in order."""

    def __init__(self, config: AnalysisConfig, on_form: OnForm | None) -> None:
        self._config = config
        self._on_form = on_form
        self._analyzer = StreamAnalyzer(None, config)
        self._recorders: dict[int, PersonRecorder] = {}
        self._n_frames = 0
        self._last_s = 0.0

    def add(self, poses: Sequence[Pose], frame_index: int, time_s: float) -> list[PersonFrame]:
        """Follow everybody one frame further."""
        people = self._analyzer.observe(poses, frame_index, time_s)
        for person in people:
            if person.track_id not in self._recorders:
                self._recorders[person.track_id] = PersonRecorder(self._analyzer.session)
            self._recorders[person.track_id].add(person, self._analyzer.state(person.track_id))
        self._tell(self._analyzer.new_forms)
        self._n_frames += 1
        self._last_s = time_s
        return people

    def finish(self) -> None:
        """Judge what has ended, as no more frames come."""
        self._tell(self._analyzer.finish())

    def analysis(
        self, seen_by: _SeenBy, elapsed_s: float, stage_s: dict[str, float]
    ) -> VideoAnalysis:
        """Everybody who was followed."""
        config = self._config
        people = self._people()
        problems = seen_by.problems
        if not self._analyzer.n_detections:
            problems = (*problems, "Nobody was found in any frame.")
        elif not people:
            problems = (*problems, "Nobody was seen for long enough to be followed.")
        return VideoAnalysis(
            source=seen_by.source,
            detector=seen_by.detector,
            device=seen_by.device,
            exercise_requested=config.exercise_requested,
            sample_fps=config.sample_fps,
            roi=config.roi,
            n_frames=self._n_frames,
            people=people,
            problems=problems,
            elapsed_s=elapsed_s,
            stage_s=stage_s,
        )

    def _tell(self, forms: Sequence[FormUpdate]) -> None:
        if self._on_form is not None:
            for form in forms:
                self._on_form(form)

    def _people(self) -> tuple[PersonAnalysis, ...]:
        """Everybody who stayed long enough: those who exercised first, then the most visible."""
        needed_s = min(self._config.min_track_s, self._last_s / 2.0)
        kept = {track: one for track, one in self._recorders.items() if one.span_s >= needed_s}
        people = [one.analysis(track) for track, one in kept.items()]
        return tuple(
            sorted(people, key=lambda one: (not one.repetitions, -kept[one.track_id].area_px2))
        )
