"""From a detector's name to a detector that is ready."""

import ctypes
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Final

from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline, default_workers
from pose_analyzer.backends.mediapipe import MediaPipePoseDetector, Mode
from pose_analyzer.backends.onnx import OnnxBackend, export_onnx
from pose_analyzer.errors import ModelUnavailableError, UnknownNameError
from pose_analyzer.model_files import (
    MODELS,
    DownloadProgress,
    exported_onnx_path,
    fetch_model,
    locate_model,
)
from pose_analyzer.ports import ChunkDetector, FramePipeline, PoseDetector
from pose_analyzer.pose_detector import YOLOPoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.ultralytics_library import ultralytics_installed

AUTO: Final = "auto"
# Names of model files are names of detectors; the first three let the settings choose.
DETECTOR_NAMES: Final = (AUTO, "mediapipe", "yolo", *MODELS)
_MEDIAPIPE_PREFIX: Final = "mediapipe-"
_IMAGE_CONFIDENCE: Final = 0.5
_VIDEO_CONFIDENCE: Final = 0.25
_MODEL_SUFFIXES: Final = (".pt", ".onnx")


def create_detector(
    name: str,
    settings: Settings,
    *,
    mode: Mode = "video",
    n_people: int | None = None,
    progress: DownloadProgress | None = None,
) -> PoseDetector:
    """Make the detector of this name, downloading its model file if it is not here.

    YOLO runs in PyTorch on a CUDA machine, recordings there as live streams do, and in ONNX Runtime
    elsewhere, where the weights are exported on first use. ``auto`` takes YOLO (several people) if
    its weights are on this machine and can be run, else MediaPipe (one person); it never downloads
    YOLO weights, whose licence somebody must have chosen.

    Parameters
    ----------
    name
        One of `DETECTOR_NAMES`, or the path of a .pt or .onnx file.
    settings
        Model folders, cache folder and which variant ``yolo`` and ``mediapipe`` mean.
    mode
        ``video``: frames of one recording in order, with times. MediaPipe follows people between
        them; YOLO also reports weak detections, which continue a track but should not start one.
    n_people
        Find at most so many. None: as many as the detector can, which is one for MediaPipe.
    progress
        Shown the download.

    Raises
    ------
    UnknownNameError
        No such detector.
    ModelUnavailableError
        Its model file is neither here nor to be had.
    BackendFailedError
        It cannot be run on this machine.
    """
    model, path = _model(name, settings, progress)
    if path.suffix not in _MODEL_SUFFIXES:
        return MediaPipePoseDetector(path, name=model, mode=mode, n_people=n_people or 1)
    return _yolo(path, model, settings, mode, n_people)


def create_chunk_detector(
    name: str,
    settings: Settings,
    *,
    n_people: int | None = None,
    progress: DownloadProgress | None = None,
) -> ChunkDetector:
    """Make the detector of this name for videos that are analysed in chunks.

    As `create_detector` makes it for recordings, but MediaPipe forgets everybody at fixed times, so
    that no answer depends on where a chunk begins. YOLO's never do; on a GPU each image is a batch
    of its own, on a CPU it is for the caller to hand over one at a time.

    Parameters and errors as `create_detector`.
    """
    model, path = _model(name, settings, progress)
    if path.suffix not in _MODEL_SUFFIXES:
        return MediaPipePoseDetector(path, name=model, n_people=n_people or 1, restarting=True)
    return _yolo(path, model, settings, "video", n_people)


def check_detector(name: str) -> None:
    """Make sure that this may be a detector, without looking for any file.

    Raises
    ------
    UnknownNameError
        Neither one of `DETECTOR_NAMES` nor the path of a .pt or .onnx file.
    """
    if name not in DETECTOR_NAMES and Path(name).suffix not in _MODEL_SUFFIXES:
        raise UnknownNameError("detector", name, DETECTOR_NAMES)


def create_pipeline(model: str, settings: Settings) -> FramePipeline:
    """Make what detects people for many live streams at once.

    Parameters
    ----------
    model
        A model such as ``yolo11n-pose``; it is downloaded if it is not here.
    settings
        Model folders, and how YOLO runs on a GPU.

    Raises
    ------
    UnknownNameError, ModelUnavailableError, BackendFailedError
        As `create_detector`.
    """
    if model not in MODELS:
        raise UnknownNameError("detector", model, DETECTOR_NAMES)
    is_mediapipe = model.startswith(_MEDIAPIPE_PREFIX)
    if not is_mediapipe and ultralytics_installed() and _cuda_available():
        return _gpu_pipeline(fetch_model(model, settings), model, settings, live=True)
    return CpuFramePipeline(
        lambda: create_detector(model, settings),
        per_stream=is_mediapipe,
        n_workers=default_workers(model),
        max_pixels=settings.max_image_pixels,
    )


def resolve_model(name: str, settings: Settings) -> str:
    """Which model ``auto``, ``mediapipe`` or ``yolo`` means here; any other name as it is."""
    if name == AUTO:
        return _choose(settings)
    if name == "mediapipe":
        return _MEDIAPIPE_PREFIX + settings.mediapipe_variant
    return settings.yolo_variant if name == "yolo" else name


def _model(name: str, settings: Settings, progress: DownloadProgress | None) -> tuple[str, Path]:
    """Name and file of a model; only MediaPipe's files have none of `_MODEL_SUFFIXES`."""
    if Path(name).suffix in _MODEL_SUFFIXES:
        return Path(name).stem, _existing(Path(name))
    model = resolve_model(name, settings)
    if model not in MODELS:
        raise UnknownNameError("detector", model, DETECTOR_NAMES)
    return model, fetch_model(model, settings, progress)


def _choose(settings: Settings) -> str:
    """Pick what ``auto`` means on this machine."""
    try:
        weights = locate_model(settings.yolo_variant, settings)
    except ModelUnavailableError:
        return _MEDIAPIPE_PREFIX + settings.mediapipe_variant
    if ultralytics_installed() or exported_onnx_path(weights, settings).is_file():
        return settings.yolo_variant
    return _MEDIAPIPE_PREFIX + settings.mediapipe_variant


def _yolo(
    weights: Path, name: str, settings: Settings, mode: Mode, n_people: int | None
) -> ChunkDetector:
    confidence = _VIDEO_CONFIDENCE if mode == "video" else _IMAGE_CONFIDENCE
    config_dir = settings.cache_dir / "ultralytics"
    if weights.suffix == ".onnx":
        onnx = weights
    elif ultralytics_installed() and _cuda_available():
        if mode == "video":
            from pose_analyzer.backends.gpu.detector import PipelineDetector  # noqa: PLC0415

            # As live streams are analysed, so that both count the same.
            return PipelineDetector(_gpu_pipeline(weights, name, settings, live=False), n_people)
        # Imported late: PyTorch takes seconds and is not there without the extra `yolo`.
        from pose_analyzer.backends.yolo_torch import TorchBackend  # noqa: PLC0415

        torch_backend = TorchBackend(weights, config_dir, name=name, device="cuda:0")
        return YOLOPoseDetector(torch_backend, confidence=confidence, n_people=n_people)
    else:
        onnx = exported_onnx_path(weights, settings)
        if not onnx.is_file():
            export_onnx(weights, onnx, config_dir)
    backend = OnnxBackend(onnx, name=name)
    return YOLOPoseDetector(
        backend, confidence=confidence, n_people=n_people, fixed_hw=backend.fixed_hw
    )


def _gpu_pipeline(weights: Path, name: str, settings: Settings, *, live: bool) -> FramePipeline:
    # Imported late, as for `TorchBackend`.
    from pose_analyzer.backends.gpu.options import GpuOptions  # noqa: PLC0415
    from pose_analyzer.backends.gpu.pipeline import create_gpu_pipeline  # noqa: PLC0415

    options = GpuOptions(
        engine=settings.engine,
        half=settings.half,
        max_batch=settings.max_batch,
        confidence=_VIDEO_CONFIDENCE,
        max_pixels=settings.max_image_pixels,
        calibration_frames=settings.calibration_frames,
    )
    if not live:
        # One picture at a time, of a size not known yet; the rate is nobody's concern.
        options = replace(options, warm_hw=None, measure_batch=0)
    return create_gpu_pipeline(weights, name, settings.cache_dir / "ultralytics", options)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelUnavailableError(str(path), "There is no such file.")
    return path


def _cuda_available() -> bool:
    """Whether PyTorch sees a CUDA device; PyTorch is not imported where there is no driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415 - takes seconds

    return torch.cuda.is_available()
