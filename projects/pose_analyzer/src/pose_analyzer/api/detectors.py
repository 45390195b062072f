"""Detectors of the service: made when first asked for, then shared, one image at a time each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import numpy as np
from anyio import to_thread
from jaxtyping import UInt8

from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.types import Pose

DetectorFactory = Callable[[str, Settings], PoseDetector]
"""Makes the detector for a name such as ``auto``, ``yolo`` or ``mediapipe-full``."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    detector: PoseDetector
    busy: anyio.Lock = field(default_factory=anyio.Lock)


class DetectorPool:
    """Detectors by name, off the event loop."""

    def __init__(self, settings: Settings, factory: DetectorFactory) -> None:
        self._settings = settings
        self._factory = factory
        self._loaded: dict[str, _Loaded] = {}
        self._model_of: dict[str, str] = {}
        self._loading = anyio.Lock()

    @property
    def loaded(self) -> tuple[PoseDetector, ...]:
        """Detectors in memory."""
        return tuple(entry.detector for entry in self._loaded.values())

    async def detect(
        self, name: str, image_bgr: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[PoseDetector, list[Pose]]:
        """Find people with the detector of that name; also tell which one it is.

        Raises
        ------
        UnknownNameError, ModelUnavailableError, BackendFailedError
            From making or running the detector.
        """
        entry = await self._get(name)
        async with entry.busy:
            (poses,) = await to_thread.run_sync(entry.detector.detect, [image_bgr])
        return entry.detector, poses

    async def close(self) -> None:
        """Free all detectors."""
        for entry in self._loaded.values():
            async with entry.busy:
                await to_thread.run_sync(entry.detector.close)
        self._loaded.clear()

    async def _get(self, name: str) -> _Loaded:
        async with self._loading:
            model = self._model_of.get(name, name)
            if model not in self._loaded:
                model = await self._load(name)
            return self._loaded[model]

    async def _load(self, name: str) -> str:
        """Load a detector and return its model; two names of one model share a detector."""
        detector = await to_thread.run_sync(self._factory, name, self._settings)
        self._model_of[name] = detector.name
        if detector.name in self._loaded:
            await to_thread.run_sync(detector.close)
        else:
            self._loaded[detector.name] = _Loaded(detector)
        return detector.name
