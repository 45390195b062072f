"""An athlete's own way of doing an exercise, learned anew from what their sessions left behind."""

from typing import Final
from uuid import UUID

import numpy as np
from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from pose_analyzer.form_baseline import PersonalBaseline, accept
from pose_analyzer.form_measures import measure_form
from pose_analyzer.form_references import FormReference
from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.frame_rows import Rows
from pose_analyzer.repetition_tracks import first_s, last_s, view_at
from pose_analyzer.storage.models import ExerciseSession, RepetitionRow
from pose_analyzer.storage.pose_rows import RowFilter, driver_connection, read_rows
from pose_analyzer.types import Phase, Repetition

OWN: Final = "own"
"""What the reference made of them is called; `form_baseline` calls it so, too."""
# Enough for three views; of the rest the last one weighs less than a measurement error.
_MAX_REPETITIONS: Final = 24


def own_reference(
    session: Session,
    athlete_id: UUID,
    exercise: str,
    signals: tuple[str, ...],
    general: FormReference | None = None,
    *,
    but: UUID | None = None,
) -> FormReference | None:
    """What an athlete's latest accepted repetitions of an exercise amount to.

    Each is taken in as `form_baseline.accept` takes it in live, oldest first, so that deleting a
    session also takes back what was learned from it.

    Parameters
    ----------
    session
        Where to read.
    athlete_id
        Whose; everybody their sessions saw is taken for them.
    exercise
        Its name.
    signals
        What is compared, as `form_references.signals_for` says.
    general
        Reference of the exercise, if there is one.
    but
        A session from which nothing is learned.

    Returns
    -------
    FormReference or None
        None until there are enough repetitions of one view.
    """
    baseline = PersonalBaseline(exercise, signals)
    for row in reversed(_latest_accepted(session, athlete_id, exercise, but)):
        track = _track(session, row[0], row[1])
        if track is not None:
            baseline = accept(baseline, measure_form(track), general)
    return baseline.reference(OWN)


def exercises_of(session: Session, athlete_id: UUID) -> set[str]:
    """Exercises of which an athlete has done repetitions worth learning from."""
    query = (
        select(RepetitionRow.exercise)
        .join(ExerciseSession, ExerciseSession.session_id == RepetitionRow.session_id)
        .where(ExerciseSession.athlete_id == athlete_id, RepetitionRow.accepted)
        .distinct()
    )
    return set(session.scalars(query))


def _latest_accepted(
    session: Session, athlete_id: UUID, exercise: str, but: UUID | None
) -> list[tuple[RepetitionRow, float | None]]:
    """Latest first, each with the end of the one before it in its session."""
    previous_end_s = func.lag(RepetitionRow.end_s).over(
        partition_by=(RepetitionRow.session_id, RepetitionRow.track_id),
        order_by=RepetitionRow.number,
    )
    counted = (
        select(RepetitionRow.repetition_id, previous_end_s.label("previous_end_s"))
        .join(ExerciseSession, ExerciseSession.session_id == RepetitionRow.session_id)
        .where(ExerciseSession.athlete_id == athlete_id, RepetitionRow.exercise == exercise)
        .subquery()
    )
    query = (
        select(RepetitionRow, counted.c.previous_end_s)
        .join(counted, counted.c.repetition_id == RepetitionRow.repetition_id)
        .where(RepetitionRow.accepted, RepetitionRow.yaw_deg.is_not(None))
        .where(true() if but is None else RepetitionRow.session_id != but)
        .order_by(RepetitionRow.time.desc())
        .limit(_MAX_REPETITIONS)
    )
    return [(row, end_s) for row, end_s in session.execute(query)]


def _track(
    session: Session, row: RepetitionRow, previous_end_s: float | None
) -> RepetitionTrack | None:
    """Frames of a repetition as far as form is measured of them; None if they are gone."""
    repetition = _repetition(row)
    before_s = float("-inf") if previous_end_s is None else previous_end_s
    wanted = RowFilter(
        row.session_id, row.track_id, first_s(repetition, before_s), last_s(repetition)
    )
    pages = list(read_rows(driver_connection(session), wanted))
    if not pages:
        return None
    rows = np.concatenate(pages)
    if len(rows) < 2 or not np.all(np.diff(rows["time_s"]) > 0.0):
        return None
    return _as_track(row, repetition, rows)


def _as_track(row: RepetitionRow, repetition: Repetition, rows: Rows) -> RepetitionTrack:
    n_frames = len(rows)
    yaw_deg = float("nan") if row.yaw_deg is None else row.yaw_deg
    angles_deg = rows["angles"].astype(np.float64)
    keypoints = rows["keypoints"].astype(np.float64)
    return RepetitionTrack(
        track_id=row.track_id,
        repetition=repetition,
        view=view_at(yaw_deg),
        yaw_deg=yaw_deg,
        times_s=rows["time_s"].copy(),
        keypoints_px=keypoints[:, :, :2],
        # Not kept; form is not measured by them.
        sd_px=np.full((n_frames, keypoints.shape[1]), np.nan),
        confidences=keypoints[:, :, 2],
        angles_deg=angles_deg,
        angles_sd_deg=np.full(angles_deg.shape, np.nan),
        # Only trusted angles are kept.
        angles_trusted=np.isfinite(angles_deg),
        progress=rows["progress"].astype(np.float64),
        phases=(Phase.UNKNOWN,) * n_frames,
    )


def _repetition(row: RepetitionRow) -> Repetition:
    return Repetition(
        exercise=row.exercise,
        number=row.number,
        start_s=row.start_s,
        turn_s=row.turn_s,
        end_s=row.end_s,
        eccentric_s=row.eccentric_s,
        hold_s=row.hold_s,
        concentric_s=row.concentric_s,
        depth=row.depth,
    )
