"""Form of one person who is known beforehand to be alone: poses or a clip in, judgements out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pose_analyzer import form_judge
from pose_analyzer.form_judge import JudgeState
from pose_analyzer.form_session import (
    PoseObservation,
    SessionConfig,
    initial_state,
    recognised,
    repetitions,
    step,
)
from pose_analyzer.form_types import FormUpdate, RepetitionTrack
from pose_analyzer.ports import FrameSource, PoseDetector
from pose_analyzer.repetition_tracks import track_of, tracks_of
from pose_analyzer.stream_analyzer import AnalysisConfig
from pose_analyzer.types import PersonFrame, Pose, Repetition
from pose_analyzer.video_processor import process_video


@dataclass(frozen=True, slots=True, eq=False)
class KeypointSequence:
    """Keypoints of one person over time."""

    times_s: Float[np.ndarray, "frames"]
    """Increasing."""
    keypoints_px: Float[np.ndarray, "frames 17 2"]
    """COCO-17; NaN where unknown."""
    confidences: Float[np.ndarray, "frames 17"]
    """0..1; 0 where unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPerson:
    """One person's repetitions, and what is said of them."""

    exercise: str | None
    """None: none was recognised."""
    repetitions: tuple[Repetition, ...]
    forms: tuple[FormUpdate, ...]
    """Of those repetitions that could be judged."""
    tracks: tuple[RepetitionTrack, ...]


def judge_keypoints(config: AnalysisConfig, sequence: KeypointSequence) -> JudgedPerson:
    """Count and judge what one person does; `config.judge` says by what.

    The same as a stream of these keypoints would be told.
    """
    session = SessionConfig(
        tuple(exercise.movement for exercise in config.exercises), config.keypoint_filter
    )
    state, judged = initial_state(session), JudgeState()
    frames: list[PersonFrame] = []
    forms: list[FormUpdate] = []
    for index, time_s in enumerate(sequence.times_s.tolist()):
        pose = _pose(sequence.keypoints_px[index], sequence.confidences[index])
        state, frame = step(session, state, PoseObservation(1, index, time_s, pose))
        frames.append(frame)
        if config.judge is not None:
            judged, new = form_judge.step(config.judge, judged, session, state, frame)
            forms += new
    if config.judge is not None:
        _, new = form_judge.finish(config.judge, judged, session, state)
        forms += new
    movement = recognised(session, state)
    counted = repetitions(session, state)
    return JudgedPerson(
        None if movement is None else session.movements[movement].exercise,
        counted,
        tuple(forms),
        _tracks(frames, counted),
    )


def judge_clip(
    config: AnalysisConfig, source: FrameSource, detector: PoseDetector
) -> JudgedPerson | None:
    """Count and judge what the main person of a clip does; None if nobody is to be seen.

    Raises
    ------
    UnreadableSourceError
        If the clip holds no picture.
    """
    forms: list[FormUpdate] = []
    analysis = process_video(source, detector, config, on_form=forms.append)
    if not analysis.people:
        return None
    person = analysis.people[0]
    return JudgedPerson(
        person.exercise,
        person.repetitions,
        tuple(form for form in forms if form.track_id == person.track_id),
        tracks_of(person),
    )


def _tracks(
    frames: Sequence[PersonFrame], counted: Sequence[Repetition]
) -> tuple[RepetitionTrack, ...]:
    ends_s = [float("-inf"), *(repetition.end_s for repetition in counted[:-1])]
    found = (track_of(frames, one, end_s) for one, end_s in zip(counted, ends_s, strict=False))
    return tuple(track for track in found if track is not None)


def _pose(
    keypoints_px: Float[np.ndarray, "17 2"], confidences: Float[np.ndarray, "17"]
) -> Pose | None:
    """What a detector would say; None where no keypoint is known."""
    known = np.isfinite(keypoints_px).all(axis=1) & (confidences > 0.0)
    if not known.any():
        return None
    inside = keypoints_px[known]
    return Pose(
        np.where(known[:, None], keypoints_px, np.nan),
        np.where(known, confidences, 0.0),
        np.concatenate([inside.min(axis=0), inside.max(axis=0)]),
        float(confidences[known].mean()),
    )
