"""What the application asks of the outside world."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

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
