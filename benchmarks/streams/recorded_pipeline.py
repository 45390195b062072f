"""A detector that answers recorded people after the time a GPU would take, without a GPU."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pose_analyzer.stream_types import FrameOutcome, FramePoses, StreamFrame
from pose_analyzer.types import Pose


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """What one batch takes; the defaults were measured on an NVIDIA H200, yolo11n-pose FP16."""

    decode_fps: float = 5287.0
    """1080p JPEG files decoded per second, in batches of 32."""
    batches: tuple[int, ...] = (1, 4, 8, 16, 64)
    infer_s: tuple[float, ...] = (0.00128, 0.00161, 0.00195, 0.00280, 0.00768)
    """Of one batch of each of these sizes, as a CUDA graph; others are interpolated."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """People of consecutive pictures."""

    people: tuple[list[Pose], ...]
    width_px: int
    height_px: int


class RecordedPipeline:
    """Implements `ports.FramePipeline`: two stages in two threads that only wait.

    Parameters
    ----------
    recording
        Answers by picture number, over and over.
    times
        How long the stages wait.
    """

    name = "recorded"
    device = "cpu"
    max_in_flight_per_stream = 4

    def __init__(self, recording: Recording, times: GpuTimes) -> None:
        self._recording = recording
        self._times = times
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._inferring = ThreadPoolExecutor(1, "infer")
        self._n_decoding = 0
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.max_batch = times.batches[-1]

    def n_idle(self) -> int:
        """Whether the first stage is free."""
        return int(self._n_decoding == 0)

    def on_idle(self, call: Callable[[], None]) -> None:
        """Have this called whenever the first stage becomes free."""
        self._listeners.append(call)

    def submit(self, frames: Sequence[StreamFrame]) -> "Future[list[FrameOutcome]]":
        """Begin a batch."""
        with self._lock:
            self._n_decoding += 1
        answer: Future[list[FrameOutcome]] = Future()
        self._decoding.submit(self._decode, frames, answer)
        return answer

    def limit_batch(self, n_frames: int) -> None:
        """Take at most so many frames at once."""
        self.max_batch = min(n_frames, self._times.batches[-1])

    def frames_per_second(self) -> float:
        """Of the slower stage."""
        return min(self._times.decode_fps, self._times.batches[-1] / self._times.infer_s[-1])

    def forget(self, stream_id: str) -> None:
        """Nothing is kept of a stream."""

    def close(self) -> None:
        """Finish what is in progress."""
        self._decoding.shutdown()
        self._inferring.shutdown()

    def _decode(self, frames: Sequence[StreamFrame], answer: "Future[list[FrameOutcome]]") -> None:
        began_s = time.monotonic()
        time.sleep(len(frames) / self._times.decode_fps)
        decode_s = time.monotonic() - began_s
        self._inferring.submit(self._infer, frames, decode_s, answer)
        with self._lock:
            self._n_decoding -= 1
        for call in self._listeners:
            call()

    def _infer(
        self,
        frames: Sequence[StreamFrame],
        decode_s: float,
        answer: "Future[list[FrameOutcome]]",
    ) -> None:
        times = self._times
        infer_s = float(np.interp(len(frames), times.batches, times.infer_s))
        time.sleep(infer_s)
        recording = self._recording
        answer.set_result(
            [
                FramePoses(
                    poses=recording.people[frame.index % len(recording.people)],
                    width_px=recording.width_px,
                    height_px=recording.height_px,
                    decode_s=decode_s,
                    infer_s=infer_s,
                    postprocess_s=0.0,
                )
                for frame in frames
            ]
        )
