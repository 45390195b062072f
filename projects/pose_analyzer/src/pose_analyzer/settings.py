"""Settings of the pose analyzer, read from ``POSE_…`` variables.

| variable | meaning |
| --- | --- |
| POSE_MODEL_PATH | folders searched for model files before anything is downloaded |
| POSE_MODEL_DIR | where downloaded models go |
| POSE_CLIPS_DIR | where downloaded sample clips go |
| POSE_CACHE_DIR | what can be made again, such as exported networks |
| POSE_EXERCISES_DIR | exercise definitions to use in place of the built-in ones |
| POSE_DETECTOR, POSE_YOLO_VARIANT, POSE_MEDIAPIPE_VARIANT | detectors used when none is named |
| POSE_MAX_UPLOAD_BYTES, POSE_MAX_IMAGE_PIXELS | what the service accepts |
"""

from pathlib import Path
from typing import Final, Literal

import platformdirs
from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict

from shared_utils.settings import ProjectSettings, SearchPath, checkout_dir
from shared_utils.units import BYTES_PER_MIB

CHECKOUT_DIR: Final = checkout_dir(__file__)
"""Root of the repository when running from a checkout, else None."""


def _data_dir(name: str) -> Path:
    if CHECKOUT_DIR is not None:
        return CHECKOUT_DIR / "data" / name
    return platformdirs.user_cache_path("pose_analyzer", appauthor=False) / name


def _exercises_dir() -> Path:
    # Wheels carry a copy of config/exercises, put there by hatch_build.py.
    package = Path(__file__).parent / "exercise_files"
    return CHECKOUT_DIR / "config" / "exercises" if CHECKOUT_DIR is not None else package


class Settings(ProjectSettings):
    """Everything a user may set about the pose analyzer."""

    model_config = SettingsConfigDict(env_prefix="POSE_")

    model_path: SearchPath = ()
    model_dir: Path = Field(default_factory=lambda: _data_dir("models"))
    clips_dir: Path = Field(default_factory=lambda: _data_dir("test_videos"))
    cache_dir: Path = Field(default_factory=lambda: _data_dir("cache"))
    exercises_dir: Path = Field(default_factory=_exercises_dir)

    detector: str = "auto"
    yolo_variant: str = "yolo11n-pose"
    mediapipe_variant: Literal["lite", "full", "heavy"] = "full"

    max_upload_bytes: PositiveInt = 20 * BYTES_PER_MIB
    # A small file may decode to a huge image; 64 million pixels take 192 MB as 8-bit RGB.
    max_image_pixels: PositiveInt = 64_000_000
