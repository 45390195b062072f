"""Pictures as video decoders lay them out (NV12) turned into RGB on whatever device they are."""

import math
import threading
from functools import cache
from typing import Any, Final, Protocol, runtime_checkable

import structlog
import torch
from jaxtyping import UInt8

# Weights of red and blue in luma by matrix coefficients (ITU-T H.273, table 4). Where a video
# does not say, FFmpeg takes BT.601, and so does this, so that both see the same colours.
_LUMA_WEIGHTS: Final = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
_BT601: Final = (0.299, 0.114)
_SHIFT: Final = 16
"""Fractional bits of the weights: the same whole numbers come out everywhere, to the bit."""
_BLOCK_PIXELS: Final = 1024
# Sources begin at the same time, and Triton would compile the same for each of them.
_COMPILING: Final = threading.RLock()

log = structlog.get_logger()


@runtime_checkable
class Turned(Protocol):
    """How to turn a stored picture upright: transpose first, then mirror."""

    @property
    def transposed(self) -> bool:
        """Rows become columns."""
        ...

    @property
    def mirror_x(self) -> bool:
        """Left becomes right."""
        ...

    @property
    def mirror_y(self) -> bool:
        """Top becomes bottom."""
        ...


class Nv12ToRgb:
    """Converts pictures from the decoder's layout (ITU-T H.273, 8.3) as FFmpeg does.

    PyNvVideoCodec converts, too, but always as limited range, and its threads share one matrix.

    Parameters
    ----------
    matrix
        H.273 MatrixCoefficients.
    full_range
        Luma from 0 to 255 instead of 16 to 235.
    device
        Where the pictures are.
    turned
        How to turn them upright, if they are not.
    kernel
        From `open_nv12_kernel`; None to convert in single steps.
    """

    def __init__(
        self,
        matrix: int,
        *,
        full_range: bool,
        device: str,
        turned: Turned | None = None,
        kernel: Any = None,  # noqa: ANN401 - triton has no types
    ) -> None:
        self._turned = turned
        self._kernel = kernel
        self._compiled = False
        self._device = torch.device(device)
        luma, rows = _weights(matrix, full_range=full_range)
        self._luma = luma
        self._rows = torch.tensor(rows, dtype=torch.int32, device=device)
        # The kernel's table: weight of luma; for red, green and blue those of Cb and Cr, constant.
        table = [luma, *rows[0], *rows[1], *rows[2]]
        self._table = torch.tensor(table, dtype=torch.int32, device=device)

    @property
    def has_kernel(self) -> bool:
        """Whether `at` may be called."""
        return self._kernel is not None

    def __call__(self, nv12: UInt8[torch.Tensor, "rows columns"]) -> UInt8[torch.Tensor, "3 _ _"]:
        """Convert one picture into new memory.

        Parameters
        ----------
        nv12
            1.5 times as many rows as the picture: luma, then Cb and Cr by turns at half the size.
        """
        height, width = nv12.shape[0] * 2 // 3, nv12.shape[1]
        if self._kernel is not None and nv12.is_contiguous():
            return self.at(nv12.data_ptr(), height, width)
        cb, cr = nv12[height:].reshape(height // 2, width // 2, 2).int().unbind(2)
        of_cb, of_cr, constant = self._rows[:, :, None, None].unbind(1)
        colour = (cb * of_cb + cr * of_cr + constant).reshape(3, height // 2, 1, width // 2, 1)
        grey = nv12[:height].reshape(1, height // 2, 2, width // 2, 2).int() * self._luma
        rgb = ((grey + colour) >> _SHIFT).clamp_(0, 255).to(torch.uint8)
        return self._upright(rgb.reshape(3, height, width))

    def at(self, address: int, height: int, width: int) -> UInt8[torch.Tensor, "3 _ _"]:
        """Convert one picture into new memory with the kernel, on the current stream.

        Parameters
        ----------
        address
            Of its dense rows on the device; they must stay until the stream has passed this point.
        height, width
            Of the picture, before it is turned upright.
        """
        turned = self._turned
        transposed = turned is not None and turned.transposed
        rows, columns = (width, height) if transposed else (height, width)
        start, down, right = 0, columns, 1
        if turned is not None and turned.mirror_y:
            start, down = (rows - 1) * columns, -columns
        if turned is not None and turned.mirror_x:
            start, right = start + columns - 1, -1
        steps = (right, down) if transposed else (down, right)
        rgb = torch.empty((3, rows, columns), dtype=torch.uint8, device=self._device)
        if self._compiled:
            self._launch(address, rgb, start, *steps, height, width)
        else:
            with _COMPILING:
                self._launch(address, rgb, start, *steps, height, width)
            self._compiled = True
        return rgb

    def _launch(self, address: int, rgb: torch.Tensor, *geometry: int) -> None:
        height, width = geometry[-2:]
        grid = (-(-height * width // _BLOCK_PIXELS),)
        self._kernel[grid](address, rgb, self._table, *geometry, _BLOCK_PIXELS)

    def _upright(self, rgb: UInt8[torch.Tensor, "3 height width"]) -> UInt8[torch.Tensor, "3 _ _"]:
        if self._turned is None:
            return rgb
        if self._turned.transposed:
            rgb = rgb.transpose(1, 2)
        if self._turned.mirror_x:
            rgb = rgb.flip(2)
        if self._turned.mirror_y:
            rgb = rgb.flip(1)
        return rgb.contiguous()


def _weights(matrix: int, *, full_range: bool) -> tuple[int, list[list[int]]]:
    """Weight of luma; for red, green and blue those of Cb and Cr, and what is added."""
    red, blue = _LUMA_WEIGHTS.get(matrix, _BT601)
    green = 1.0 - red - blue
    one = 1 << _SHIFT
    # Fractions are cut off, not rounded: so does FFmpeg, to which this is within 2 levels. The
    # weight of luma is rounded up, so that white stays white.
    luma = math.ceil(one * (1.0 if full_range else 255.0 / 219.0))
    chroma = one * (2.0 if full_range else 2.0 * 255.0 / 224.0)
    black = 0 if full_range else 16
    rows = []
    for of_cb, of_cr in (
        (0.0, 1.0 - red),
        (-blue * (1.0 - blue) / green, -red * (1.0 - red) / green),
        (1.0 - blue, 0.0),
    ):
        cb, cr = round(chroma * of_cb), round(chroma * of_cr)
        rows.append([cb, cr, -luma * black - 128 * (cb + cr)])
    return luma, rows


def open_nv12_kernel(device: str) -> Any:  # noqa: ANN401 - triton has no types
    """Open the Triton kernel for `Nv12ToRgb`; None where it does not work, with a logged reason."""
    if torch.device(device).type != "cuda":
        return None
    with _COMPILING:
        return _tried_kernel(device)


@cache
def _tried_kernel(device: str) -> Any:  # noqa: ANN401 - see above
    # Triton compiles with the machine's C compiler, and fails with errors of many kinds.
    try:
        from pose_analyzer.sources.nv12_kernel import nv12_kernel  # noqa: PLC0415 - may be absent

        _try_kernel(nv12_kernel, device)
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("triton_unavailable", reason=f"{type(error).__name__}: {error}")
        return None
    return nv12_kernel


def _try_kernel(kernel: Any, device: str) -> None:  # noqa: ANN401 - see above
    """Compare the kernel with plain torch once."""
    generator = torch.Generator().manual_seed(0)
    nv12 = torch.randint(0, 256, (72, 64), dtype=torch.uint8, generator=generator).to(device)
    plain = Nv12ToRgb(1, full_range=False, device=device)
    quick = Nv12ToRgb(1, full_range=False, device=device, kernel=kernel)
    with torch.cuda.device(device):
        if not torch.equal(quick(nv12), plain(nv12)):
            raise ArithmeticError("the NV12 kernel differs from plain torch")
