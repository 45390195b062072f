"""Detectors of the service for single images: shared, one image at a time each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import numpy as np
from anyio import to_thread
from jaxtyping import UInt8

from pose_analyzer.backends import resolve_model
from pose_analyzer.on_demand import OnDemand
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.types import Pose

DetectorFactory = Callable[[str, Settings], PoseDetector]
"""Makes the detector of a model such as ``yolo11n-pose`` or ``mediapipe-full``."""


@dataclass(slots=True)
class _Shared:
    detector: PoseDetector
    busy: anyio.Lock = field(default_factory=anyio.Lock)


class DetectorPool:
    """Detectors by name, off the event loop. Those of different models do not wait for another."""

    def __init__(self, settings: Settings, factory: DetectorFactory) -> None:
        self._settings = settings
        self._detectors = OnDemand(lambda model: _Shared(factory(model, settings)))
        self._model_of: dict[str, str] = {}

    @property
    def loaded(self) -> tuple[PoseDetector, ...]:
        """Detectors in memory."""
        return tuple(shared.detector for shared in self._detectors.made)

    async def model_of(self, name: str) -> str:
        """Which model ``auto``, ``yolo`` or ``mediapipe`` means at present."""
        if name in self._model_of:
            return self._model_of[name]
        return await to_thread.run_sync(resolve_model, name, self._settings)

    async def detect(
        self, name: str, image_bgr: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[PoseDetector, list[Pose]]:
        """Find people with the detector of that name; also tell which one it is.

        Raises
        ------
        UnknownNameError, ModelUnavailableError, BackendFailedError
            From making or running the detector.
        """
        model = await self.model_of(name)
        shared = await self._detectors.get(model)
        self._model_of[name] = model  # not before: what `auto` means may change until then
        async with shared.busy:
            (poses,) = await to_thread.run_sync(shared.detector.detect, [image_bgr])
        return shared.detector, poses

    async def close(self) -> None:
        """Free all detectors."""
        for shared in self._detectors.made:
            async with shared.busy:
                await to_thread.run_sync(shared.detector.close)
        self._detectors.clear()
