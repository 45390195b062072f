"""Recordings through the pipeline of live streams, so that both see the same people."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from jaxtyping import UInt8

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.ports import FramePipeline
from pose_analyzer.stream_types import FrameFailure, FrameOutcome, StreamFrame
from pose_analyzer.types import Pose


class PipelineDetector:
    """Implements `ports.PoseDetector` with a pipeline that keeps nothing of a stream.

    Parameters
    ----------
    pipeline
        Closed together with this.
    n_people
        Find at most so many; None: as many as the pipeline can.
    """

    def __init__(self, pipeline: FramePipeline, n_people: int | None = None) -> None:
        self._pipeline = pipeline
        self._n_people = n_people

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._pipeline.name

    @property
    def device(self) -> str:
        """``cuda:0``, or ``cpu``."""
        return self._pipeline.device

    def detect(
        self,
        images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        times_s: Sequence[float] | None = None,  # noqa: ARG002 - nobody is followed here
    ) -> list[list[Pose]]:
        """Find the people in each image, best first.

        Each image is a batch of its own, as in FP16 the last bits depend on the size of the batch;
        while one is in the network the next is prepared.

        Raises
        ------
        BackendFailedError
            The detector broke, or an image does not fit into the GPU's memory.
        """
        answers = [
            self._pipeline.submit([StreamFrame("", 0, 0.0, 0.0, image)]) for image in images_bgr
        ]
        return [self._poses(answer) for answer in answers]

    def restart(self) -> None:
        """Nothing to do: nobody is followed here."""

    def close(self) -> None:
        """Free the model."""
        self._pipeline.close()

    def _poses(self, answer: "Future[list[FrameOutcome]]") -> list[Pose]:
        outcome: FrameOutcome
        (outcome,) = answer.result()
        if isinstance(outcome, FrameFailure):
            raise BackendFailedError(self.name, outcome.detail)
        return outcome.poses[: self._n_people]
