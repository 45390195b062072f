"""Everybody in front of one camera, frame by frame: detection, identity, one session each."""

import time
from collections.abc import KeysView, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import UInt8

from pose_analyzer import form_judge
from pose_analyzer.exercises import AUTO, Exercise
from pose_analyzer.form_judge import JudgeConfig, JudgeState
from pose_analyzer.form_session import (
    SETTLED_DETECTIONS,
    PoseObservation,
    SessionConfig,
    SessionState,
    initial_state,
    step,
)
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.keypoint_filters import KalmanFilter, KeypointFilter
from pose_analyzer.ports import PoseDetector
from pose_analyzer.regions import RegionOfInterest, roi_pixels, shifted
from pose_analyzer.tracking import PersonTracker, TrackingConfig
from pose_analyzer.types import Frame, PersonFrame, Pose

_SHORTEST_GAP_S: Final = 0.3
_GAP_STEPS: Final = 4.0
_STEP_WEIGHT: Final = 0.1  # of the latest step between frames in the average


@dataclass(frozen=True, slots=True)
class AnalysisConfig:
    """How a recording is analysed."""

    exercises: tuple[Exercise, ...]
    """One, or all of them for recognition."""
    exercise_requested: str = AUTO
    sample_fps: float | None = 30.0
    """Frames analysed per second of video at most; None: all."""
    roi: RegionOfInterest | None = None
    """x0, y0, x1, y1 as fractions of the image: only there people are looked for."""
    keypoint_filter: KeypointFilter = KalmanFilter()
    tracking: TrackingConfig = TrackingConfig()
    bridge_s: float = 0.4
    """For so long a person is followed through frames where the detector misses them."""
    min_track_s: float = 0.3
    """Shorter appearances are dropped, unless the recording itself is short."""
    judge: JudgeConfig | None = None
    """How form is judged; None: it is not."""


class StreamAnalyzer:
    """People of one camera. Frames must come in order.

    Parameters
    ----------
    detector
        What `analyse` asks for poses; None if poses come from elsewhere, through `observe`.
    config
        Exercises, region, filters.
    """

    def __init__(self, detector: PoseDetector | None, config: AnalysisConfig) -> None:
        self._detector = detector
        self._config = config
        self._session = SessionConfig(
            tuple(exercise.movement for exercise in config.exercises), config.keypoint_filter
        )
        self._tracker = PersonTracker(config.tracking)
        self._states: dict[int, SessionState] = {}
        self._clock = _WatchedTime()
        self._seen_s: dict[int, float] = {}
        self._judge = config.judge
        self._judged: dict[int, JudgeState] = {}
        self._forms: dict[int, FormUpdate] = {}
        self.new_forms: tuple[FormUpdate, ...] = ()
        """What the latest frame brought to an end."""
        self.detect_s = 0.0
        """Seconds spent in the detector so far."""
        self.n_detections = 0
        """Poses seen so far, whether or not they were followed."""

    @property
    def session(self) -> SessionConfig:
        """What every person is analysed for."""
        return self._session

    def analyse(self, frame: Frame) -> list[PersonFrame]:
        """Detect and observe everybody in this frame."""
        began = time.perf_counter()
        poses = self._detect(frame)
        self.detect_s += time.perf_counter() - began
        return self.observe(poses, frame.index, frame.time_s)

    def observe(self, poses: Sequence[Pose], frame_index: int, time_s: float) -> list[PersonFrame]:
        """Everybody in a frame whose poses are known, by id.

        A person the detector misses is bridged for a short time, and forgotten once the tracker
        would not know them again. Time without frames is no absence: after a lost connection or a
        pause whoever is still there goes on.
        """
        self.n_detections += len(poses)
        watched_s = self._clock.at(time_s)
        found = self._tracker.update(poses, watched_s)
        self._seen_s.update(dict.fromkeys(found, watched_s))
        people: list[PersonFrame] = []
        forms: list[FormUpdate] = []
        for track_id in sorted(found.keys() | self._states.keys()):
            pose = found.get(track_id)
            state = self._states.get(track_id) or initial_state(self._session)
            unseen_s = watched_s - self._seen_s[track_id]
            settled = state.n_detections >= SETTLED_DETECTIONS
            if unseen_s > (self._config.bridge_s if settled else 0.0):
                if unseen_s > 2.0 * self._config.tracking.lost_s:
                    forms += self._forget(track_id)
                continue
            observation = PoseObservation(track_id, frame_index, time_s, pose)
            self._states[track_id], person = step(self._session, state, observation)
            people.append(person)
            forms += self._judge_form(person)
        self.new_forms = tuple(forms)
        return people

    def _judge_form(self, person: PersonFrame) -> tuple[FormUpdate, ...]:
        if self._judge is None:
            return ()
        track_id = person.track_id
        before = self._judged.get(track_id) or JudgeState()
        self._judged[track_id], forms = form_judge.step(
            self._judge, before, self._session, self._states[track_id], person
        )
        if forms:
            self._forms[track_id] = forms[-1]
        return forms

    def finish(self) -> tuple[FormUpdate, ...]:
        """Judge what has ended, as no more frames come."""
        forms: list[FormUpdate] = []
        if self._judge is not None:
            for track_id in self._judged:
                forms += self._finish(self._judge, track_id)
        return tuple(forms)

    def _finish(self, judge: JudgeConfig, track_id: int) -> tuple[FormUpdate, ...]:
        self._judged[track_id], forms = form_judge.finish(
            judge, self._judged[track_id], self._session, self._states[track_id]
        )
        return forms

    def form(self, track_id: int) -> FormUpdate | None:
        """What was said of the latest repetition of a person that was judged."""
        return self._forms.get(track_id)

    def _forget(self, track_id: int) -> tuple[FormUpdate, ...]:
        """Let somebody go who has left; what they did last is judged."""
        known = track_id in self._judged
        forms = self._finish(self._judge, track_id) if self._judge and known else ()
        del self._states[track_id], self._seen_s[track_id]
        self._judged.pop(track_id, None)
        self._forms.pop(track_id, None)
        return forms

    def change_exercises(
        self, exercises: tuple[Exercise, ...], judge: JudgeConfig | None = None
    ) -> None:
        """Count others from now on, from zero; who people are and how they move stays known.

        What was learned of how they do an exercise stays known too.
        """
        self._judge = judge
        self._judged = {
            track_id: form_judge.forget_counts(judged) for track_id, judged in self._judged.items()
        }
        self._forms.clear()
        self._session = replace(
            self._session, movements=tuple(exercise.movement for exercise in exercises)
        )
        counters = initial_state(self._session).counters
        self._states = {
            track_id: replace(state, counters=counters) for track_id, state in self._states.items()
        }

    @property
    def track_ids(self) -> KeysView[int]:
        """Everybody who would be known again."""
        return self._states.keys()

    def state(self, track_id: int) -> SessionState:
        """What has been found out about a person of the latest frame."""
        return self._states[track_id]

    def _detect(self, frame: Frame) -> list[Pose]:
        if self._detector is None:
            raise TypeError("this analyzer has no detector; hand poses to `observe`")
        return detect_people(self._detector, frame.image_bgr, frame.time_s, self._config.roi)


class _WatchedTime:
    """Time that passes while there are frames.

    A pause, a lost connection or frames that were not analysed are no absence: the tracker would
    predict where people have moved meanwhile, and not know them again.
    """

    def __init__(self) -> None:
        self._usual_step_s: float | None = None
        self._skipped_s = 0.0
        self._time_s: float | None = None

    def at(self, time_s: float) -> float:
        """Watched time of the next frame, which is at `time_s`; a gap counts as a usual step."""
        if self._time_s is not None:
            step_s = time_s - self._time_s
            usual_s = self._usual_step_s
            if usual_s is not None and step_s > max(_SHORTEST_GAP_S, _GAP_STEPS * usual_s):
                self._skipped_s += step_s - usual_s
            else:
                weight = 1.0 if usual_s is None else _STEP_WEIGHT
                self._usual_step_s = (1.0 - weight) * (usual_s or 0.0) + weight * step_s
        self._time_s = time_s
        return time_s - self._skipped_s


def detect_people(
    detector: PoseDetector,
    image_bgr: UInt8[np.ndarray, "_ _ 3"],
    time_s: float,
    roi: RegionOfInterest | None,
) -> list[Pose]:
    """People in the region of a picture, in pixels of the whole picture."""
    if roi is None:
        return detector.detect([image_bgr], [time_s])[0]
    height_px, width_px = image_bgr.shape[:2]
    x0, y0, x1, y1 = roi_pixels(roi, width_px, height_px)
    poses = detector.detect([image_bgr[y0:y1, x0:x1]], [time_s])[0]
    return [shifted(pose, x0, y0) for pose in poses]
