"""Pictures of any size on any device -> the network's input, to the bit as OpenCV resizes them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pose_analyzer.pose_detector import PAD_VALUE, Letterbox

_WEIGHT_ONE: Final = 2048  # OpenCV's bilinear weights have 11 bits
_N_TABLE_COLUMNS: Final = 10
_BLOCK_PIXELS: Final = 512


class Letterboxer:
    """Resizes, pads and scales pictures to 0..1.

    Parameters
    ----------
    kernel
        `kernels.letterbox_kernel`; None to do it in single steps, one picture after the other.
    """

    def __init__(self, kernel: Any = None) -> None:  # noqa: ANN401 - triton has no types
        self._kernel = kernel

    def fill(
        self,
        pictures: Sequence[UInt8[torch.Tensor, "3 _ _"]],
        boxes: Sequence[Letterbox],
        batch: Float[torch.Tensor, "batch 3 height width"],
    ) -> None:
        """Write every picture to its place in `batch`; all `boxes` have the same padded size.

        With the kernel the pictures must live until the current stream has passed this point.
        """
        if self._kernel is None:
            for picture, box, planes in zip(pictures, boxes, batch, strict=True):
                letterbox(picture, box, planes)
            return
        rows = [
            (
                picture.data_ptr(),
                *picture.stride(),
                *box.image_hw,
                *box.resized_hw,
                box.top_px,
                box.left_px,
            )
            for picture, box in zip(pictures, boxes, strict=True)
        ]
        height, width = batch.shape[2:]
        grid = (-(-height * width // _BLOCK_PIXELS), len(pictures))
        self._kernel[grid](
            _upload(rows, batch.device),
            batch,
            *batch.stride(),
            height,
            width,
            PAD_VALUE,
            _N_TABLE_COLUMNS,
            _BLOCK_PIXELS,
        )


def letterbox(
    picture: UInt8[torch.Tensor, "3 _ _"],
    box: Letterbox,
    planes: Float[torch.Tensor, "3 height width"],
) -> None:
    """Do what `pose_detector.fill_batch` does, on any device, for one RGB picture.

    Nothing of the picture's own size is made but 8-bit rows. Arithmetic and rounding are those of
    ``cv2.resize(..., INTER_LINEAR)`` for 8-bit images (OpenCV 4 and 5, modules/imgproc/src/
    resize.cpp): weights of 11 bits, sums shifted by 4, 16 and 2 bits.
    """
    resized_h, resized_w = box.resized_hw
    height, width = box.image_hw
    y, weights_y = _taps(resized_h, height, picture.device)
    x, weights_x = _taps(resized_w, width, picture.device)
    outside = (x < 0) | (x >= width - 1)
    weights_x[0][outside], weights_x[1][outside] = _WEIGHT_ONE, 0
    y0, y1 = y.clamp(0, height - 1), (y + 1).clamp(0, height - 1)
    x0, x1 = x.clamp(0, width - 1), (x + 1).clamp(0, width - 1)

    def mixed_row(rows: torch.Tensor) -> torch.Tensor:
        pixels = picture[:, rows]
        left, right = pixels[:, :, x0].int(), pixels[:, :, x1].int()
        return (left * weights_x[0] + right * weights_x[1]) >> 4

    upper = (mixed_row(y0) * weights_y[0][:, None]) >> 16
    lower = (mixed_row(y1) * weights_y[1][:, None]) >> 16
    planes.fill_(PAD_VALUE / 255)
    rows = slice(box.top_px, box.top_px + resized_h)
    columns = slice(box.left_px, box.left_px + resized_w)
    planes[:, rows, columns] = ((upper + lower + 2) >> 2).float() / 255


def _taps(
    n_target: int, n_source: int, device: torch.device
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Which source sample lies before each target sample, and the weights of it and the next."""
    # OpenCV takes the reciprocal of the reciprocal.
    scale = 1.0 / (n_target / n_source)
    at = ((torch.arange(n_target, dtype=torch.float64, device=device) + 0.5) * scale - 0.5).float()
    before = at.floor()
    part = at - before
    weights = (
        ((1.0 - part) * _WEIGHT_ONE).round().int(),
        (part * _WEIGHT_ONE).round().int(),
    )
    return before.long(), weights


def _upload(rows: list[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """Copy a table without waiting for the device."""
    # Pinned blocks are kept by torch until their copy is over.
    table = torch.empty(
        (len(rows), _N_TABLE_COLUMNS), dtype=torch.int64, pin_memory=device.type == "cuda"
    )
    table.numpy()[:] = np.array(rows, dtype=np.int64)
    return table.to(device, non_blocking=True)
