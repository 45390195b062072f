"""Counted repetitions and recognised exercises against clips counted by eye.

Every clip is read and detected once through the product's own path; the poses are then analysed
twice, with the exercise named and with ``auto``. Whole picture, no option per clip.
"""

import argparse
import csv
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_analyzer.backends import create_detector
from pose_analyzer.exercises import AUTO, load_exercises, select_exercises
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import Pose, VideoAnalysis
from pose_analyzer.video_processor import process_video
from shared_utils.settings import read_settings


class Replay:
    """Hands out what a detector found in an earlier pass over the same frames."""

    def __init__(self, name: str, found: dict[float, list[Pose]]) -> None:
        self.name = name
        self.device = "recorded"
        self._found = found

    def detect(
        self, images_bgr: Sequence[np.ndarray], times_s: Sequence[float] | None = None
    ) -> list[list[Pose]]:
        assert times_s is not None
        assert len(images_bgr) == len(times_s)
        return [self._found[time_s] for time_s in times_s]

    def close(self) -> None:
        """Nothing to free."""


class Recorder(Replay):
    """Passes through to a detector and keeps what it finds."""

    def __init__(self, detector: PoseDetector) -> None:
        super().__init__(detector.name, {})
        self._detector = detector

    def detect(
        self, images_bgr: Sequence[np.ndarray], times_s: Sequence[float] | None = None
    ) -> list[list[Pose]]:
        poses = self._detector.detect(images_bgr, times_s)
        self._found.update(zip(times_s or (), poses, strict=True))
        return poses

    def replay(self) -> Replay:
        return Replay(self.name, self._found)


@dataclass(frozen=True)
class Row:
    file: str
    exercise: str
    wanted: int | None
    counted: int
    """With the exercise named, over all people; for clips without an exercise with auto."""
    recognised: str
    recognised_count: int

    @property
    def exact(self) -> bool:
        return self.wanted is None or self.wanted == self.counted


def total(analysis: VideoAnalysis) -> int:
    return sum(len(person.repetitions) for person in analysis.people)


def evaluate(clip: dict[str, str], folder: Path, detector_name: str, settings: Settings) -> Row:
    exercises = load_exercises(settings.exercises_dir)

    def config(name: str) -> AnalysisConfig:
        return AnalysisConfig(select_exercises(exercises, name), name)

    path = folder / clip["file"]
    detector = create_detector(detector_name, settings, mode="video")
    recorder = Recorder(detector)
    auto = process_video(open_source(path), recorder, config(AUTO))
    detector.close()
    named = auto
    if clip["exercise"] != "none":
        named = process_video(open_source(path), recorder.replay(), config(clip["exercise"]))
    first = auto.people[0] if auto.people else None
    return Row(
        file=clip["file"],
        exercise=clip["exercise"],
        wanted=int(clip["repetitions"]) if clip["repetitions"] else None,
        counted=total(named),
        recognised=(first.exercise if first else None) or "none",
        recognised_count=total(auto),
    )


def report(detector: str, rows: list[Row]) -> str:
    counted = [row for row in rows if row.wanted]
    none = [row for row in rows if row.exercise == "none"]
    lines = [
        f"## {detector}",
        "",
        f"- exact: {sum(row.exact for row in counted)} of {len(counted)}; off by more than one: "
        f"{sum(abs(row.counted - (row.wanted or 0)) > 1 for row in counted)}",
        f"- auto names the exercise: {sum(r.recognised == r.exercise for r in counted)} of "
        f"{len(counted)} (with clips that have no count: "
        f"{sum(r.recognised == r.exercise for r in rows if r.exercise != 'none')} of "
        f"{sum(r.exercise != 'none' for r in rows)})",
        f"- clips without an exercise: {sum(row.counted for row in none)} repetitions in "
        f"{len(none)} clips",
        "",
        "| clip | exercise | by eye | counted | auto |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        wanted = "?" if row.wanted is None else str(row.wanted)
        mark = "" if row.exact else " (!)"
        lines.append(
            f"| {row.file} | {row.exercise} | {wanted} | {row.counted}{mark} | "
            f"{row.recognised} {row.recognised_count} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/clips.csv")
    parser.add_argument(
        "--detectors", nargs="+", default=["yolo11n-pose", "mediapipe-lite", "mediapipe-full"]
    )
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    settings = read_settings(Settings)
    folder = arguments.data / "videos"
    with (folder / "clips.csv").open(encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    parts = [
        "# Repetitions against counts by eye",
        "",
        "Reproduce: `python benchmarks/repetition_counts.py --data $SHARED_DATA "
        "--report docs/reports/repetition_counts.md`.",
        "",
        f"Machine: {platform.machine()}, 2 CPU cores, no GPU. {len(clips)} clips of real people, "
        "up to 30 frames a second, the whole picture, the same exercise files for all. *counted* "
        "adds up everybody in the picture with the exercise named (clips without an exercise: "
        "with `auto`); *auto* is what is recognised without a name for the first person, and what "
        "is counted of everybody's own exercise.",
        "",
    ]
    for detector in arguments.detectors:
        rows = []
        for clip in clips:
            row = evaluate(clip, folder, detector, settings)
            print(detector, row, flush=True)
            rows.append(row)
        parts += [report(detector, rows), ""]
    text = "\n".join(parts)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
