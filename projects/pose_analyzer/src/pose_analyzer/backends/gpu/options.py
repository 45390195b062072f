"""How YOLO is run on a GPU, and everything opened that takes."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from pose_analyzer.backends.gpu.images import PictureDecoder
from pose_analyzer.backends.gpu.stages import DetectionStages, Fault
from pose_analyzer.backends.gpu.yolo_cuda_graph import BUCKETS
from pose_analyzer.backends.gpu.yolo_engines import Engine, NetworkFile, open_kernels, open_runner
from pose_analyzer.backends.gpu.yolo_network import NetworkOptions
from pose_analyzer.backends.gpu.yolo_tensorrt import EnginePlan

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How YOLO runs on a GPU."""

    device: str = "cuda:0"
    """``cpu`` runs the same code without graphs and streams, slowly."""
    engine: Engine = "cuda_graph"
    half: bool = True
    """Compute in FP16."""
    max_batch: int = 64
    """Most frames at once; more than 64 bring nothing."""
    confidence: float = 0.25
    """People below this score, 0..1, are left out."""
    iou: float = 0.45
    """Overlap above which the weaker of two people is a duplicate."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused before they are decoded."""
    channels_last: bool = True
    """Order of the feature maps in memory; faster on an H200 at every batch."""
    tune: bool = False
    """Let cuDNN time its algorithms for each shape."""
    calibration_frames: Path | None = None
    """Folder of typical pictures, with which TensorRT computes in INT8."""
    warm_hw: tuple[int, int] | None = (1080, 1920)
    """Size of pictures to be ready for at once; None: graphs are captured when first needed."""
    measure_batch: int = 8
    """Frames in the batches that measure the rate at the start; 0: it is not measured."""


def open_stages(
    weights: Path,
    name: str,
    config_dir: Path,
    options: GpuOptions,
    fault: Fault | None = None,
) -> DetectionStages:
    """Open the network, and what turns frames into its input; see `create_gpu_pipeline`."""
    device = torch.device(options.device)
    decoder = PictureDecoder(device, options.max_pixels)
    network = NetworkOptions(
        device=device,
        half=options.half,
        channels_last=options.channels_last,
        tune=options.tune,
        confidence=options.confidence,
        iou=options.iou,
    )
    # Triton's kernels and captures go to the current device.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernels = open_kernels(network)
        file = NetworkFile(
            weights,
            name,
            config_dir,
            replace(network, suppress=kernels.suppress),
            EnginePlan(min(options.max_batch, BUCKETS[-1]), options.calibration_frames),
            decoder.lock,
        )
        runner = open_runner(options.engine, file)
        log.info("detector_opened", detector=name, device=options.device, engine=runner.engine)
        return DetectionStages(runner, decoder, kernels.letterboxer, fault)
