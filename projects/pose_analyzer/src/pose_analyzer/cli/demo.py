"""``pose-analyzer demo``: the sample clips, analysed and checked."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from pose_analyzer.cli.analysis import AnalysisJob, ResultFiles, run_analysis
from pose_analyzer.cli.analyze import analysis_progress, angle_range_deg, result_console
from pose_analyzer.cli.progress import download_progress
from pose_analyzer.model_files import fetch_clip
from pose_analyzer.settings import Settings
from pose_analyzer.types import VideoAnalysis
from shared_utils.exits import ExitCode
from shared_utils.settings import read_settings

JUMPING_JACKS: Final = "jumping-jacks"
BALANCE: Final = tuple(f"balance-cam0{n}" for n in (1, 2, 3, 4))
# The person on the roof is small in the picture; a detector that looks for one person finds the
# one in this zone.
ROOF: Final = (0.25, 0.0, 0.52, 0.52)
_EXPECTED_JUMPING_JACKS: Final = 2


def run_demo(
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results.")] = Path(
        "out/demo"
    ),
    detector: Annotated[str, typer.Option(help="As for analyze.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Analyse the sample clips: two jumping jacks on a roof, one balance from four sides."""
    settings = read_settings(Settings)
    chosen = settings.detector if detector == "auto" else detector
    results: list[tuple[str, VideoAnalysis, ResultFiles]] = []
    with download_progress(quiet=quiet) as downloads, analysis_progress(quiet=quiet) as bar:
        for name in (JUMPING_JACKS, *BALANCE):
            job = AnalysisJob(
                video=fetch_clip(name, settings, downloads),
                out=out / name,
                detector=chosen,
                roi=ROOF if name == JUMPING_JACKS else None,
            )
            done = run_analysis(job, settings, bar(name), downloads)
            results.append((name, done.analysis, done.files))
    console = result_console()
    console.print(_table(results))
    for _, _, files in results:
        for path in (files.report, files.overlay, files.angles, files.analysis):
            console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    counted = max(
        (
            len(person.repetitions)
            for person in results[0][1].people
            if person.exercise == "jumping_jack"
        ),
        default=0,
    )
    if counted != _EXPECTED_JUMPING_JACKS:
        console.print(
            f"Expected {_EXPECTED_JUMPING_JACKS} repetitions in {JUMPING_JACKS}, counted {counted}."
        )
        raise typer.Exit(ExitCode.FAILED)


def _table(results: list[tuple[str, VideoAnalysis, ResultFiles]]) -> Table:
    table = Table("clip", "people", "exercise", "reps", "knee", "elbow", "frames/s")
    for column in table.columns:
        column.no_wrap = True
    for name, analysis, _ in results:
        first = analysis.people[0] if analysis.people else None
        ranges = [angle_range_deg(first, joint) if first else None for joint in ("knee", "elbow")]
        table.add_row(
            name,
            str(len(analysis.people)),
            (first.exercise if first else None) or "none",
            str(len(first.repetitions)) if first else "0",
            *(f"{r[0]:.0f}°–{r[1]:.0f}°" if r else "not visible" for r in ranges),
            f"{analysis.n_frames / analysis.elapsed_s:.0f}",
        )
    return table
