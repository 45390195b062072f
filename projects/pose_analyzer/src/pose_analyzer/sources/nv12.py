"""Pictures as video decoders lay them out (NV12) turned into RGB on whatever device they are."""

from typing import Final, Protocol, runtime_checkable

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
    """

    def __init__(
        self, matrix: int, *, full_range: bool, device: str, turned: Turned | None = None
    ) -> None:
        self._turned = turned
        red, blue = _LUMA_WEIGHTS.get(matrix, _BT601)
        green = 1.0 - red - blue
        self._luma_scale = 1.0 if full_range else 255.0 / 219.0
        chroma_scale = 2.0 if full_range else 2.0 * 255.0 / 224.0
        # Columns: what Cb and Cr, less 128, add to red, green and blue.
        of_cb = [0.0, -blue * (1.0 - blue) / green, 1.0 - blue]
        of_cr = [1.0 - red, -red * (1.0 - red) / green, 0.0]
        chroma = chroma_scale * torch.tensor([of_cb, of_cr], dtype=torch.float64)
        black = 0.0 if full_range else 16.0
        # Fractions are cut off, not rounded: so does FFmpeg, to which this is within 2 levels.
        constant = -self._luma_scale * black - 128.0 * chroma.sum(dim=0)
        self._chroma = chroma.to(device, torch.float32)
        self._constant = constant.to(device, torch.float32)

    def __call__(self, nv12: UInt8[torch.Tensor, "rows columns"]) -> UInt8[torch.Tensor, "3 _ _"]:
        """Convert one picture into new memory.

        Parameters
        ----------
        nv12
            1.5 times as many rows as the picture: luma, then Cb and Cr by turns at half the size.
        """
        height, width = nv12.shape[0] * 2 // 3, nv12.shape[1]
        pairs = nv12[height:].reshape(-1, 2).to(torch.float32)
        colour = torch.addmm(self._constant, pairs, self._chroma)
        colour = colour.T.reshape(3, height // 2, 1, width // 2, 1)
        luma = nv12[:height].reshape(1, height // 2, 2, width // 2, 2) * self._luma_scale
        rgb = torch.add(luma, colour).clamp_(0.0, 255.0).to(torch.uint8)
        return self._upright(rgb.reshape(3, height, width))

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
