"""Detection for live streams on a GPU: three threads, each with another batch.

Handing a batch to a thread that sleeps costs a few tenths of a millisecond. So the thread that
decodes a lone picture also starts the network; the thread that collects is woken while the device
works.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import structlog

from pose_analyzer.backends.gpu.calibration import measure_frames_per_s
from pose_analyzer.backends.gpu.images import Picture
from pose_analyzer.backends.gpu.memory import BatchLimit, Throughput, is_out_of_memory
from pose_analyzer.backends.gpu.options import GpuOptions, open_stages
from pose_analyzer.backends.gpu.stages import DetectionStages, Fault, Found, Inferred
from pose_analyzer.backends.gpu.yolo_cuda_graph import BUCKETS
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.stream_types import (
    DropCause,
    FrameFailure,
    FrameOutcome,
    FramePoses,
    StreamFrame,
)

log = structlog.get_logger()

MAX_BATCHES: Final = 3
"""In the pipeline before the next is better formed later: one in each stage."""
_MAX_IN_FLIGHT_PER_STREAM: Final = MAX_BATCHES + 1
_DEFAULTS: Final = GpuOptions()


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch and what has become of it so far."""

    frames: Sequence[StreamFrame]
    future: "Future[list[FrameOutcome]]"
    began_s: float = 0.0
    decoded_s: float = 0.0
    infer_began_s: float = 0.0
    pictures: list[Picture | FrameFailure] = field(default_factory=list)
    inferred: Inferred | None = None
    found: list[Found | FrameFailure] | None = None
    """Known already where memory ran out and the batch was done in parts."""
    error: Exception | None = None


_Task = _Batch | Callable[[], None] | None  # None: the end


class GpuFramePipeline:
    """Detects people in batches of frames, in order; see `ports.FramePipeline`.

    Parameters
    ----------
    name
        Model as the user names it.
    stages
        What is done with a batch.
    max_batch
        Most frames at once.
    """

    def __init__(self, name: str, stages: DetectionStages, *, max_batch: int) -> None:
        self._name = name
        self._stages = stages
        self._limit = BatchLimit(max_batch, time.monotonic)
        self._throughput = Throughput()
        self._lock = threading.Lock()
        self._n_held = 0
        self._n_undecoded = 0
        self._closed = False
        self._listeners: list[Callable[[], None]] = []
        self._to_decode: SimpleQueue[_Batch | None] = SimpleQueue()
        self._to_infer: SimpleQueue[_Task] = SimpleQueue()
        # Held by whoever tells the network what to do.
        self._network = threading.Lock()
        self._to_collect: SimpleQueue[_Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"detector-{stage}", daemon=True)
            for stage, work in (
                ("decode", self._decode_all),
                ("infer", self._infer_all),
                ("collect", self._collect_all),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._name

    @property
    def device(self) -> str:
        """``cuda:0``, or ``cpu``."""
        return str(self._stages.device)

    @property
    def max_batch(self) -> int:
        """Most frames it takes at once, at present."""
        return self._limit.current()

    @property
    def max_in_flight_per_stream(self) -> int:
        """One in each batch: they stay in order."""
        return _MAX_IN_FLIGHT_PER_STREAM

    def n_idle(self) -> int:
        """1 if a batch would be decoded at once and not wait for the network afterwards."""
        return int(self._n_undecoded == 0 and self._n_held < MAX_BATCHES)

    def on_idle(self, call: Callable[[], None]) -> None:
        """Have this called, from a thread of the pipeline, whenever `n_idle` has grown."""
        self._listeners.append(call)

    def submit(self, frames: Sequence[StreamFrame]) -> "Future[list[FrameOutcome]]":
        """Begin a batch, or queue it behind the one that is being decoded."""
        batch = _Batch(tuple(frames), Future())
        batch.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                batch.future.set_exception(BackendFailedError(self._name, "it is closed."))
                return batch.future
            self._n_held += 1
            self._n_undecoded += 1
            self._to_decode.put(batch)
        return batch.future

    def limit_batch(self, n_frames: int) -> None:
        """Take at most so many frames at once from now on, and free what larger batches held."""
        log.info("batch_limited", max_batch=n_frames)
        self._limit.impose(n_frames)
        self._call(lambda: self._stages.free(n_frames))

    def frames_per_second(self) -> float:
        """Measured rate at full load; 0 before `calibrate` or the first full batches."""
        return self._throughput.frames_per_s

    def forget(self, stream_id: str) -> None:
        """Nothing to do: nothing is kept of a stream."""

    def warm_up(self, image_hw: tuple[int, int], buckets: Iterable[int]) -> None:
        """Prepare for batches of pictures of this size; returns when done."""
        self._call(lambda: self._stages.warm_up(image_hw, buckets)).result()

    def calibrate(self, n_frames: int) -> None:
        """Measure the rate with batches of `n_frames` made-up 1080p JPEGs."""
        frames_per_s = measure_frames_per_s(self.submit, n_frames)
        self._throughput.set(frames_per_s, n_frames)
        log.info("detector_calibrated", frames_per_s=round(frames_per_s, 1), batch=n_frames)

    def close(self) -> None:
        """Finish what is in progress and free everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._to_decode.put(None)
        for thread in self._threads:
            thread.join()
        self._stages.close()

    def _call(self, call: Callable[[], None]) -> "Future[None]":
        """Have something done by the thread that infers, between two batches."""
        done: Future[None] = Future()
        if self._closed:
            done.set_exception(BackendFailedError(self._name, "it is closed."))
            return done

        def run() -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                done.set_exception(error)
            else:
                done.set_result(None)

        self._to_infer.put(run)
        return done

    def _decode_all(self) -> None:
        with self._stages.thread_of("decode"):
            while (batch := self._to_decode.get()) is not None:
                batch.began_s = time.monotonic()
                try:
                    batch.pictures = self._stages.decode(batch.frames)
                except Exception as error:  # noqa: BLE001 - looked at by the next stage
                    batch.error = error
                batch.decoded_s = time.monotonic()
                if not self._infer_here(batch):
                    self._to_infer.put(batch)
                del batch
                self._tell(self._count_down(n_undecoded=1))
        self._to_infer.put(None)

    def _infer_all(self) -> None:
        with self._stages.thread_of("infer"):
            while (task := self._to_infer.get()) is not None:
                with self._network:
                    if isinstance(task, _Batch):
                        self._infer(task)
                    else:
                        task()
                del task
        self._to_collect.put(None)

    def _infer_here(self, batch: _Batch) -> bool:
        """Infer in the thread that decodes, if this is a lone picture and the network is free."""
        lone = self._n_held == 1 and len(batch.frames) == 1
        if not lone or not self._network.acquire(blocking=False):
            return False
        try:
            with self._stages.thread_of("infer"):
                self._infer(batch)
        finally:
            self._network.release()
        return True

    def _infer(self, batch: _Batch) -> None:
        batch.infer_began_s = time.monotonic()
        self._start_network(batch)
        self._to_collect.put(batch)

    def _start_network(self, batch: _Batch) -> None:
        try:
            if batch.error is None:
                batch.inferred = self._stages.infer(batch.pictures)
        except Exception as error:  # noqa: BLE001 - looked at below
            batch.error = error
        if batch.error is None or not is_out_of_memory(batch.error):
            return
        # The traceback holds on to the tensors of the failed attempt.
        batch.error, batch.pictures = None, []
        try:
            batch.found = self._in_halves(batch.frames)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            batch.error = error

    def _in_halves(self, frames: Sequence[StreamFrame]) -> list[Found | FrameFailure]:
        """Answer what fits of a batch that did not, each part from beginning to end."""
        max_batch = self._limit.halve(len(frames))
        log.warning("out_of_gpu_memory", n_frames=len(frames), max_batch=max_batch)
        found: list[Found | FrameFailure] = []
        step = max(len(frames) // 2, 1)
        for start in range(0, len(frames), step):
            part = frames[start : start + step]
            answer = self._at_once(part)
            if answer is not None:
                found += answer
            elif len(part) > 1:
                found += self._in_halves(part)
            else:
                found.append(FrameFailure(DropCause.OVERLOAD, "no GPU memory for this picture"))
        return found

    def _at_once(self, frames: Sequence[StreamFrame]) -> list[Found | FrameFailure] | None:
        """Detect in frames with nothing else kept on the GPU; None if they do not fit."""
        self._stages.settle()
        self._stages.free(len(frames))
        try:
            inferred = self._stages.infer(self._stages.decode(frames))
            inferred.wait()
            return self._stages.collect(inferred)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _collect_all(self) -> None:
        while (batch := self._to_collect.get()) is not None:
            self._finish(batch)
            del batch

    def _finish(self, batch: _Batch) -> None:
        """Wait for the device, and answer the batch."""
        outcomes: list[FrameOutcome] = []
        try:
            outcomes = self._outcomes(batch)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            batch.error = error
        # The pictures take memory that the next batch may need.
        batch.inferred, batch.pictures = None, []
        self._throughput.add(len(batch.frames), self.max_batch, batch.began_s, time.monotonic())
        grown = self._count_down(n_held=1)
        if batch.error is None:
            batch.future.set_result(outcomes)
        else:
            log.error("batch_failed", detector=self._name, reason=str(batch.error))
            failure = BackendFailedError(self._name, str(batch.error))
            failure.__cause__ = batch.error
            batch.future.set_exception(failure)
        del outcomes
        self._tell(grown)

    def _outcomes(self, batch: _Batch) -> list[FrameOutcome]:
        if batch.error is not None:
            raise batch.error
        if batch.inferred is not None:
            batch.inferred.wait()
        ready_s = time.monotonic()
        found = self._stages.collect(batch.inferred) if batch.inferred else batch.found or []
        collected_s = time.monotonic()
        return [
            FramePoses(
                poses=one.poses,
                width_px=one.width_px,
                height_px=one.height_px,
                decode_s=batch.decoded_s - batch.began_s,
                infer_s=ready_s - batch.infer_began_s,
                postprocess_s=collected_s - ready_s,
            )
            if isinstance(one, Found)
            else one
            for one in found
        ]

    def _count_down(self, *, n_held: int = 0, n_undecoded: int = 0) -> bool:
        """Whether there is room that was not there before."""
        with self._lock:
            before = self.n_idle()
            self._n_held -= n_held
            self._n_undecoded -= n_undecoded
            return self.n_idle() > before

    def _tell(self, grown: bool) -> None:
        if grown:
            for call in self._listeners:
                call()


def create_gpu_pipeline(
    weights: Path,
    name: str,
    config_dir: Path,
    options: GpuOptions = _DEFAULTS,
    fault: Fault | None = None,
) -> GpuFramePipeline:
    """Open a YOLO pose network for live streams; takes seconds, minutes where it is compiled.

    Parameters
    ----------
    weights
        The .pt file; a pickle, so only of the official release or of the user's own making.
    name
        Model as the user names it.
    config_dir
        Where Ultralytics may write its settings.
    options
        Device, engine, thresholds.
    fault
        For tests: makes a stage fail.

    Raises
    ------
    BackendFailedError
        The network cannot be run on this device.
    """
    max_batch = min(options.max_batch, BUCKETS[-1])
    try:
        stages = open_stages(weights, name, config_dir, options, fault)
        pipeline = GpuFramePipeline(name, stages, max_batch=max_batch)
        try:
            _prepare(pipeline, options)
        except BaseException:
            pipeline.close()
            raise
    # What CUDA says, above all that memory ran out.
    except (RuntimeError, TimeoutError) as error:
        raise BackendFailedError(name, f"{type(error).__name__}: {error}") from error
    return pipeline


def _prepare(pipeline: GpuFramePipeline, options: GpuOptions) -> None:
    n_measured = min(options.measure_batch, pipeline.max_batch)
    if options.warm_hw is not None:
        warm = [bucket for bucket in BUCKETS if bucket <= max(n_measured, 1)]
        pipeline.warm_up(options.warm_hw, warm)
    if n_measured:
        pipeline.calibrate(n_measured)
