"""Detection for live streams on a CPU: a few threads, one frame at a time each."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8

from pose_analyzer.backends.picture_files import UnreadablePictureError, decode_picture
from pose_analyzer.ports import PoseDetector
from pose_analyzer.stream_analyzer import detect_people
from pose_analyzer.stream_types import (
    DevicePicture,
    DropCause,
    FrameFailure,
    FrameOutcome,
    FramePoses,
    StreamFrame,
)
from shared_utils.machine import n_usable_cores

_Picture = bytes | UInt8[np.ndarray, "height width 3"]
_SHARED: Final = ""  # no stream has this id
# Time per frame assumed before any was answered. The detectors take 10 to 30 ms on a server's core:
# a service that has just started promises less than it can do.
_FIRST_BUSY_S: Final = 0.05
# Weight of the latest frame in the average.
_BUSY_WEIGHT: Final = 0.05


def default_workers(model: str, n_cores: int | None = None) -> int:
    """How many frames at once keep the cores busy.

    MediaPipe works on one core, ONNX Runtime spreads a frame over several (1.5 of 2), so half as
    many frames at once are enough for it. More frames than cores only take longer each.

    Parameters
    ----------
    model
        Name of the detector's model.
    n_cores
        Cores to be used; None: those this process may run on.
    """
    if n_cores is None:
        n_cores = n_usable_cores()
    return n_cores if model.startswith("mediapipe") else max(n_cores // 2, 1)


@dataclass(slots=True, eq=False)
class _Slot:
    """A detector and who needs it."""

    detector: PoseDetector | None = None
    n_frames: int = 0
    """Submitted and not answered."""
    forgotten: bool = False


class CpuFramePipeline:
    """Decodes and detects in a pool of threads; see `ports.FramePipeline`.

    Parameters
    ----------
    make_detector
        Makes a detector in video mode. Called here once, so that whatever stops it is known now,
        and from the pool's threads.
    per_stream
        The detector follows people between frames (MediaPipe), so each stream needs its own.
        Otherwise all threads share one, which must be thread-safe.
    n_workers
        Frames in progress at once.
    max_pixels
        Larger pictures are refused before they are decoded.
    """

    def __init__(
        self,
        make_detector: Callable[[], PoseDetector],
        *,
        per_stream: bool,
        n_workers: int,
        max_pixels: int,
    ) -> None:
        self._make_detector = make_detector
        self._per_stream = per_stream
        self._n_workers = n_workers
        self._max_pixels = max_pixels
        first = make_detector()
        self._name, self._device = first.name, first.device
        self._spare: PoseDetector | None = first if per_stream else None
        self._slots: dict[str, _Slot] = {} if per_stream else {_SHARED: _Slot(first)}
        self._lock = threading.Lock()
        self._n_in_flight = 0
        self._busy_s = _FIRST_BUSY_S
        self._listeners: list[Callable[[], None]] = []
        self._pool = ThreadPoolExecutor(n_workers, "detector")

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._name

    @property
    def device(self) -> str:
        """``cpu``."""
        return self._device

    @property
    def max_batch(self) -> int:
        """Always 1: a CPU gains nothing from batches."""
        return 1

    @property
    def max_in_flight_per_stream(self) -> int:
        """Always 1: frames of one stream must not overtake each other."""
        return 1

    def n_idle(self) -> int:
        """Free threads."""
        return max(self._n_workers - self._n_in_flight, 0)

    def on_idle(self, call: Callable[[], None]) -> None:
        """Have this called, from a thread of the pool, whenever one gets free."""
        self._listeners.append(call)

    def submit(self, frames: Sequence[StreamFrame]) -> "Future[list[FrameOutcome]]":
        """Begin one frame, or queue it where no thread is free.

        Raises
        ------
        TypeError
            The picture lies on a GPU.
        ValueError
            Not exactly one frame.
        """
        (frame,) = frames
        if isinstance(frame.content, DevicePicture):
            raise TypeError("a picture on a GPU cannot be looked at on a CPU")
        with self._lock:
            key = frame.stream_id if self._per_stream else _SHARED
            slot = self._slots.setdefault(key, _Slot())
            slot.n_frames += 1
            self._n_in_flight += 1
        future = self._pool.submit(self._answer, frame, frame.content, slot)
        future.add_done_callback(self._tell_idle)
        return future

    def limit_batch(self, n_frames: int) -> None:
        """Nothing to do: batches have one frame."""

    def frames_per_second(self) -> float:
        """Rate at full load, from the time recent frames took a thread.

        Before the first frames it is a cautious guess: how long a detector takes depends on
        whether it sees somebody, so a made-up picture would not tell. It is somewhat too high while
        few threads are busy, as they share the cores, and comes down as the load grows.
        """
        return self._n_workers / self._busy_s

    def forget(self, stream_id: str) -> None:
        """Free the stream's detector, after its last frame in progress."""
        with self._lock:
            slot = self._slots.pop(stream_id, None)
            if slot is None:
                return
            slot.forgotten = True
            unused = slot.n_frames == 0
        if unused and slot.detector is not None:
            # Closing takes a while, and the caller may be an event loop.
            self._pool.submit(slot.detector.close)

    def close(self) -> None:
        """Finish what is in progress and free everything."""
        self._pool.shutdown()
        detectors = [self._spare, *(slot.detector for slot in self._slots.values())]
        self._spare = None
        self._slots.clear()
        for detector in detectors:
            if detector is not None:
                detector.close()

    def _answer(self, frame: StreamFrame, content: _Picture, slot: _Slot) -> list[FrameOutcome]:
        try:
            outcome = self._detect(frame, content, self._detector(slot))
        finally:
            self._release(slot)
        if isinstance(outcome, FramePoses):
            busy_s = outcome.decode_s + outcome.infer_s
            with self._lock:
                self._busy_s += _BUSY_WEIGHT * (busy_s - self._busy_s)
        return [outcome]

    def _detect(
        self, frame: StreamFrame, content: _Picture, detector: PoseDetector
    ) -> FrameOutcome:
        began_s = time.monotonic()
        try:
            image = (
                decode_picture(content, self._max_pixels) if isinstance(content, bytes) else content
            )
        except UnreadablePictureError as error:
            return FrameFailure(DropCause.UNDECODABLE, str(error))
        decoded_s = time.monotonic()
        [poses] = detect_people(detector, [image], [frame.time_s], frame.roi)
        height_px, width_px = image.shape[:2]
        return FramePoses(
            poses=poses,
            width_px=width_px,
            height_px=height_px,
            decode_s=decoded_s - began_s,
            # Detectors do not tell their last step apart.
            infer_s=time.monotonic() - decoded_s,
            postprocess_s=0.0,
        )

    def _detector(self, slot: _Slot) -> PoseDetector:
        if slot.detector is None:
            with self._lock:
                spare, self._spare = self._spare, None
            slot.detector = self._make_detector() if spare is None else spare
        return slot.detector

    def _release(self, slot: _Slot) -> None:
        with self._lock:
            slot.n_frames -= 1
            self._n_in_flight -= 1
            unused = slot.forgotten and slot.n_frames == 0
        if unused and slot.detector is not None:
            slot.detector.close()

    def _tell_idle(self, _: "Future[list[FrameOutcome]]") -> None:
        for call in self._listeners:
            call()
