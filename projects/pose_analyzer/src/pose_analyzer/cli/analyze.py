"""``pose-analyzer analyze``: one video, four result files."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pose_analyzer.cli.analysis import (
    DEFAULT_SAMPLE_FPS,
    AnalysisJob,
    AnalysisResult,
    OnProgress,
    run_analysis,
)
from pose_analyzer.cli.progress import download_progress
from pose_analyzer.form_scorer import score_set
from pose_analyzer.form_types import FormChoice, FormUpdate
from pose_analyzer.settings import Settings
from pose_analyzer.skeletons import ANGLE_INDEX
from pose_analyzer.types import Frame, PersonAnalysis, SourceInfo, VideoAnalysis
from shared_utils.settings import read_settings

_SHOWN_ANGLES: Final = ("knee", "hip", "elbow")


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """Read ``X0,Y0,X1,Y1``, fractions of the image.

    Raises
    ------
    typer.BadParameter
        If it is not four rising fractions.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter("give four numbers: X0,Y0,X1,Y1") from error
    if not (0.0 <= x0 < x1 <= 1.0 and 0.0 <= y0 < y1 <= 1.0):
        raise typer.BadParameter(
            "give fractions of the image, 0 to 1, left before right and top before bottom"
        )
    return x0, y0, x1, y1


def analyze_video(  # noqa: PLR0913 - one parameter per option of the command
    video: Annotated[Path, typer.Argument(help="The video file.")],
    *,
    exercise: Annotated[
        str, typer.Option(help="Name of the exercise; auto recognises which one it is.")
    ] = "auto",
    detector: Annotated[
        str, typer.Option(help="auto, mediapipe, yolo, a model's name or a .pt or .onnx file.")
    ] = "auto",
    roi: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Only this zone, in fractions of the image."),
    ] = None,
    sample_fps: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="Frames analysed per second; 0: all.")
    ] = DEFAULT_SAMPLE_FPS,
    people: Annotated[
        int | None, typer.Option(min=1, help="Find at most so many people at a time.")
    ] = None,
    smoothing: Annotated[
        str, typer.Option(help="Filter of the keypoints: kalman or one-euro.")
    ] = "kalman",
    reference: Annotated[
        str | None,
        typer.Option(help="What form is compared with; default: the exercise's general reference."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="In which the coach speaks: en, de.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the results; default: NAME-analysis."),
    ] = None,
    overlay: Annotated[bool, typer.Option(help="Write the overlay video.")] = True,
    speak: Annotated[
        bool,
        typer.Option(
            "--speak", help="Have the cues spoken: speech.wav, and sound of the overlay video."
        ),
    ] = False,
    voice: Annotated[
        str | None,
        typer.Option(help="Who speaks, such as en-us, de or en+f3; default: the language."),
    ] = None,
    photos: Annotated[bool, typer.Option(help="Show pictures of the video in the report.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Find the people, measure their joint angles, count their repetitions."""
    if voice is not None and not speak:
        raise typer.BadParameter("it is heard with --speak only", param_hint="--voice")
    settings = read_settings(Settings)
    spoken = language or settings.language
    job = AnalysisJob(
        video=video,
        out=out or Path(f"{video.stem}-analysis"),
        exercise=exercise,
        detector=settings.detector if detector == "auto" else detector,
        roi=parse_roi(roi) if roi is not None else None,
        sample_fps=sample_fps or None,
        n_people=people,
        smoothing=smoothing,
        overlay=overlay,
        photos=photos,
        form=FormChoice(reference, spoken),
        voice=(voice or spoken) if speak else None,
    )
    silent = quiet or as_json
    with download_progress(quiet=silent) as downloads, analysis_progress(quiet=silent) as bar:
        done = run_analysis(job, settings, bar(video.name), downloads)
    if as_json:
        print(json.dumps(summary_dict(done), indent=2))  # noqa: T201
    elif not quiet:
        _print_summary(done)


@contextmanager
def analysis_progress(*, quiet: bool = False) -> Iterator[Callable[[str], OnProgress]]:
    """Yield a maker of progress callbacks, each with a bar over the length of its video."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:

        def start(label: str) -> OnProgress:
            task = progress.add_task(label, total=None, speed="")
            n_frames = 0

            def advance(frame: Frame, info: SourceInfo) -> None:
                nonlocal n_frames
                n_frames += 1
                total = None if math.isnan(info.duration_s) else info.duration_s
                elapsed_s = progress.tasks[task].elapsed or math.inf
                progress.update(
                    task,
                    total=total,
                    completed=frame.time_s,
                    speed=f"{n_frames / elapsed_s:.0f} frames/s",
                )

            return advance

        yield start


def angle_range_deg(person: PersonAnalysis, joint: str) -> tuple[float, float] | None:
    """Smallest and largest trusted angle of a joint, either side; None if never trusted."""
    columns = [ANGLE_INDEX[f"{side}_{joint}"] for side in ("left", "right")]
    values = person.angles_deg[:, columns][person.angles_trusted[:, columns]]
    return (float(values.min()), float(values.max())) if values.size else None


def people_table(analysis: VideoAnalysis) -> Table:
    """One row per person."""
    table = Table("person", "seen", "view", "exercise", "reps", *_SHOWN_ANGLES)
    for column in table.columns:
        column.no_wrap = True
    for person in analysis.people:
        ranges = (angle_range_deg(person, joint) for joint in _SHOWN_ANGLES)
        table.add_row(
            str(person.track_id),
            f"{person.time_s[-1] - person.time_s[0]:.1f} s",
            person.view,
            person.exercise or "none",
            str(len(person.repetitions)),
            *(f"{r[0]:.0f}°–{r[1]:.0f}°" if r else "not visible" for r in ranges),
        )
    return table


def mean_score(forms: Iterable[FormUpdate], track_id: int) -> float | None:
    """Mean score of a person's repetitions; None if none could be scored."""
    return score_set([f.score for f in forms if f.track_id == track_id and f.score]).total


def summary_dict(done: AnalysisResult) -> dict[str, Any]:
    """What scripts want to know without opening a file."""
    analysis, files = done.analysis, done.files
    return {
        "source": analysis.source.name,
        "detector": analysis.detector,
        "frames": analysis.n_frames,
        "frames_per_second": round(analysis.n_frames / analysis.elapsed_s, 1),
        "people": [
            {
                "track_id": person.track_id,
                "exercise": person.exercise,
                "repetitions": len(person.repetitions),
                "score": mean_score(done.forms, person.track_id),
                "cues": [
                    form.cue.text
                    for form in done.forms
                    if form.track_id == person.track_id and form.cue is not None
                ],
            }
            for person in analysis.people
        ],
        "problems": list(analysis.problems),
        "files": {name: str(path) for name, path in asdict(files).items() if path is not None},
    }


def result_console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def _print_summary(done: AnalysisResult) -> None:
    analysis, files = done.analysis, done.files
    console = result_console()
    if analysis.people:
        console.print(people_table(analysis))
    for person in analysis.people:
        score = mean_score(done.forms, person.track_id)
        if score is not None:
            console.print(f"Person {person.track_id}: form {score:.0f} of 100")
    for problem in analysis.problems:
        console.print(f"Note: {problem}", markup=False)
    if files.speech is not None and not any(form.cue for form in done.forms):
        console.print("No cue was given: the spoken track is silent.")
    rate = analysis.n_frames / analysis.elapsed_s
    console.print(f"{analysis.n_frames} frames, {rate:.0f} frames/s, {analysis.detector}")
    for path in (files.report, files.overlay, files.speech, files.angles, files.analysis):
        if path is not None:
            console.print(str(path), soft_wrap=True, markup=False, highlight=False)
