"""``pose-analyzer teach``: good repetitions on video become a reference to score with."""

from pathlib import Path
from typing import Annotated

import typer

from pose_analyzer.backends import create_detector
from pose_analyzer.cli.analysis import DEFAULT_SAMPLE_FPS
from pose_analyzer.cli.analyze import analysis_progress, parse_roi, result_console
from pose_analyzer.cli.progress import download_progress
from pose_analyzer.errors import InvalidReferenceError, OutputFailedError
from pose_analyzer.exercises import load_exercises, select_exercises
from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_references import FormReference, signals_for
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.reference_files import (
    check_name,
    load_references,
    save_reference,
    select_reference,
)
from pose_analyzer.repetition_tracks import tracks_of
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.video_processor import process_video
from shared_utils.settings import read_settings


def teach_exercise(  # noqa: PLR0913 - one parameter per option of the command
    videos: Annotated[list[Path], typer.Argument(help="Videos of good repetitions only.")],
    *,
    exercise: Annotated[str, typer.Option(help="Name of the exercise.")],
    name: Annotated[str, typer.Option(help="What the reference is to be called.")],
    for_everyone: Annotated[
        bool,
        typer.Option(
            "--for-everyone",
            help="Others are scored with it too, who are built otherwise: tolerances are wider.",
        ),
    ] = False,
    detector: Annotated[
        str, typer.Option(help="auto, mediapipe, yolo, a model's name or a .pt or .onnx file.")
    ] = "auto",
    roi: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Only this zone, in fractions of the image."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for it; default: POSE_TAUGHT_REFERENCES_DIR."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Turn good repetitions, one or more, into a reference that scores can be measured against."""
    settings = read_settings(Settings)
    check_name(name)
    chosen = select_exercises(load_exercises(settings.exercises_dir), exercise)
    if len(chosen) != 1:
        raise typer.BadParameter("name one exercise", param_hint="--exercise")
    config = AnalysisConfig(
        chosen,
        exercise,
        sample_fps=DEFAULT_SAMPLE_FPS,
        roi=None if roi is None else parse_roi(roi),
    )
    tracks = [
        track
        for video in videos
        for track in shown_repetitions(video, config, settings, detector, quiet=quiet)
    ]
    general = select_reference(load_references(settings.references_dir), exercise)
    spec = TeachingSpec(
        name=name,
        exercise=exercise,
        signals=signals_for(chosen[0].main_angles),
        provenance={
            "source": ", ".join(video.name for video in videos),
            "made_by": "pose-analyzer teach",
        },
        for_everyone=for_everyone,
    )
    try:
        reference = taught_reference(spec, tracks, general)
    except ValueError as error:
        raise InvalidReferenceError(", ".join(v.name for v in videos), str(error)) from error
    folder = out or settings.taught_references_dir
    try:
        path = save_reference(folder, reference)
    except OSError as error:
        raise OutputFailedError(str(folder), error.strerror or str(error)) from error
    if not quiet:
        _print_summary(reference, path)


def shown_repetitions(
    video: Path, config: AnalysisConfig, settings: Settings, detector: str, *, quiet: bool
) -> tuple[RepetitionTrack, ...]:
    """Repetitions of whoever exercises in a video.

    Raises
    ------
    InvalidReferenceError
        If nobody does a repetition of the exercise.
    """
    name = settings.detector if detector == "auto" else detector
    source = open_source(video)
    with download_progress(quiet=quiet) as downloads, analysis_progress(quiet=quiet) as bar:
        model = create_detector(name, settings, mode="video", progress=downloads)
        try:
            advance = bar(video.name)
            analysis = process_video(
                source, model, config, lambda frame, _: advance(frame, source.info)
            )
        finally:
            model.close()
    tracks = tracks_of(analysis.people[0]) if analysis.people else ()
    if not tracks:
        reason = f"no repetition of {config.exercise_requested} was counted in it"
        raise InvalidReferenceError(video.name, reason)
    return tracks


def _print_summary(reference: FormReference, path: Path) -> None:
    console = result_console()
    for pattern in reference.patterns:
        part = ", the way back alone" if pattern.returns_only else ""
        view = pattern.view.value.replace("_", " ")
        console.print(f"{pattern.n_repetitions} repetition(s), view: {view}{part}")
    console.print(str(path), soft_wrap=True, markup=False, highlight=False)
