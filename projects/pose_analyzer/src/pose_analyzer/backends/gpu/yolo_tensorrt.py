"""YOLO pose networks in TensorRT, by Ultralytics' export; needs the package tensorrt."""

import contextlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from pose_analyzer.backends._ultralytics import load_pose_network
from pose_analyzer.backends.gpu.people import DecodedHead
from pose_analyzer.backends.gpu.yolo_network import NetworkOptions, PoseNetwork
from pose_analyzer.errors import BackendFailedError

_IMAGE_SIZE_PX: Final = 640


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Which TensorRT engine is wanted."""

    max_batch: int
    calibration_frames: Path | None = None
    """Folder of typical pictures: compute in INT8, with ranges measured on them."""


def tensorrt_missing() -> str | None:
    """Why TensorRT cannot run here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is missing"
    return None


def open_tensorrt(
    weights: Path, name: str, config_dir: Path, options: NetworkOptions, plan: EnginePlan
) -> PoseNetwork:
    """Build the engine if it is not there yet, which takes minutes, and load it.

    Raises
    ------
    BackendFailedError
        It cannot be built or loaded here.
    """
    quantize = 8 if plan.calibration_frames is not None else (16 if options.half else 32)
    folder = config_dir / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    capability = "".join(str(part) for part in torch.cuda.get_device_capability(options.device))
    target = folder / f"{weights.stem}-q{quantize}-b{plan.max_batch}-sm{capability}.engine"
    try:
        if not target.is_file():
            _build(weights, target, config_dir, quantize, plan)
        return PoseNetwork(_Engine(target, options.device), DecodedHead(), options)
    # TensorRT and Ultralytics raise almost anything, and all of it means the same here.
    except Exception as error:
        raise BackendFailedError(name, f"no TensorRT engine: {error}") from error


def _build(weights: Path, target: Path, config_dir: Path, quantize: int, plan: EnginePlan) -> None:
    # Ultralytics writes beside the weights, which may lie in a read-only folder.
    copy = target.with_suffix(".pt")
    shutil.copyfile(weights, copy)
    arguments: dict[str, Any] = {}
    if plan.calibration_frames is not None:
        arguments["data"] = str(_calibration_data(target, plan.calibration_frames))
    # Its exporter reports on stdout, which belongs to our own output.
    with contextlib.redirect_stdout(sys.stderr):
        model = load_pose_network(copy, config_dir)
        if hasattr(model.model, "end2end"):
            model.model.end2end = False
        exported = model.export(
            format="engine",
            quantize=quantize,
            dynamic=True,
            batch=plan.max_batch,
            imgsz=_IMAGE_SIZE_PX,
            device=0,
            verbose=False,
            **arguments,
        )
    Path(exported).replace(target)
    copy.unlink()


def _calibration_data(target: Path, frames: Path) -> Path:
    """Describe a folder of pictures as Ultralytics wants a data set; JSON is YAML, too."""
    description = target.with_suffix(".yaml")
    folder = str(frames.resolve())
    content = {
        "path": folder,
        "train": folder,
        "val": folder,
        "names": {0: "person"},
        "kpt_shape": [17, 3],
    }
    description.write_text(json.dumps(content), encoding="utf-8")
    return description


class _Engine:
    """Runs an engine file on images of any size it was built for."""

    def __init__(self, path: Path, device: torch.device) -> None:
        from ultralytics.nn.autobackend import AutoBackend  # noqa: PLC0415 - optional extra

        self._backend = AutoBackend(model=str(path), device=device, verbose=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        # It runs on the default stream, which knows nothing of this one.
        torch.cuda.current_stream().synchronize()
        wanted = images.half() if self._backend.fp16 else images.float()
        output = self._backend(wanted.contiguous())
        torch.cuda.synchronize()
        decoded: torch.Tensor = output[0] if isinstance(output, list | tuple) else output
        return decoded
