"""One recorded source, end to end: frames -> poses -> people -> their movement."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pose_analyzer.exercises import AUTO, Exercise
from pose_analyzer.form_session import (
    PoseObservation,
    SessionConfig,
    SessionState,
    initial_state,
    recognised,
    repetitions,
    step,
)
from pose_analyzer.keypoint_filters import KalmanFilter, KeypointFilter
from pose_analyzer.ports import FrameSource, PoseDetector
from pose_analyzer.temporal_analyzer import phase_of
from pose_analyzer.tracking import PersonTracker, TrackingConfig
from pose_analyzer.types import (
    BlazePoseLandmarks,
    Frame,
    PersonAnalysis,
    PersonFrame,
    Phase,
    Pose,
    VideoAnalysis,
    View,
)

OnFrame = Callable[[Frame, Sequence[PersonFrame]], None]
RegionOfInterest = tuple[float, float, float, float]

_QUEUE_FRAMES: Final = 4
_VIEWS: Final = tuple(View)


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
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


class StreamAnalyzer:
    """People of one camera, frame by frame: detection, identity, one session per person."""

    def __init__(self, detector: PoseDetector, config: ProcessorConfig) -> None:
        self._detector = detector
        self._config = config
        self._session = SessionConfig(
            tuple(exercise.movement for exercise in config.exercises), config.keypoint_filter
        )
        self._tracker = PersonTracker(config.tracking)
        self._states: dict[int, SessionState] = {}
        self.detect_s = 0.0
        """Seconds spent in the detector so far."""

    def analyse(self, frame: Frame) -> list[PersonFrame]:
        """Everybody in this frame, by id. Frames must come in order."""
        began = time.perf_counter()
        poses = self._detect(frame)
        self.detect_s += time.perf_counter() - began
        found = self._tracker.update(poses, frame.time_s)
        people = []
        for track_id in sorted(found.keys() | self._states.keys()):
            pose = found.get(track_id)
            state = self._states.get(track_id) or initial_state(self._session)
            if pose is None and not frame.time_s - state.pose_s <= self._config.bridge_s:
                continue
            observation = PoseObservation(track_id, frame.index, frame.time_s, pose)
            self._states[track_id], person = step(self._session, state, observation)
            people.append(person)
        return people

    def _detect(self, frame: Frame) -> list[Pose]:
        if self._config.roi is None:
            return self._detector.detect([frame.image_bgr], [frame.time_s])[0]
        height, width = frame.image_bgr.shape[:2]
        x0, y0, x1, y1 = roi_pixels(self._config.roi, width, height)
        poses = self._detector.detect([frame.image_bgr[y0:y1, x0:x1]], [frame.time_s])[0]
        return [_shifted(pose, x0, y0) for pose in poses]

    def summary(self, track_id: int) -> tuple[SessionConfig, SessionState]:
        """What has been found out about one person so far."""
        return self._session, self._states[track_id]


def roi_pixels(roi: RegionOfInterest, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The region in whole pixels, at least two wide and high."""
    x0 = min(int(roi[0] * width_px), width_px - 2)
    y0 = min(int(roi[1] * height_px), height_px - 2)
    x1, y1 = round(roi[2] * width_px), round(roi[3] * height_px)
    return x0, y0, min(max(x1, x0 + 2), width_px), min(max(y1, y0 + 2), height_px)


def _shifted(pose: Pose, x0: int, y0: int) -> Pose:
    """The same pose in coordinates of the whole image."""
    landmarks = pose.landmarks
    if landmarks is not None:
        landmarks = BlazePoseLandmarks(
            landmarks.image_px + np.array([x0, y0, 0.0]),
            landmarks.world_m,
            landmarks.visibility,
            landmarks.presence,
        )
    return replace(
        pose,
        keypoints_px=pose.keypoints_px + np.array([x0, y0]),
        box_px=pose.box_px + np.array([x0, y0, x0, y0]),
        landmarks=landmarks,
    )


class _Columns:
    """What is kept of one person's frames: about half a kilobyte each."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._world: list[np.ndarray] = []
        self._time_s: list[float] = []
        self._codes: list[tuple[int, bool, int]] = []
        # Of every movement: which one it is may be recognised late.
        self._progress: list[tuple[float, ...]] = []
        self._phases: list[tuple[Phase, ...]] = []
        self._flags: list[np.ndarray] = []

    def add(self, person: PersonFrame, session: SessionConfig, state: SessionState) -> None:
        row = np.concatenate(
            [
                person.box_px,
                person.keypoints_px.ravel(),
                person.keypoints_sd_px,
                person.confidences,
                person.angles.values_deg,
                person.angles.sd_deg,
                person.angles.trusted,
                [person.view.yaw_deg],
            ]
        )
        self._rows.append(row.astype(np.float32))
        world = person.angles_3d
        self._world.append(
            np.full(12, np.nan, np.float32)
            if world is None
            else world.values_deg.astype(np.float32)
        )
        self._time_s.append(person.time_s)
        self._codes.append((person.frame_index, person.detected, _VIEWS.index(person.view.label)))
        moving = tuple(zip(session.movements, state.counters, strict=True))
        self._progress.append(tuple(counter.progress for _, counter in moving))
        self._phases.append(tuple(phase_of(movement, counter) for movement, counter in moving))
        self._flags.append(person.flags)

    @property
    def span_s(self) -> float:
        """From the first to the last frame."""
        return self._time_s[-1] - self._time_s[0]

    @property
    def area_px2(self) -> float:
        """Sum of the box areas: how much of the picture the person was, for how long."""
        return float(sum((r[2] - r[0]) * (r[3] - r[1]) for r in self._rows))

    def person(self, track_id: int, session: SessionConfig, state: SessionState) -> PersonAnalysis:
        rows = np.stack(self._rows)
        parts = np.split(rows, np.cumsum([4, 34, 17, 17, 12, 12, 12]), axis=1)
        box, keypoints, sd, confidences, angles, angle_sd, trusted, yaw = parts
        index, detected, views = zip(*self._codes, strict=True)
        world = np.stack(self._world)
        movement = recognised(session, state)
        known_views = [_VIEWS[v] for v in views if _VIEWS[v] is not View.UNKNOWN]
        return PersonAnalysis(
            track_id=track_id,
            exercise=None if movement is None else session.movements[movement].exercise,
            repetitions=repetitions(session, state),
            frame_index=np.array(index, dtype=np.int64),
            time_s=np.array(self._time_s),
            detected=np.array(detected, dtype=bool),
            box_px=box,
            keypoints_px=keypoints.reshape(-1, 17, 2),
            keypoints_sd_px=sd,
            confidences=confidences,
            flags=np.stack(self._flags),
            angles_deg=angles,
            angles_sd_deg=angle_sd,
            angles_trusted=trusted > 0,
            angles_3d_deg=None if np.isnan(world).all() else world,
            yaw_deg=yaw[:, 0],
            view=Counter(known_views).most_common(1)[0][0] if known_views else View.UNKNOWN,
            phase=tuple(Phase.UNKNOWN if movement is None else p[movement] for p in self._phases),
            progress=np.array(
                [np.nan if movement is None else p[movement] for p in self._progress]
            ),
        )


class _Prefetcher:
    """Decodes in a thread of its own, a few frames ahead."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(_QUEUE_FRAMES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def __enter__(self) -> Iterator[Frame]:
        self._thread.start()
        return iter(self._next, None)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for frame in self._frames:
                self._queue.put(frame)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            last = error
        self._queue.put(last)

    def _next(self) -> Frame | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


def process_video(
    source: FrameSource,
    detector: PoseDetector,
    config: ProcessorConfig,
    on_frame: OnFrame | None = None,
) -> VideoAnalysis:
    """Analyse a recording from its first to its last frame.

    Parameters
    ----------
    source
        The recording.
    detector
        In video mode, fresh: detectors that track between frames must not have seen another one.
    config
        Exercises, sampling, region.
    on_frame
        Called with every analysed frame, in order, from this thread.

    Raises
    ------
    UnreadableSourceError
        If the source finds that it holds no picture.
    """
    began = time.perf_counter()
    analyzer = StreamAnalyzer(detector, config)
    columns: dict[int, _Columns] = {}
    n_frames, analyse_s, on_frame_s, last_s = 0, 0.0, 0.0, 0.0
    with _Prefetcher(source.frames(config.sample_fps)) as frames:
        for frame in frames:
            started = time.perf_counter()
            people = analyzer.analyse(frame)
            for person in people:
                session, state = analyzer.summary(person.track_id)
                columns.setdefault(person.track_id, _Columns()).add(person, session, state)
            analysed = time.perf_counter()
            if on_frame is not None:
                on_frame(frame, people)
            n_frames, last_s = n_frames + 1, frame.time_s
            analyse_s += analysed - started
            on_frame_s += time.perf_counter() - analysed
    elapsed_s = time.perf_counter() - began
    people_found = _people(analyzer, columns, config, last_s)
    problems = source.problems
    if not people_found:
        problems = (*problems, "Nobody was found in any frame.")
    return VideoAnalysis(
        source=source.info,
        detector=detector.name,
        device=detector.device,
        exercise_requested=config.exercise_requested,
        sample_fps=config.sample_fps,
        roi=config.roi,
        n_frames=n_frames,
        people=people_found,
        problems=problems,
        elapsed_s=elapsed_s,
        stage_s={
            "detect": analyzer.detect_s,
            "analyse": analyse_s - analyzer.detect_s,
            "write": on_frame_s,
            "wait_for_frames": elapsed_s - analyse_s - on_frame_s,
        },
    )


def _people(
    analyzer: StreamAnalyzer,
    columns: dict[int, _Columns],
    config: ProcessorConfig,
    duration_s: float,
) -> tuple[PersonAnalysis, ...]:
    """Everybody who stayed long enough: those who exercised first, then the most visible."""
    needed_s = min(config.min_track_s, duration_s / 2.0)
    kept = {track: c for track, c in columns.items() if c.span_s >= needed_s}
    people = [c.person(track, *analyzer.summary(track)) for track, c in kept.items()]
    return tuple(
        sorted(
            people,
            key=lambda person: (
                not person.repetitions,
                -kept[person.track_id].area_px2,
            ),
        )
    )
