"""Which way of using MediaPipe suits videos that are analysed in chunks.

A chunk must be analysed without its predecessor. Images looked at one by one allow that, and so
does following people but forgetting them at fixed times. Both are compared with following people
through the whole clip: repetitions counted, keypoints against the larger model at 30 frames/s, CPU
time.
"""

import argparse
import csv
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from repetition_counts import Replay, total

from pose_analyzer.backends import create_chunk_detector, create_detector
from pose_analyzer.exercises import AUTO, load_exercises, select_exercises
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.sources.video_file import VideoFileSource
from pose_analyzer.stream_analyzer import AnalysisConfig, detect_people
from pose_analyzer.types import Pose
from pose_analyzer.video_chunking import RESTART_S
from pose_analyzer.video_processor import process_video
from shared_utils.settings import read_settings

SAMPLE_FPS = 10.0
REFERENCE_FPS = 30.0
MAX_WIDTH_PX = 640
VISIBLE = 0.5
WAYS = ("whole clip", f"forgetting every {RESTART_S:g} s", "image by image")

Found = dict[float, list[Pose]]


@dataclass
class Tally:
    cpu_s: float = 0.0
    n_frames: int = 0
    n_seen: int = 0
    n_exact: int = 0
    n_counted_clips: int = 0
    n_false: int = 0
    distances: list[float] = field(default_factory=list)
    """Median over a frame's visible keypoints, as a share of the person's height in the picture."""


def detector_for(way: str, model: str, settings: Settings) -> PoseDetector:
    if way == WAYS[1]:
        return create_chunk_detector(model, settings)
    return create_detector(model, settings, mode="image" if way == WAYS[2] else "video")


def detect(detector: PoseDetector, source: VideoFileSource, fps: float) -> tuple[Found, float]:
    """Poses by time, and CPU seconds of looking for them."""
    found: Found = {}
    cpu_s = 0.0
    size_px = source.info.width_px, source.info.height_px
    for frame in source.frames(fps):
        began = time.process_time()
        [found[frame.time_s]] = detect_people(
            detector, [frame.image_bgr], [frame.time_s], None, size_px
        )
        cpu_s += time.process_time() - began
    detector.close()
    return found, cpu_s


def distances(found: Found, reference: Found) -> Iterable[float]:
    for time_s, poses in found.items():
        others = reference.get(time_s)
        if not poses or not others:
            continue
        known = others[0].confidences > VISIBLE
        if known.sum() >= 4:
            height_px = np.ptp(others[0].keypoints_px[:, 1])
            apart_px = np.linalg.norm(poses[0].keypoints_px - others[0].keypoints_px, axis=1)
            yield float(np.median(apart_px[known]) / height_px)


def report(model: str, reference: str, tallies: dict[str, Tally], n_clips: int) -> str:
    lines = [
        "# MediaPipe in chunks",
        "",
        "Reproduce: `python benchmarks/mediapipe_modes.py --data $SHARED_DATA "
        "--report docs/reports/mediapipe_modes.md`.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} CPU cores. {n_clips} clips of real "
        f"people, {model} at {SAMPLE_FPS:g} frames/s and at most {MAX_WIDTH_PX} pixels wide. "
        "*exact*: clips whose repetitions are counted as by eye, with the exercise named. *false*: "
        "repetitions in clips without an exercise. *apart*: distance of keypoints from those of "
        f"{reference} at {REFERENCE_FPS:g} frames/s over the whole clip, median of a frame, as a "
        "share of the person's height in the picture. *CPU*: of all cores, beside other work.",
        "",
        "| | exact | false | seen | apart, median | 90% | 99% | CPU of a frame |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, tally in tallies.items():
        median, most, nearly_all = np.percentile(tally.distances, [50, 90, 99])
        lines.append(
            f"| {way} | {tally.n_exact} of {tally.n_counted_clips} | {tally.n_false} | "
            f"{tally.n_seen} of {tally.n_frames} | {median:.1%} | {most:.1%} | {nearly_all:.0%} | "
            f"{1000.0 * tally.cpu_s / tally.n_frames:.1f} ms |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/clips.csv")
    parser.add_argument("--model", default="mediapipe-lite")
    parser.add_argument("--reference", default="mediapipe-full")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    settings = read_settings(Settings)
    exercises = load_exercises(settings.exercises_dir)
    folder = arguments.data / "videos"
    with (folder / "clips.csv").open(encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    tallies = {way: Tally() for way in WAYS}
    for clip in clips:
        source = VideoFileSource(folder / clip["file"], max_width_px=MAX_WIDTH_PX)
        reference, _ = detect(create_detector(arguments.reference, settings), source, REFERENCE_FPS)
        for way, tally in tallies.items():
            detector = detector_for(way, arguments.model, settings)
            found, cpu_s = detect(detector, source, SAMPLE_FPS)
            name = AUTO if clip["exercise"] == "none" else clip["exercise"]
            config = AnalysisConfig(select_exercises(exercises, name), name, sample_fps=SAMPLE_FPS)
            # The poses are in pixels of the original; what is replayed must not be scaled again.
            original = VideoFileSource(folder / clip["file"])
            counted = total(process_video(original, Replay(detector.name, found), config))
            tally.cpu_s += cpu_s
            tally.n_frames += len(found)
            tally.n_seen += sum(map(bool, found.values()))
            tally.distances += distances(found, reference)
            if clip["exercise"] == "none":
                tally.n_false += counted
            elif clip["repetitions"]:
                tally.n_counted_clips += 1
                tally.n_exact += counted == int(clip["repetitions"])
            print(clip["file"], way, counted, clip["repetitions"], flush=True)
    text = report(arguments.model, arguments.reference, tallies, len(clips))
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
