"""Whether a video analysed in chunks gives what one pass over it gives, bit for bit.

Joins clips of different exercises to one video, each at its own frame rate, again and again until
it is long enough. Analyses it in one pass, then in chunks of several lengths: chunks in random
order, each through its stored form, merged in random order; then compares all that was found.
"""

import argparse
import csv
import os
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from pose_analyzer.backends import ChunkDetector, create_chunk_detector
from pose_analyzer.chunk_aggregation import DetectionSettings, merge_chunks, missing_ranges
from pose_analyzer.chunk_detection import extract_pose_landmarks
from pose_analyzer.chunk_files import decode_chunk, encode_chunk
from pose_analyzer.exercises import AUTO, load_exercises, select_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.form_types import NO_CHOICE, FormUpdate
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_chunk, plan_video
from pose_analyzer.sources.video_chunks import VideoChunkSource
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import VideoAnalysis
from pose_analyzer.video_processor import analyse_poses, process_video
from shared_utils.settings import read_settings

TIME_BASE = Fraction(1, 90_000)
SAMPLE_FPS = 10.0
MAX_WIDTH_PX = 640


def encode_clips(clips: list[Path], path: Path, height_px: int) -> None:
    """One video of all clips, letterboxed to 16:9, with x264's usual B-frames."""
    width_px = height_px * 16 // 9 // 2 * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        start_s = 0.0
        for clip in clips:
            end_s = 0.0
            for frame in VideoFileSource(clip).frames():
                image = letterboxed(frame.image_bgr, width_px, height_px)
                image.pts = round((start_s + frame.time_s) / TIME_BASE)
                image.time_base = TIME_BASE
                container.mux(stream.encode(image))
                end_s = frame.time_s
            start_s += end_s + 0.1
        container.mux(stream.encode(None))


def letterboxed(image: np.ndarray, width_px: int, height_px: int) -> av.VideoFrame:
    ratio = min(width_px / image.shape[1], height_px / image.shape[0])
    scaled = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(
        int(image.shape[1] * ratio), int(image.shape[0] * ratio), "bgr24"
    )
    canvas = np.zeros((height_px, width_px, 3), np.uint8)
    top, left = (height_px - scaled.height) // 2, (width_px - scaled.width) // 2
    canvas[top : top + scaled.height, left : left + scaled.width] = scaled.to_ndarray()
    return av.VideoFrame.from_ndarray(canvas, format="bgr24")


def repeat(once: Path, path: Path, duration_s: float) -> None:
    """Copy the packets of a video until they last so long."""
    with av.open(str(path), "w") as written:
        copy, offset = None, 0
        while offset * TIME_BASE < duration_s:
            with av.open(str(once)) as read:
                stream = read.streams.video[0]
                assert stream.time_base == TIME_BASE
                copy = copy or written.add_stream_from_template(stream)
                for packet in read.demux(stream):
                    if packet.size and (offset + packet.pts) * TIME_BASE < duration_s:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = copy
                        written.mux(packet)
                # The next part begins to be decoded before it is shown.
                offset += stream.duration + round(0.2 / TIME_BASE)


def differences(one: object, other: object, name: str = "analysis") -> Iterator[str]:
    """Where two results differ in any bit, NaN being equal to itself; times of computing aside."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        equal = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    elif is_dataclass(one) and type(one) is type(other):
        names = {field.name for field in fields(one)} - {"elapsed_s", "stage_s"}
        for part in sorted(names):
            yield from differences(getattr(one, part), getattr(other, part), f"{name}.{part}")
        return
    elif isinstance(one, tuple | list) and isinstance(other, tuple | list):
        for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{name}[{index}]")
        equal = len(one) == len(other)
    else:
        equal = one == other or (one != one and other != other)  # noqa: PLR0124 - NaN
    if not equal:
        yield name


@dataclass(frozen=True)
class Run:
    name: str
    n_chunks: int
    decoded: str
    largest_bytes: int
    detect_s: float
    analyse_s: float
    different: tuple[str, ...]


class Comparison:
    """One video, one detector, analysed again and again."""

    def __init__(self, video: Path, detector: ChunkDetector, config: AnalysisConfig) -> None:
        self._video = video
        self._detector = detector
        self._config = config
        self._settings = DetectionSettings(detector.name, SAMPLE_FPS, MAX_WIDTH_PX)
        self.forms: list[FormUpdate] = []
        began = time.perf_counter()
        source = VideoFileSource(video, max_width_px=MAX_WIDTH_PX)
        self.whole = process_video(source, detector, config, on_form=self.forms.append)
        stage_s = self.whole.stage_s
        self.whole_run = Run(
            "one pass",
            1,
            str(source.info.n_frames),
            0,
            time.perf_counter() - began - stage_s["analyse"],
            stage_s["analyse"],
            (),
        )

    def in_chunks(self, chunk_s: float) -> Run:
        plan = plan_video(self._video, chunk_s, SAMPLE_FPS)
        assert plan.in_one_piece is None, plan.in_one_piece
        rng = random.Random(round(chunk_s))  # noqa: S311 - an order, not a secret
        stored, n_decoded = [], 0
        began = time.perf_counter()
        for chunk in rng.sample(plan.chunks, len(plan.chunks)):
            source = open_chunk(self._video, chunk, max_width_px=MAX_WIDTH_PX)
            assert isinstance(source, VideoChunkSource)
            found = extract_pose_landmarks(source, self._detector, chunk, self._settings)
            assert chunk.start_s <= found.frames[0].time_s < chunk.start_s + 1.0
            n_decoded += source.n_decoded
            stored.append(encode_chunk(found))
        detect_s = time.perf_counter() - began
        began = time.perf_counter()
        waiting = [decode_chunk(data) for data in stored]
        while len(waiting) > 1:
            a, b = (waiting.pop(rng.randrange(len(waiting))) for _ in range(2))
            waiting.append(merge_chunks(a, b))
        assert missing_ranges(waiting[0], plan.duration_s) == ()
        forms: list[FormUpdate] = []
        analysis = analyse_poses(waiting[0], self._config, on_form=forms.append)
        analyse_s = time.perf_counter() - began
        different = (
            *differences(analysis, self.whole),
            *differences(forms, self.forms, "forms"),
        )
        return Run(
            f"chunks of {chunk_s:g} s",
            len(plan.chunks),
            str(n_decoded),
            max(map(len, stored)),
            detect_s,
            analyse_s,
            different,
        )


def summary(analysis: VideoAnalysis, forms: list[FormUpdate]) -> str:
    counted: dict[str, int] = {}
    for person in analysis.people:
        for repetition in person.repetitions:
            counted[repetition.exercise] = counted.get(repetition.exercise, 0) + 1
    n_scored = sum(form.score is not None and form.score.total is not None for form in forms)
    return (
        f"{analysis.n_frames} frames, {sum(len(one.time_s) for one in analysis.people)} "
        f"person-frames of {len(analysis.people)} people, repetitions: "
        + ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))
        + f"; {len(forms)} judged, {n_scored} scored"
    )


def report(
    arguments: argparse.Namespace, video: Path, comparison: Comparison, runs: list[Run]
) -> str:
    lines = [
        "# Chunked equals whole",
        "",
        "Reproduce: `python benchmarks/chunked_equals_whole.py --data $SHARED_DATA --minutes "
        f"{arguments.minutes:g} --height {arguments.height} "
        "--report docs/reports/chunked_equals_whole.md`.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} CPU cores. A video of "
        f"{arguments.minutes:g} minutes, {arguments.height} lines, "
        f"{video.stat().st_size / 2**20:.0f} MiB: clips of different exercises at their own frame "
        f"rates, H.264 with B-frames. Detector {comparison.whole.detector}, {SAMPLE_FPS:g} "
        f"frames/s, at most {MAX_WIDTH_PX} pixels wide. Chunks in random order, stored as JSON, "
        "merged in random order. Compared are all frames, keypoints, angles, phases, repetitions, "
        "scores, faults and cues, every bit of them.",
        "",
        f"One pass found {summary(comparison.whole, comparison.forms)}.",
        "",
        "| | chunks | pictures decoded | largest chunk | detect | merge and analyse | different |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        size = f"{run.largest_bytes / 1e6:.2f} MB" if run.largest_bytes else ""
        different = "nothing" if not run.different else f"{len(run.different)} values"
        lines.append(
            f"| {run.name} | {run.n_chunks} | {run.decoded} | {size} | {run.detect_s:.1f} s | "
            f"{run.analyse_s:.1f} s | {'' if run is runs[0] else different} |"
        )
    lines += [
        "",
        "Pictures that neither the sampling nor another picture needs are passed over in chunks, "
        "not in one pass; that is why chunks may decode fewer. Times are of one worker and depend "
        "on what else the machine did.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/clips.csv")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--height", type=int, default=1080, help="lines of the video")
    parser.add_argument("--chunk-seconds", type=float, nargs="+", default=[7.0, 15.0, 30.0])
    parser.add_argument("--detector", default="mediapipe-lite")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    settings = read_settings(Settings)
    folder = arguments.data / "videos"
    with (folder / "clips.csv").open(encoding="utf-8") as file:
        clips = [folder / row["file"] for row in csv.DictReader(file) if row["exercise"] != "none"]
    exercises = select_exercises(load_exercises(settings.exercises_dir), AUTO)
    library = load_form_library(folders_of(settings))
    config = AnalysisConfig(
        exercises, sample_fps=SAMPLE_FPS, judge=library.judge_config(exercises, NO_CHOICE)
    )
    with TemporaryDirectory() as scratch:
        once, video = Path(scratch) / "once.mp4", Path(scratch) / "video.mp4"
        encode_clips(clips, once, arguments.height)
        repeat(once, video, arguments.minutes * 60.0)
        print("video made", flush=True)
        detector = create_chunk_detector(arguments.detector, settings)
        comparison = Comparison(video, detector, config)
        runs = [comparison.whole_run]
        print(runs[-1], summary(comparison.whole, comparison.forms), flush=True)
        for chunk_s in arguments.chunk_seconds:
            runs.append(comparison.in_chunks(chunk_s))
            print(runs[-1], flush=True)
        detector.close()
        text = report(arguments, video, comparison, runs)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    print(text)
    assert not any(run.different for run in runs)


if __name__ == "__main__":
    main()
