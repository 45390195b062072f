"""What the application asks of the outside world."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol, runtime_checkable
from uuid import UUID

import numpy as np
from jaxtyping import Float32, UInt8

from pose_analyzer.form_types import NO_CHOICE, FormChoice
from pose_analyzer.session_records import SessionRecord
from pose_analyzer.stream_types import (
    AnalysedFrame,
    DropCause,
    Encoding,
    FrameContent,
    FrameOutcome,
    StreamFrame,
    StreamOptions,
    StreamState,
)
from pose_analyzer.types import Frame, Pose, SourceInfo


@runtime_checkable
class PoseDetector(Protocol):
    """Finds people and their keypoints in images."""

    @property
    def name(self) -> str:
        """Model as the user names it, such as ``yolo11n-pose`` or ``mediapipe-lite``."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        ...

    def detect(
        self,
        images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        times_s: Sequence[float] | None = None,
    ) -> list[list[Pose]]:
        """Find the people in each image, best first.

        Parameters
        ----------
        images_bgr
            Images of one source, in order; sizes may differ.
        times_s
            Their times. Needed, and strictly increasing, by detectors that track between frames.

        Returns
        -------
        list of list of Pose
            One list per image, empty where nobody is seen; coordinates in pixels of that image.
        """
        ...

    def close(self) -> None:
        """Free the model; the detector is not used afterwards."""
        ...


@runtime_checkable
class ChunkDetector(PoseDetector, Protocol):
    """A detector whose answers do not depend on where a chunk begins.

    It may follow people between frames, but forgets everybody whenever a multiple of
    `video_chunking.RESTART_S` passes.
    """

    def restart(self) -> None:
        """Forget everybody now: frames of another chunk, perhaps of another video, follow."""
        ...


@runtime_checkable
class InferenceBackend(Protocol):
    """Runs one pose network on prepared images, whatever executes it."""

    @property
    def name(self) -> str:
        """Model as the user names it."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        ...

    def infer(
        self, batch: Float32[np.ndarray, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch rows columns"]:
        """Raw network output for RGB images scaled to 0..1, height and width multiples of 32."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class FrameSource(Protocol):
    """Frames of one camera or file, in time order."""

    @property
    def info(self) -> SourceInfo:
        """Facts of the container."""
        ...

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong so far, such as a truncated end; complete once frames are exhausted."""
        ...

    def frames(self, sample_fps: float | None = None) -> Iterator[Frame]:
        """Decoded frames, at most `sample_fps` per second of source time (None: all)."""
        ...


@runtime_checkable
class FrameReceiver(Protocol):
    """Who gets the frames of a source; called from its threads, one call at a time."""

    def on_rate(self, fps: float) -> None:
        """Average frame rate of a file, told before its first frame; NaN when unknown."""
        ...

    def on_frame(self, time_s: float, content: FrameContent) -> None:
        """Next frame. A file waits until this returns; with a camera it must return at once."""
        ...

    def on_problem(self, problem: str | None) -> None:
        """Tell that the camera is lost, and why; None: it is back."""
        ...

    def on_end(self, problem: str | None) -> None:
        """No more frames; with what was wrong, if anything. Not called after `close`."""
        ...


@runtime_checkable
class SourceReader(Protocol):
    """Reads frames in a thread of its own and hands them to a `FrameReceiver`."""

    def start(self) -> None:
        """Begin to read."""
        ...

    def close(self) -> None:
        """Stop; returns soon, whatever the source does."""
        ...


@runtime_checkable
class FramePipeline(Protocol):
    """Detects people in frames of many streams, several batches in progress at once.

    Whatever it runs on, each submitted frame gets one outcome. Memory that ran out, or one bad
    picture, is an outcome of the frames concerned, never an exception.
    """

    @property
    def name(self) -> str:
        """Model as the user names it."""
        ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        ...

    @property
    def max_batch(self) -> int:
        """Most frames it takes at once, at present."""
        ...

    @property
    def max_in_flight_per_stream(self) -> int:
        """Most unanswered frames of one stream; 1 where frames could overtake each other."""
        ...

    def n_idle(self) -> int:
        """How many batches it would begin at once; thread-safe and quick."""
        ...

    def on_idle(self, call: Callable[[], None]) -> None:
        """Have this called, from any thread, whenever `n_idle` has grown."""
        ...

    def submit(self, frames: Sequence[StreamFrame]) -> "Future[list[FrameOutcome]]":
        """Begin a batch; of at most `max_batch` frames, one at least.

        Returns
        -------
        Future
            One outcome per frame, in order; or `BackendFailedError` if the detector broke.
        """
        ...

    def limit_batch(self, n_frames: int) -> None:
        """Take at most so many frames at once from now on, and free what larger batches held."""
        ...

    def frames_per_second(self) -> float:
        """Measured rate at full load: from the start-up measurement, then from real batches."""
        ...

    def forget(self, stream_id: str) -> None:
        """Free what is kept of a stream."""
        ...

    def close(self) -> None:
        """Finish what is in progress and free everything."""
        ...


@runtime_checkable
class LiveAnalysis(Protocol):
    """Sessions of live streams, wherever they run. Frames of one stream come in order."""

    def open(
        self,
        stream_id: str,
        exercise: str,
        form: FormChoice = NO_CHOICE,
        *,
        with_rows: bool = False,
    ) -> None:
        """Begin a session; ``auto`` or the name of an exercise, and what form is judged by.

        `with_rows`: its answers carry rows and finished repetitions.
        """
        ...

    def change_exercise(self, stream_id: str, exercise: str) -> None:
        """Count another exercise from the next frame on; the people stay who they are."""
        ...

    def analyse(
        self,
        stream_id: str,
        frame_index: int,
        time_s: float,
        poses: Sequence[Pose],
        encoding: Encoding,
    ) -> "Future[AnalysedFrame]":
        """Follow everybody one frame further; `send` must follow."""
        ...

    def send(self) -> None:
        """Pass on what was asked since the last time."""
        ...

    def rehearse(self, stream_id: str) -> None:
        """Prepare for the stream's next frame, which is with the detector; changes no answer."""
        ...

    def has_room(self, stream_id: str) -> bool:
        """Whether the stream's analysis keeps up; if not, its frames had better wait."""
        ...

    def end(self, stream_id: str) -> "Future[bytes] | None":
        """Forget a session; the repetitions not yet told, if it was opened with rows."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class RecordSink(Protocol):
    """Keeps what sessions leave behind; must be quick and never fail."""

    def put(self, record: SessionRecord) -> None:
        """Have this written soon; from any thread."""
        ...


@runtime_checkable
class FileStore(Protocol):
    """Where files of sessions are, as far as deleting them goes."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete every file whose key begins so; done again, it does no harm."""
        ...


@runtime_checkable
class StreamRecording(Protocol):
    """What is kept of one live stream."""

    @property
    def session_id(self) -> UUID:
        """Of its session."""
        ...

    def add(self, frame: StreamFrame, analysed: AnalysedFrame) -> None:
        """Keep what one frame showed; must be quick."""
        ...

    def close(self, last: bytes) -> None:
        """No more frames; with the repetitions not yet told."""
        ...


@runtime_checkable
class StreamRecorder(Protocol):
    """Begins to keep a stream."""

    def begin(self, stream_id: str, options: StreamOptions, detector: str) -> StreamRecording:
        """Begin a session for a stream that starts now."""
        ...


@runtime_checkable
class StreamMetrics(Protocol):
    """Is told what happens to frames and streams; must be quick and never fail."""

    def answered(self, stages_s: dict[str, float], total_s: float, n_new_repetitions: int) -> None:
        """One frame was answered; seconds by stage, and from received to answered."""
        ...

    def dropped(self, cause: DropCause) -> None:
        """One frame will get no answer."""
        ...

    def batch(self, n_frames: int) -> None:
        """A batch was begun."""
        ...

    def streams(self, by_state: dict[StreamState, int]) -> None:
        """How many streams there are now."""
        ...

    def governed(self, action: str) -> None:
        """The governor acted: ``shrink``, ``grow``, ``shed``, ``resume`` or ``refuse``."""
        ...

    def gpu_memory(self, used_bytes: int, total_bytes: int) -> None:
        """The governor's latest reading."""
        ...
