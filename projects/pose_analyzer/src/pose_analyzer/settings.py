"""Settings of the pose analyzer, read from ``POSE_…`` variables.

| variable | meaning |
| --- | --- |
| POSE_MODEL_PATH | folders searched for model files before anything is downloaded |
| POSE_MODEL_DIR | where downloaded models go |
| POSE_CLIPS_DIR | where downloaded sample clips go |
| POSE_CACHE_DIR | what can be made again, such as exported networks |
| POSE_EXERCISES_DIR | exercise definitions to use in place of the built-in ones |
| POSE_REFERENCES_DIR | references of good form to use in place of the built-in ones |
| POSE_FAULTS_DIR | rules about faults to use in place of the built-in ones |
| POSE_COACHING_DIR | what the coach says, in place of the built-in texts |
| POSE_LANGUAGE | in which it speaks where none is asked for |
| POSE_TAUGHT_REFERENCES_DIR | where taught references go |
| POSE_DETECTOR, POSE_YOLO_VARIANT, POSE_MEDIAPIPE_VARIANT | detectors used when none is named |
| POSE_MAX_UPLOAD_BYTES, POSE_MAX_IMAGE_PIXELS | what the service accepts |
| POSE_STREAM_MAX_FRAME_BYTES | largest picture accepted on a stream |
| POSE_STREAM_GRACE_S | for so long a stream outlives its connection |
| POSE_STREAM_RESULTS_KEPT | recent answers kept for each stream |
| POSE_MAX_STREAMS, POSE_MIN_STREAM_FPS | when the service is full |
| POSE_ALLOWED_SOURCES | what it may read itself: folders, rtsp:// addresses; commas between |
| POSE_ANALYSIS_PROCESSES | processes that follow people; 0: a thread of the service |
| POSE_ENGINE, POSE_HALF, POSE_MAX_BATCH | how YOLO runs on a GPU |
| POSE_CALIBRATION_FRAMES | pictures with which TensorRT is calibrated for INT8 |
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import platformdirs
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import NoDecode, SettingsConfigDict

from shared_utils.settings import ProjectSettings, SearchPath, checkout_dir
from shared_utils.units import BYTES_PER_MIB

CHECKOUT_DIR: Final = checkout_dir(__file__)
"""Root of the repository when running from a checkout, else None."""


def _data_dir(name: str) -> Path:
    if CHECKOUT_DIR is not None:
        return CHECKOUT_DIR / "data" / name
    return platformdirs.user_cache_path("pose_analyzer", appauthor=False) / name


def _config_dir(name: str, packaged: str) -> Path:
    # Wheels carry a copy of config/, put there by hatch_build.py.
    package = Path(__file__).parent / packaged
    return CHECKOUT_DIR / "config" / name if CHECKOUT_DIR is not None else package


def _exercises_dir() -> Path:
    return _config_dir("exercises", "exercise_files")


def _faults_dir() -> Path:
    return _config_dir("faults", "fault_rule_files")


def _coaching_dir() -> Path:
    return _config_dir("coaching", "coaching_files")


def _references_dir() -> Path:
    # As with the exercises.
    package = Path(__file__).parent / "pose_reference_files"
    return CHECKOUT_DIR / "data" / "pose_references" if CHECKOUT_DIR is not None else package


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


class Settings(ProjectSettings):
    """Everything a user may set about the pose analyzer."""

    model_config = SettingsConfigDict(env_prefix="POSE_")

    model_path: SearchPath = ()
    model_dir: Path = Field(default_factory=lambda: _data_dir("models"))
    clips_dir: Path = Field(default_factory=lambda: _data_dir("test_videos"))
    cache_dir: Path = Field(default_factory=lambda: _data_dir("cache"))
    exercises_dir: Path = Field(default_factory=_exercises_dir)
    references_dir: Path = Field(default_factory=_references_dir)
    faults_dir: Path = Field(default_factory=_faults_dir)
    coaching_dir: Path = Field(default_factory=_coaching_dir)
    language: str = "en"
    taught_references_dir: Path = Field(default_factory=lambda: _data_dir("taught_references"))

    detector: str = "auto"
    yolo_variant: str = "yolo11n-pose"
    mediapipe_variant: Literal["lite", "full", "heavy"] = "full"

    max_upload_bytes: PositiveInt = 20 * BYTES_PER_MIB
    # A small file may decode to a huge image; 64 million pixels take 192 MB as 8-bit RGB.
    max_image_pixels: PositiveInt = 64_000_000

    stream_max_frame_bytes: PositiveInt = 8 * BYTES_PER_MIB
    stream_grace_s: PositiveFloat = 30.0
    stream_results_kept: PositiveInt = 300
    max_streams: PositiveInt | None = None
    min_stream_fps: PositiveFloat = 8.0
    allowed_sources: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = ()
    analysis_processes: NonNegativeInt | None = None
    """None: by the number of cores."""

    engine: Literal["cuda_graph", "eager", "compile", "tensorrt"] = "cuda_graph"
    half: bool = True
    calibration_frames: Path | None = None
    max_batch: PositiveInt = 64
