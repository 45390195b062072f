"""Detectors of the service: made when first asked for, then shared, one image at a time each."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import numpy as np
from anyio import to_thread
from jaxtyping import UInt8

from pose_analyzer.backends import resolve_model
from pose_analyzer.errors import BackendFailedError, ModelUnavailableError
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.types import Pose

RETRY_AFTER_S: Final = 10.0
"""How long a detector that could not be had is refused without trying again."""

DetectorFactory = Callable[[str, Settings], PoseDetector]
"""Makes the detector of a model such as ``yolo11n-pose`` or ``mediapipe-full``."""


@dataclass(slots=True)
class _Slot:
    """One model: its detector once that is loaded, or why it last could not be."""

    busy: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while the detector loads or works."""
    detector: PoseDetector | None = None
    failure: ModelUnavailableError | BackendFailedError | None = None
    failed_at_s: float = 0.0
    """By the monotonic clock."""


class DetectorPool:
    """Detectors by name, off the event loop. Those of different models do not wait for another."""

    def __init__(self, settings: Settings, factory: DetectorFactory) -> None:
        self._settings = settings
        self._factory = factory
        self._slots: dict[str, _Slot] = {}
        self._model_of: dict[str, str] = {}

    @property
    def loaded(self) -> tuple[PoseDetector, ...]:
        """Detectors in memory."""
        slots = tuple(self._slots.values())
        return tuple(slot.detector for slot in slots if slot.detector is not None)

    async def detect(
        self, name: str, image_bgr: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[PoseDetector, list[Pose]]:
        """Find people with the detector of that name; also tell which one it is.

        Raises
        ------
        UnknownNameError, ModelUnavailableError, BackendFailedError
            From making or running the detector.
        """
        model = self._model_of.get(name)
        if model is None:
            model = await to_thread.run_sync(resolve_model, name, self._settings)
        slot = self._slots.setdefault(model, _Slot())
        async with slot.busy:
            detector = slot.detector or await self._load(model, slot)
            self._model_of[name] = model  # not before: what `auto` means may change until then
            (poses,) = await to_thread.run_sync(detector.detect, [image_bgr])
        return detector, poses

    async def close(self) -> None:
        """Free all detectors."""
        for slot in self._slots.values():
            async with slot.busy:
                if slot.detector is not None:
                    await to_thread.run_sync(slot.detector.close)
        self._slots.clear()

    async def _load(self, model: str, slot: _Slot) -> PoseDetector:
        if slot.failure is not None and time.monotonic() < slot.failed_at_s + RETRY_AFTER_S:
            # Each failed attempt may cost a download's timeouts. The traceback would grow.
            raise slot.failure.with_traceback(None)
        try:
            slot.detector = await to_thread.run_sync(self._factory, model, self._settings)
        except (ModelUnavailableError, BackendFailedError) as error:
            slot.failure, slot.failed_at_s = error, time.monotonic()
            raise
        slot.failure = None
        return slot.detector
