"""Everybody in front of one camera, frame by frame: detection, identity, one session each."""

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
    recognised,
    step,
)
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.keypoint_filters import KalmanFilter, KeypointFilter
from pose_analyzer.live_form import LiveForm
from pose_analyzer.ports import PoseDetector
from pose_analyzer.regions import RegionOfInterest, roi_pixels, scaled, shifted
from pose_analyzer.temporal_analyzer import CounterState
from pose_analyzer.tracking import PersonTracker, TrackingConfig
from pose_analyzer.types import Frame, PersonFrame, Pose, Repetition

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


@dataclass(frozen=True, slots=True)
class SettledRepetition:
    """A repetition that counting is done with."""

    track_id: int
    repetition: Repetition
    form: FormUpdate | None
    """None: it could not be judged."""


class StreamAnalyzer:
    """People of one camera. Frames must come in order.

    Parameters
    ----------
    detector
        What `analyse` asks for poses; None if poses come from elsewhere, through `observe`.
    config
        Exercises, region, filters.
    collect
        Whether `take_settled` will be asked for.
    """

    def __init__(
        self, detector: PoseDetector | None, config: AnalysisConfig, *, collect: bool = False
    ) -> None:
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
        self._collect = collect
        self._settled: list[SettledRepetition] = []
        self._n_collected: dict[tuple[int, str], int] = {}
        self.n_detections = 0
        """Poses seen so far, whether or not they were followed."""

    @property
    def session(self) -> SessionConfig:
        """What every person is analysed for."""
        return self._session

    def analyse(self, frame: Frame) -> list[PersonFrame]:
        """Detect and observe everybody in this frame."""
        return self.observe(self._detect(frame), frame.index, frame.time_s)

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
            new = self._judge_form(person)
            self._collect_settled(track_id, new)
            forms += new
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

    def take_settled(self) -> list[SettledRepetition]:
        """Repetitions that are over, told once each; needs `collect`.

        Whether one is over shows when the next begins, the person rests or leaves, or at the end.
        """
        settled, self._settled = self._settled, []
        return settled

    def _collect_settled(
        self, track_id: int, forms: Sequence[FormUpdate], *, last: bool = False
    ) -> None:
        if not self._collect:
            return
        index = recognised(self._session, self._states[track_id])
        if index is None:
            return
        counter = self._states[track_id].counters[index]
        key = track_id, self._session.movements[index].exercise
        n_before = self._n_collected.get(key, 0)
        n_settled = len(counter.repetitions) if last else self._n_settled(track_id, counter)
        if n_settled > n_before:
            self._n_collected[key] = n_settled
            judged = {form.repetition: form for form in forms}
            self._settled += [
                SettledRepetition(track_id, one, judged.get(one.number))
                for one in counter.repetitions[n_before:n_settled]
            ]

    def _n_settled(self, track_id: int, counter: CounterState) -> int:
        if not counter.repetitions:
            return 0
        if self._judge is None:
            return len(counter.repetitions) - counter.open
        return form_judge.n_settled(self._judged[track_id], counter.repetitions[0].exercise)

    def finish(self) -> tuple[FormUpdate, ...]:
        """Judge what has ended, as no more frames come."""
        forms: list[FormUpdate] = []
        if self._judge is not None:
            for track_id in self._judged:
                forms += self._finish(self._judge, track_id)
        for track_id in self._states:
            of_track = [form for form in forms if form.track_id == track_id]
            self._collect_settled(track_id, of_track, last=True)
        return tuple(forms)

    def _finish(self, judge: JudgeConfig, track_id: int) -> tuple[FormUpdate, ...]:
        self._judged[track_id], forms = form_judge.finish(
            judge, self._judged[track_id], self._session, self._states[track_id]
        )
        return forms

    def form(self, track_id: int) -> FormUpdate | None:
        """What was said of the latest repetition of a person that was judged."""
        return self._forms.get(track_id)

    def form_now(self, track_id: int) -> LiveForm | None:
        """How a person's latest frame compares with the reference, within a repetition."""
        judged = self._judged.get(track_id)
        return None if judged is None else judged.now

    def _forget(self, track_id: int) -> tuple[FormUpdate, ...]:
        """Let somebody go who has left; what they did last is judged."""
        known = track_id in self._judged
        forms = self._finish(self._judge, track_id) if self._judge and known else ()
        self._collect_settled(track_id, forms, last=True)
        self._n_collected = {key: n for key, n in self._n_collected.items() if key[0] != track_id}
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
        for track_id in self._states:
            self._collect_settled(track_id, (), last=True)
        self._n_collected.clear()
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
        [poses] = detect_people(self._detector, [frame.image_bgr], [frame.time_s], self._config.roi)
        return poses


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
    images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    times_s: Sequence[float],
    roi: RegionOfInterest | None,
    size_px: tuple[int, int] | None = None,
) -> list[list[Pose]]:
    """People in the region of each picture, in pixels of the whole picture.

    Parameters
    ----------
    detector
        What finds them.
    images_bgr
        Pictures of one size, perhaps scaled.
    times_s
        When they were taken.
    roi
        Where people are looked for; None: everywhere.
    size_px
        Width and height of the original pictures, in whose pixels the answer is; None: as they are.
    """
    if not images_bgr:
        return []
    height_px, width_px = images_bgr[0].shape[:2]
    if roi is None:
        found = detector.detect(images_bgr, times_s)
    else:
        x0, y0, x1, y1 = roi_pixels(roi, width_px, height_px)
        regions = [image[y0:y1, x0:x1] for image in images_bgr]
        found = [
            [shifted(pose, x0, y0) for pose in poses] for poses in detector.detect(regions, times_s)
        ]
    if size_px is None or size_px == (width_px, height_px):
        return found
    ratios = size_px[0] / width_px, size_px[1] / height_px
    return [[scaled(pose, *ratios) for pose in poses] for poses in found]
