"""From a video file to the files a coach opens; what ``analyze`` and ``demo`` have in common."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pose_analyzer.backends import create_detector
from pose_analyzer.errors import OutputFailedError, UnknownNameError
from pose_analyzer.exercises import AUTO, load_exercises, select_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.form_types import NO_CHOICE, FormChoice, FormUpdate
from pose_analyzer.keypoint_filters import FILTERS, KeypointFilter
from pose_analyzer.model_files import DownloadProgress
from pose_analyzer.regions import RegionOfInterest
from pose_analyzer.rendering import (
    EspeakVoice,
    OverlayWriter,
    Voice,
    add_sound,
    speak_cues,
    write_wav,
)
from pose_analyzer.reporting import write_analysis_json, write_angles_csv, write_report_html
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source, stills
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import Frame, PersonFrame, SourceInfo, VideoAnalysis
from pose_analyzer.video_processor import process_video

DEFAULT_SAMPLE_FPS: Final = 30.0

OnProgress = Callable[[Frame, SourceInfo], None]


@dataclass(frozen=True, slots=True)
class AnalysisJob:
    """One video and how to analyse it."""

    video: Path
    out: Path
    """Folder for the results; made if it is not there."""
    exercise: str = AUTO
    detector: str = AUTO
    roi: RegionOfInterest | None = None
    sample_fps: float | None = DEFAULT_SAMPLE_FPS
    n_people: int | None = None
    smoothing: str = "kalman"
    """Name in `keypoint_filters.FILTERS`."""
    overlay: bool = True
    photos: bool = True
    """Whether the report shows pictures of the video."""
    form: FormChoice = NO_CHOICE
    """What form is judged by."""
    voice: str | None = None
    """Who speaks the cues, see `rendering.EspeakVoice`; None: nobody does."""


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Where the results of one job are."""

    analysis: Path
    angles: Path
    report: Path
    overlay: Path | None
    speech: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AnalysisResult:
    """What one job found, and where it is written."""

    analysis: VideoAnalysis
    files: ResultFiles
    forms: tuple[FormUpdate, ...]


def run_analysis(
    job: AnalysisJob,
    settings: Settings,
    on_progress: OnProgress | None = None,
    downloads: DownloadProgress | None = None,
) -> AnalysisResult:
    """Analyse the video and write all result files, each in one step once it is complete.

    Raises
    ------
    UnreadableSourceError, UnknownNameError
        The video or the options are unusable; nothing has been written.
    ModelUnavailableError, BackendFailedError
        The detector cannot run here.
    OutputFailedError
        The folder cannot be written to.
    """
    exercises = load_exercises(settings.exercises_dir)
    chosen = select_exercises(exercises, job.exercise)
    library = load_form_library(folders_of(settings))
    config = AnalysisConfig(
        exercises=chosen,
        judge=library.judge_config(chosen, job.form),
        exercise_requested=job.exercise,
        sample_fps=job.sample_fps,
        roi=job.roi,
        keypoint_filter=_filter(job.smoothing),
    )
    source = open_source(job.video)
    files = ResultFiles(
        analysis=job.out / "analysis.json",
        angles=job.out / "angles.csv",
        report=job.out / "report.html",
        overlay=job.out / "overlay.mp4" if job.overlay else None,
        speech=job.out / "speech.wav" if job.voice else None,
    )
    if files.overlay is not None and files.overlay.resolve() == job.video.resolve():
        raise OutputFailedError(str(files.overlay), "it is the video to be analysed")
    with ExitStack() as stack:
        voice = stack.enter_context(EspeakVoice(job.voice)) if job.voice else None
        detector = create_detector(
            job.detector, settings, mode="video", n_people=job.n_people, progress=downloads
        )
        stack.callback(detector.close)
        stack.enter_context(_writing_to(job.out))
        job.out.mkdir(parents=True, exist_ok=True)
        writer = None
        overlay_closed = stack.enter_context(ExitStack())
        if files.overlay is not None:
            writer = overlay_closed.enter_context(_overlay_writer(files.overlay, source.info, job))

        forms: list[FormUpdate] = []
        latest: dict[int, FormUpdate] = {}

        def on_form(form: FormUpdate) -> None:
            forms.append(form)
            latest[form.track_id] = form

        def on_frame(frame: Frame, people: Sequence[PersonFrame]) -> None:
            if writer is not None:
                writer.write(frame, people, dict(latest))
            if on_progress is not None:
                on_progress(frame, source.info)

        analysis = process_video(source, detector, config, on_frame, on_form)
        overlay_closed.close()
        if voice is not None and files.speech is not None:
            _speak(voice, forms, files, analysis)
    with _writing_to(job.out), ExitStack() as stack:
        write_analysis_json(analysis, files.analysis, forms)
        write_angles_csv(analysis, files.angles)
        still_at = stack.enter_context(stills(job.video)) if job.photos and forms else None
        write_report_html(
            analysis,
            files.report,
            overlay_name=files.overlay.name if files.overlay else None,
            forms=forms,
            still_at=still_at,
        )
    return AnalysisResult(analysis, files, tuple(forms))


def _speak(
    voice: Voice, forms: Sequence[FormUpdate], files: ResultFiles, analysis: VideoAnalysis
) -> None:
    """Write the cues as sound, by themselves and into the overlay."""
    track = speak_cues(forms, voice)
    end_s = max((float(one.time_s[-1]) for one in analysis.people if len(one.time_s)), default=0.0)
    if files.speech is not None:
        write_wav(track, files.speech, end_s)
    if files.overlay is not None:
        add_sound(files.overlay, track, end_s)


def _filter(name: str) -> KeypointFilter:
    if name not in FILTERS:
        raise UnknownNameError("smoothing", name, tuple(FILTERS))
    return FILTERS[name]


def _overlay_writer(path: Path, info: SourceInfo, job: AnalysisJob) -> OverlayWriter:
    fps = min(info.fps, job.sample_fps) if job.sample_fps else info.fps
    return OverlayWriter(path, info.width_px, info.height_px, fps)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Say plainly which folder could not be written to, and why."""
    try:
        yield
    except OSError as error:
        raise OutputFailedError(str(folder), error.strerror or str(error)) from error
