"""How much workspace cuDNN takes for a convolution.

cuDNN publishes no sizes. These rules were read off 343 convolutions of ResNet50, a U-Net and
YOLO11-pose, measured call by call on an H200 with cuDNN 9.19 (`benchmarks/
convolution_workspaces.py`), all without `torch.backends.cudnn.benchmark`:

- tensor-core kernels want channels last. For tensors that are channels first, cuDNN copies input,
  output and weight of kernels wider than a point into the workspace, rows of channels padded to 16
  bytes;
- a 1x1 convolution with stride 1 is a product of matrices and copies nothing, unless an image has
  an odd number of pixels; with a stride it copies input and output;
- the gradient of a weight is summed up in parts: one per image for 1x1 kernels as long as that is
  less than copying, else up to 14 of together at most 8 MiB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MIB = 2**20
_SUM_BYTES = 4
_ROW_BYTES = 16
_MAX_PARTS = 14
_MAX_PARTS_BYTES = 8 * _MIB
# In fp32, kernels without tensor cores are taken for so few channels in.
_FEW_CHANNELS = 8
_STEM_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class ConvolutionCall:
    """Shapes of one convolution, channels first, no groups."""

    values: tuple[int, ...]
    """Input: images, channels, rows, columns."""
    weight: tuple[int, ...]
    """Channels out, channels in, rows, columns."""
    output: tuple[int, ...]
    itemsize_bytes: int

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel sees one input pixel."""
        return math.prod(self.weight[2:]) == 1

    @property
    def plain_product(self) -> bool:
        """Whether it is a product of matrices without any copy."""
        n_pixels = math.prod(self.values[2:])
        return self.pointwise and self.values[2:] == self.output[2:] and n_pixels % 2 == 0

    @property
    def narrow(self) -> bool:
        """Whether cuDNN leaves it to a kernel that reads channels first."""
        channels = self.values[1]
        small = math.prod(self.weight[2:]) <= 9
        return small and (
            channels <= _FEW_CHANNELS if self.itemsize_bytes == 4 else channels <= _STEM_CHANNELS
        )


def forward_workspace_bytes(call: ConvolutionCall) -> int:
    """Return the workspace of the forward pass; 0: none."""
    if call.plain_product or call.narrow:
        return 0
    return _copies_bytes(call, padded=call.itemsize_bytes < 4)


def values_gradient_workspace_bytes(call: ConvolutionCall) -> int:
    """Return the workspace of the gradient of the input; 0: none."""
    of_image = call.itemsize_bytes == 4 and call.values[1] <= _STEM_CHANNELS
    return 0 if call.plain_product or of_image else _copies_bytes(call, padded=True)


def weight_gradient_workspace_bytes(call: ConvolutionCall) -> int:
    """Return the workspace of the gradient of the weight; 0: none."""
    if call.narrow and call.itemsize_bytes == 4:
        return 0
    weight_bytes = math.prod(call.weight) * _SUM_BYTES
    copies = _copies_bytes(call, padded=True)
    n_parts = min(_MAX_PARTS, _MAX_PARTS_BYTES // weight_bytes)
    parts = n_parts * weight_bytes if n_parts else _MAX_PARTS_BYTES
    if call.plain_product:
        return min(call.values[0] * weight_bytes, copies + parts)
    return copies + (parts if call.itemsize_bytes == 4 else min(parts, _MAX_PARTS_BYTES // 4))


def _copies_bytes(call: ConvolutionCall, *, padded: bool) -> int:
    sides = [call.values, call.output]
    copied = 0 if call.pointwise else math.prod(call.weight) * call.itemsize_bytes
    for shape in sides:
        channels = shape[1]
        if padded or channels > _STEM_CHANNELS:
            per_row = _ROW_BYTES // call.itemsize_bytes
            channels = -(-channels // per_row) * per_row
        copied += math.prod(_with_channels(shape, channels)) * call.itemsize_bytes
    return copied


def _with_channels(shape: Sequence[int], channels: int) -> tuple[int, ...]:
    return (shape[0], channels, *shape[2:])
