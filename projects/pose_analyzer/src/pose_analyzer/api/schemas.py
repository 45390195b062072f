"""What the service answers. Image coordinates are pixels of the upright image, y down."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from pose_analyzer.background_database import DatabaseState
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.types import JointAngles, Pose


def _nan_to_none(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


MaybeFloat = Annotated[float | None, BeforeValidator(_nan_to_none)]
"""JSON has no NaN: what is not known is null."""


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Keypoint(Answer):
    """One of the 17 COCO keypoints."""

    name: str
    x_px: MaybeFloat
    y_px: MaybeFloat
    confidence: MaybeFloat


class Angle(Answer):
    """One joint angle in the image plane, or in space for `Person.angles_3d`."""

    name: str
    value_deg: MaybeFloat
    sd_deg: MaybeFloat
    trusted: bool
    """False where this view or the keypoints' confidence cannot show the angle."""


class Person(Answer):
    """One person in the image."""

    score: float
    box_px: tuple[float, float, float, float]
    """x0, y0, x1, y1."""
    keypoints: list[Keypoint]
    angles: list[Angle]
    angles_3d: list[Angle] | None
    """From MediaPipe's world landmarks; null with other detectors."""

    @classmethod
    def of(cls, pose: Pose, angles: JointAngles, angles_3d: JointAngles | None) -> "Person":
        """Put a pose and its angles into words."""
        points = zip(
            KEYPOINT_NAMES, pose.keypoints_px.tolist(), pose.confidences.tolist(), strict=True
        )
        x0_px, y0_px, x1_px, y1_px = pose.box_px.tolist()
        return cls(
            score=pose.score,
            box_px=(x0_px, y0_px, x1_px, y1_px),
            keypoints=[
                Keypoint(name=name, x_px=x_px, y_px=y_px, confidence=confidence)
                for name, (x_px, y_px), confidence in points
            ],
            angles=_angles(angles),
            angles_3d=None if angles_3d is None else _angles(angles_3d),
        )


class Detection(Answer):
    """Answer of ``POST /detect``."""

    detector: str
    """The model that was used, also when ``auto`` was asked for."""
    device: str
    width_px: int
    height_px: int
    people: list[Person]
    """Best first; empty when nobody is seen."""


class ModelInfo(Answer):
    """A model file as this machine has it."""

    name: str
    licence: str
    state: str


class Gpu(Answer):
    """One NVIDIA GPU; null is what its driver does not tell."""

    index: int
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    driver_version: str | None


class LoadedDetector(Answer):
    """A detector in memory."""

    name: str
    device: str


class DatabaseHealth(Answer):
    """Whether sessions and videos can be kept."""

    state: DatabaseState
    reason: str | None
    """What is wrong and what to do; null when it is ``ok``."""


class FilesHealth(Answer):
    """Whether videos and their results can be kept."""

    state: Literal["ok", "unavailable"]
    """S3 is not asked: ``ok`` then means that a bucket is named."""
    reason: str | None


class Health(Answer):
    """Answer of ``GET /health``."""

    status: str
    versions: dict[str, str | None]
    """Installed packages; null where an optional one is absent."""
    device: str
    """``cuda`` when a GPU driver is present, else ``cpu``; each detector names its own."""
    gpus: Sequence[Gpu]
    detectors: Sequence[LoadedDetector]
    """Loaded so far: each is loaded when first asked for."""
    models: Sequence[ModelInfo]
    database: DatabaseHealth
    files: FilesHealth


def _angles(angles: JointAngles) -> list[Angle]:
    columns = zip(
        ANGLE_NAMES,
        angles.values_deg.tolist(),
        angles.sd_deg.tolist(),
        angles.trusted.tolist(),
        strict=True,
    )
    return [
        Angle(name=name, value_deg=value_deg, sd_deg=sd_deg, trusted=trusted)
        for name, value_deg, sd_deg, trusted in columns
    ]
