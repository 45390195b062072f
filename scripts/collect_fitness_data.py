"""Turn a list of clips into references of good form and a table of what the clips show.

The list is a CSV file with the columns ``video`` (a path, relative to the list, or an address),
``exercise`` and ``form_quality`` (good, bad or empty). Every clip is analysed; those of good form
become one reference per exercise, for everyone. Written to the output folder:

- ``metadata.csv``: video_id, exercise_type, form_quality, keyframes. Keyframes are the moments of
  each repetition in seconds: start/turning point/end, repetitions apart by a space.
- ``references/EXERCISE.json``, to be used with POSE_REFERENCES_DIR.

Clips are watched where they are; those at addresses are fetched into ``clips``.
Mind their licences.

Run: ``python scripts/collect_fitness_data.py clips.csv --out collected``.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests

from pose_analyzer.cli.teach import shown_repetitions
from pose_analyzer.errors import PoseAnalyzerError
from pose_analyzer.exercises import Exercise, load_exercises, select_exercises
from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_references import signals_for
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.reference_files import save_reference
from pose_analyzer.settings import Settings
from pose_analyzer.stream_analyzer import AnalysisConfig
from shared_utils.settings import read_settings

COLUMNS: Final = ("video", "exercise", "form_quality")
QUALITIES: Final = ("good", "bad", "")
MAX_CLIP_BYTES: Final = 500_000_000
TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Clip:
    """One line of the list."""

    video: str
    exercise: str
    form_quality: str


@dataclass(frozen=True)
class Seen:
    """One clip and its repetitions."""

    video_id: str
    clip: Clip
    tracks: tuple[RepetitionTrack, ...]

    @property
    def keyframes(self) -> str:
        """Start, turning point and end of each repetition, in seconds."""
        repetitions = [track.repetition for track in self.tracks]
        return " ".join(f"{r.start_s:.2f}/{r.turn_s:.2f}/{r.end_s:.2f}" for r in repetitions)


def read_list(path: Path) -> list[Clip]:
    """Read the clips of a list.

    Raises
    ------
    ValueError
        If a column is missing or a quality unknown.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}")
        clips = [Clip(*(row[name].strip() for name in COLUMNS)) for row in reader]
    for clip in clips:
        if clip.form_quality not in QUALITIES:
            raise ValueError(f"{path}: form_quality of {clip.video} is neither good, bad nor empty")
    return clips


def local_path(video: str, beside: Path, clips_dir: Path) -> Path:
    """Where the clip is, fetched first if it is at an address.

    Raises
    ------
    requests.RequestException
        If it cannot be fetched.
    ValueError
        If it is too large.
    """
    address = urlsplit(video)
    if address.scheme not in ("http", "https"):
        return beside / video
    digest = hashlib.sha256(video.encode()).hexdigest()[:8]
    path = clips_dir / f"{digest}-{Path(address.path).name or 'clip'}"
    if path.exists():
        return path
    clips_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with requests.get(video, stream=True, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            n_bytes = 0
            with partial.open("wb") as file:
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    n_bytes += len(chunk)
                    if n_bytes > MAX_CLIP_BYTES:
                        raise ValueError(f"{video}: larger than {MAX_CLIP_BYTES} bytes")
                    file.write(chunk)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_references(seen: Sequence[Seen], exercises: dict[str, Exercise], folder: Path) -> None:
    """One reference for each exercise of which there are good repetitions."""
    for name in dict.fromkeys(one.clip.exercise for one in seen):
        good = [s for s in seen if s.clip.exercise == name and s.clip.form_quality == "good"]
        tracks = [track for one in good for track in one.tracks]
        if not tracks:
            continue
        spec = TeachingSpec(
            name=name,
            exercise=name,
            signals=signals_for(exercises[name].main_angles),
            provenance={
                "source": ", ".join(one.video_id for one in good),
                "made_by": "scripts/collect_fitness_data.py",
            },
            for_everyone=True,
        )
        print(save_reference(folder, taught_reference(spec, tracks)))


def write_metadata(seen: Sequence[Seen], path: Path) -> None:
    """Write the table of all clips."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "exercise_type", "form_quality", "keyframes"])
        for one in seen:
            writer.writerow([one.video_id, one.clip.exercise, one.clip.form_quality, one.keyframes])
    print(path)


def collect(list_path: Path, out: Path, detector: str) -> int:
    """Analyse all clips; the number of those that could not be used."""
    settings = read_settings(Settings)
    exercises = load_exercises(settings.exercises_dir)
    seen, n_failed = [], 0
    for clip in read_list(list_path):
        try:
            config = AnalysisConfig(select_exercises(exercises, clip.exercise), clip.exercise)
            path = local_path(clip.video, list_path.parent, out / "clips")
            tracks = shown_repetitions(path, config, settings, detector, quiet=True)
        except (PoseAnalyzerError, requests.RequestException, ValueError) as error:
            print(f"left out: {clip.video}: {error}", file=sys.stderr)
            n_failed += 1
            continue
        seen.append(Seen(path.stem, clip, tracks))
    out.mkdir(parents=True, exist_ok=True)
    write_metadata(seen, out / "metadata.csv")
    write_references(seen, exercises, out / "references")
    return n_failed


def main() -> None:
    """Exit code 1 if a clip could not be used, 2 if the list is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", type=Path)
    parser.add_argument("--out", type=Path, default=Path("collected"))
    parser.add_argument("--detector", default="auto")
    arguments = parser.parse_args()
    try:
        n_failed = collect(arguments.list, arguments.out, arguments.detector)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
