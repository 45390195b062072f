"""One recorded source, end to end: frames -> poses -> people -> their movement."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.person_recorder import PersonRecorder
from pose_analyzer.ports import FrameSource, PoseDetector
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.types import Frame, PersonAnalysis, PersonFrame, VideoAnalysis

OnFrame = Callable[[Frame, Sequence[PersonFrame]], None]
OnForm = Callable[[FormUpdate], None]

_QUEUE_FRAMES: Final = 4
# A source that does not answer is left to its (daemon) thread after so long.
_STOP_S: Final = 5.0


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
        give_up_s = time.monotonic() + _STOP_S
        # The decoder may wait for a place in the queue, or for a source that delivers nothing.
        while self._thread.is_alive() and time.monotonic() < give_up_s:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)

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
    config: AnalysisConfig,
    on_frame: OnFrame | None = None,
    on_form: OnForm | None = None,
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
    on_form
        Called with what is said of each judged repetition, before `on_frame` of the frame in which
        counting was done with it; of the last ones after all frames. Only if `config.judge` is set.

    Raises
    ------
    UnreadableSourceError
        If the source finds that it holds no picture.
    """
    began = time.perf_counter()
    analyzer = StreamAnalyzer(detector, config)
    recorders: dict[int, PersonRecorder] = {}
    n_frames, analyse_s, on_frame_s, last_s = 0, 0.0, 0.0, 0.0
    with _Prefetcher(source.frames(config.sample_fps)) as frames:
        for frame in frames:
            started = time.perf_counter()
            people = analyzer.analyse(frame)
            for person in people:
                if person.track_id not in recorders:
                    recorders[person.track_id] = PersonRecorder(analyzer.session)
                recorders[person.track_id].add(person, analyzer.state(person.track_id))
            _tell(analyzer.new_forms, on_form)
            analysed = time.perf_counter()
            if on_frame is not None:
                on_frame(frame, people)
            n_frames, last_s = n_frames + 1, frame.time_s
            analyse_s += analysed - started
            on_frame_s += time.perf_counter() - analysed
    _tell(analyzer.finish(), on_form)
    elapsed_s = time.perf_counter() - began
    followed = _people(recorders, config, last_s)
    problems = source.problems
    if not analyzer.n_detections:
        problems = (*problems, "Nobody was found in any frame.")
    elif not followed:
        problems = (*problems, "Nobody was seen for long enough to be followed.")
    return VideoAnalysis(
        source=source.info,
        detector=detector.name,
        device=detector.device,
        exercise_requested=config.exercise_requested,
        sample_fps=config.sample_fps,
        roi=config.roi,
        n_frames=n_frames,
        people=followed,
        problems=problems,
        elapsed_s=elapsed_s,
        stage_s={
            "detect": analyzer.detect_s,
            "analyse": analyse_s - analyzer.detect_s,
            "write": on_frame_s,
            "wait_for_frames": elapsed_s - analyse_s - on_frame_s,
        },
    )


def _tell(forms: Sequence[FormUpdate], on_form: OnForm | None) -> None:
    if on_form is not None:
        for form in forms:
            on_form(form)


def _people(
    recorders: dict[int, PersonRecorder], config: AnalysisConfig, duration_s: float
) -> tuple[PersonAnalysis, ...]:
    """Everybody who stayed long enough: those who exercised first, then the most visible."""
    needed_s = min(config.min_track_s, duration_s / 2.0)
    kept = {track: one for track, one in recorders.items() if one.span_s >= needed_s}
    people = [one.analysis(track) for track, one in kept.items()]
    return tuple(
        sorted(people, key=lambda one: (not one.repetitions, -kept[one.track_id].area_px2))
    )
