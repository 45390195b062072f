"""YOLO pose weights -> a network that turns prepared images into people on its device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from jaxtyping import Float

from pose_analyzer.backends._ultralytics import load_pose_network
from pose_analyzer.backends.gpu.people import (
    DecodedHead,
    Head,
    RawHead,
    Suppress,
    check_against_decoded,
    find_people,
    suppress,
)
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.pose_detector import PAD_VALUE
from pose_analyzer.skeletons import N_KEYPOINTS

log = structlog.get_logger()

_TRIAL_HW: Final = (64, 96)
# In pixels of the network's input; decoding in another order of operations stays far below.
_DECODING_TOLERANCE_PX: Final = 1e-2


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How a network is run."""

    device: torch.device
    half: bool = True
    """FP16 weights and activations, on CUDA only; people are decoded in FP32 either way."""
    channels_last: bool = False
    """Keep activations in NHWC order."""
    tune: bool = False
    """Let cuDNN time its algorithms for each shape; a setting of the whole process."""
    confidence: float = 0.25
    """People below this score, 0..1, are left out."""
    iou: float = 0.45
    """Overlap above which the weaker of two boxes is a duplicate."""
    suppress: Suppress = suppress
    """How duplicates are dropped."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's input."""
        return torch.float16 if self.half and self.device.type == "cuda" else torch.float32


class PoseNetwork:
    """Images -> people, without any wait for the device.

    Parameters
    ----------
    module
        Prepared images -> output that `head` reads.
    head
        Reads it.
    options
        Device, precision, thresholds.
    """

    def __init__(
        self, module: Callable[[torch.Tensor], Any], head: Head, options: NetworkOptions
    ) -> None:
        self._module = module
        self._head = head
        self.options = options

    def new_input(self, n_images: int, hw: tuple[int, int]) -> Float[torch.Tensor, "n 3 h w"]:
        """Grey images to write to."""
        options = self.options
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        images = torch.empty(
            (n_images, 3, *hw), dtype=options.dtype, device=options.device, memory_format=layout
        )
        return images.fill_(PAD_VALUE / 255)

    @torch.inference_mode()
    def people(self, images: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n values"]:
        """People of each image, see `people.find_people`."""
        output = self._module(images)
        options = self.options
        return find_people(self._head, output, options.confidence, options.iou, options.suppress)

    def compiled(self) -> "PoseNetwork":
        """The same network through `torch.compile`, which works at the first call of a shape."""
        return PoseNetwork(torch.compile(self._module, dynamic=False), self._head, self.options)


def open_network(
    weights: Path, name: str, config_dir: Path, options: NetworkOptions
) -> PoseNetwork:
    """Open .pt weights, fused and in inference mode.

    A .pt file is a pickle: only weights of the official release or of the user's own making
    belong here, never an upload.

    Raises
    ------
    BackendFailedError
        Ultralytics is missing, the file is not a COCO-17 pose model, or there is no such device.
    """
    if options.device.type == "cuda" and not torch.cuda.is_available():
        raise BackendFailedError(name, "no CUDA device is available.")
    module = load_pose_network(weights, config_dir).model
    # YOLO26 has two heads; Ultralytics predicts and exports with the one that needs suppression
    # unless told otherwise, and fusing drops the other one.
    if hasattr(module, "end2end"):
        module.end2end = False
    module = module.fuse(verbose=False).eval().float()
    last = module.model[-1]
    if tuple(last.kpt_shape) != (N_KEYPOINTS, 3) or last.nc != 1:
        raise BackendFailedError(name, f"{weights} does not find people with 17 keypoints.")
    read = prepare_head(module)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    module = module.to(device=options.device, dtype=options.dtype, memory_format=layout)
    if options.device.type == "cuda":
        torch.backends.cudnn.benchmark = options.tune
        if options.dtype == torch.float32:
            # cuDNN would otherwise round FP32 inputs to TF32, no better than FP16.
            torch.backends.cudnn.allow_tf32 = False
    if isinstance(read, RawHead):
        return PoseNetwork(_Raw(module), read, options)
    return PoseNetwork(_Decoded(module), read, options)


def prepare_head(module: Any) -> Head:  # noqa: ANN401 - untyped library
    """Have an Ultralytics network hand out undecoded outputs, if we decode them as it does.

    Networks that are built another way keep decoding, in their own precision.
    """
    images = torch.rand((1, 3, *_TRIAL_HW), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = module(images)
        if not isinstance(output, tuple):
            return DecodedHead()
        decoded, raw = output
        last = module.model[-1]
        try:
            head = _raw_head(last)
            difference_px = check_against_decoded(head, raw, decoded)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            log.warning("head_not_decoded_in_fp32", reason=repr(error))
            return DecodedHead()
    if not difference_px < _DECODING_TOLERANCE_PX:
        log.warning("head_not_decoded_in_fp32", difference_px=difference_px)
        return DecodedHead()
    # What it would decode nobody reads.
    last._inference = _first_scores  # noqa: SLF001 - the hook between raw output and decoding
    return head


def _raw_head(last: Any) -> RawHead:  # noqa: ANN401 - untyped library
    is_26 = type(last).__name__ == "Pose26"
    return RawHead(
        n_bins=int(last.reg_max),
        strides_px=tuple(float(stride) for stride in last.stride),
        keypoint_scale=1.0 if is_26 else 2.0,
        keypoint_offset=0.0 if is_26 else -0.5,
    )


def _first_scores(raw: dict[str, torch.Tensor]) -> torch.Tensor:
    return raw["scores"]


class _Raw(torch.nn.Module):
    """The dictionary of undecoded outputs, whose first companion is ignored."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        raw: dict[str, Any] = self.module(images)[1]
        return raw


class _Decoded(torch.nn.Module):
    """The decoded output, which may have undecoded companions."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.module(images)
        decoded: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return decoded
