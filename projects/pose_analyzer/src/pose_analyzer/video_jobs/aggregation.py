"""Putting the chunks of a job together: the work of `worker_main`."""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import structlog

from pose_analyzer.artifact_keys import overlay_key, report_key, result_key
from pose_analyzer.athlete_forms import FormWish, choose_form
from pose_analyzer.chunk_aggregation import ChunkPoses, merge_all, missing_ranges
from pose_analyzer.chunk_files import decode_chunk
from pose_analyzer.errors import (
    DatabaseUnavailableError,
    InvalidChunkFileError,
    UnknownNameError,
    UnreadableSourceError,
)
from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.recording import store_analysis
from pose_analyzer.rendering import OverlayWriter
from pose_analyzer.reporting import write_analysis_json, write_report_html
from pose_analyzer.sources import VideoFileSource, stills
from pose_analyzer.storage.job_claims import (
    ClaimedJob,
    claim_job,
    fail_job,
    finish_job,
    owned_job,
    release_job,
    renew_job,
)
from pose_analyzer.storage.models import ExerciseSession
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import Frame, PersonFrame, VideoAnalysis
from pose_analyzer.upload_errors import ArtifactMissingError
from pose_analyzer.video_jobs.job_metrics import WorkerMetrics
from pose_analyzer.video_jobs.options import JobOptions
from pose_analyzer.video_jobs.work_loop import AbandonedError, reported
from pose_analyzer.video_jobs.workplace import Workplace
from pose_analyzer.video_processor import analyse_poses

# Another attempt would end the same way.
_HOPELESS = (InvalidChunkFileError, UnknownNameError, UnreadableSourceError, ArtifactMissingError)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What movements are counted and judged by."""

    exercises: dict[str, Exercise]
    library: FormLibrary


class AggregationDuty:
    """Claims jobs whose chunks are complete and finishes them; see `work_loop.Duty`."""

    def __init__(self, place: Workplace, knowledge: Knowledge, metrics: WorkerMetrics) -> None:
        self._place = place
        self._knowledge = knowledge
        self._metrics = metrics

    @property
    def lease_s(self) -> float:
        """For how long one renewal lasts."""
        return self._place.policy.lease_s

    def claim(self) -> ClaimedJob | None:
        """Take a job whose chunks are complete."""
        with self._place.database.session() as session:
            return claim_job(session, uuid.uuid4(), self._place.policy)

    def renew(self, claimed: ClaimedJob) -> bool:
        """Say that the work goes on."""
        with self._place.database.session() as session:
            return renew_job(session, claimed, self._place.policy)

    def release(self, claimed: ClaimedJob) -> None:
        """Give it back unfinished."""
        self._metrics.ended("abandoned")
        with self._place.database.session() as session:
            release_job(session, claimed)

    def perform(self, claimed: ClaimedJob, check: Callable[[], None]) -> None:
        """Put a job together and report how it went.

        Raises
        ------
        AbandonedError
            It is not to be finished.
        DatabaseUnavailableError
            The report could not be made in time; somebody else does it again.
        """
        began_s = time.monotonic()
        try:
            aggregate_chunks_and_finalize(self._place, self._knowledge, claimed, check)
        except (AbandonedError, DatabaseUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was is told in the job and the log
            self._fail(claimed, error)
            return
        if reported(lambda: self._finish(claimed), self._place.report_patience_s):
            self._metrics.completed(time.monotonic() - began_s)
            log.info("job_done", job_id=str(claimed.job_id))

    def _finish(self, claimed: ClaimedJob) -> bool:
        with self._place.database.session() as session:
            row = owned_job(session, claimed)
            if row is not None:
                finish_job(session, row)
            return row is not None

    def _fail(self, claimed: ClaimedJob, error: Exception) -> None:
        final = isinstance(error, _HOPELESS)
        log.error("job_failed", job_id=str(claimed.job_id), exc_info=error)

        def report() -> bool:
            with self._place.database.session() as session:
                reason = f"putting it together: {error}" if str(error) else type(error).__name__
                return fail_job(session, claimed, reason, self._place.policy, final=final)

        if reported(report, self._place.report_patience_s):
            self._metrics.ended("failed" if final else "retried")


def aggregate_chunks_and_finalize(
    place: Workplace, knowledge: Knowledge, claimed: ClaimedJob, check: Callable[[], None]
) -> VideoAnalysis:
    """Merge what was found in the chunks, analyse it in one pass, and store all results.

    Done again, it stores the same again; so a worker that dies leaves nothing half done.

    Parameters
    ----------
    place
        Where the chunks are and the results go.
    knowledge
        What movements are counted and judged by.
    claimed
        Which job.
    check
        Called often; raises `AbandonedError` once the work is not to be finished.

    Raises
    ------
    InvalidChunkFileError
        A chunk's file is damaged, or chunks are missing.
    UnknownNameError
        The exercise, reference or language is gone.
    """
    options = JobOptions.model_validate(claimed.options)
    chosen = select_exercises(knowledge.exercises, options.exercise)
    with place.database.session() as session:
        owner = session.get_one(ExerciseSession, claimed.session_id)
    wish = FormWish(options.reference, options.language, owner.athlete_id, claimed.session_id)
    form = choose_form(place.database, knowledge.library, chosen, wish)
    config = AnalysisConfig(
        exercises=chosen,
        exercise_requested=options.exercise,
        sample_fps=options.sample_fps,
        judge=knowledge.library.judge_config(chosen, form),
    )
    merged = _merged(place, claimed, check)
    forms: list[FormUpdate] = []
    with tempfile.TemporaryDirectory(prefix="pose-job-") as folder:
        out = Path(folder)
        overlay = out / "overlay.mp4" if options.overlay else None
        with _overlay(place, claimed, options, overlay, check) as on_people:
            analysis = analyse_poses(merged, config, on_people, forms.append)
        check()
        _store_files(place, claimed, _Findings(analysis, tuple(forms)), out)
    check()
    started_at = owner.started_at.astimezone(UTC)
    store_analysis(place.database, claimed.session_id, analysis, forms, started_at)
    return analysis


@dataclass(frozen=True, slots=True, eq=False)
class _Findings:
    analysis: VideoAnalysis
    forms: tuple[FormUpdate, ...]


def _merged(place: Workplace, claimed: ClaimedJob, check: Callable[[], None]) -> ChunkPoses:
    chunks = []
    for key in claimed.chunk_keys:
        check()
        chunks.append(decode_chunk(place.store.get(key)))
    merged = merge_all(chunks)
    missing = missing_ranges(merged, merged.spans[-1].end_s)
    if missing:
        raise InvalidChunkFileError(f"nothing covers {missing}")
    return merged


def _store_files(place: Workplace, claimed: ClaimedJob, found: _Findings, out: Path) -> None:
    ids = claimed.session_id, claimed.job_id
    overlay = out / "overlay.mp4"
    report, results = out / "report.html", out / "final_results.json"
    with stills(place.copies.path(claimed.video_key)) as still_at:
        write_report_html(
            found.analysis,
            report,
            overlay_name=overlay.name if overlay.exists() else None,
            forms=found.forms,
            still_at=still_at,
        )
    write_analysis_json(found.analysis, results, found.forms)
    if overlay.exists():
        place.store.adopt(overlay_key(*ids), overlay)
    place.store.adopt(report_key(*ids), report)
    place.store.adopt(result_key(*ids), results)


OnPeople = Callable[[int, Sequence[PersonFrame]], None]


@contextmanager
def _overlay(
    place: Workplace,
    claimed: ClaimedJob,
    options: JobOptions,
    path: Path | None,
    check: Callable[[], None],
) -> Iterator[OnPeople]:
    """Draw everybody into the video as they are found, if that was asked for."""
    if path is None:
        yield lambda *_: check()
        return
    source = VideoFileSource(place.copies.path(claimed.video_key))
    info = source.info
    frames = iter(source.frames(options.sample_fps))
    fps = min(info.fps, options.sample_fps)
    with OverlayWriter(path, info.width_px, info.height_px, fps) as writer:

        def draw(index: int, people: Sequence[PersonFrame]) -> None:
            check()
            frame: Frame = next(one for one in frames if one.index == index)
            writer.write(frame, people, {})

        yield draw
