"""A Triton kernel for decoded video; this module needs the package triton, which torch brings."""

# Triton reads annotations as types of its own, and the source of undecorated functions.
# ruff: noqa: ANN001, ANN201, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def nv12_kernel(  # noqa: PLR0913
    address: tl.int64,
    rgb,
    weights,
    start,
    step_y,
    step_x,
    height,
    width,
    block: tl.constexpr,
):
    """Convert one dense NV12 picture, upright at once; see `nv12.Nv12ToRgb` for the formula.

    The pixel in row y and column x of the stored picture goes to ``start + y * step_y +
    x * step_x`` of each plane. An address instead of a tensor: to make one costs more than this.
    """
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    n_pixels = height * width
    inside = pixel < n_pixels
    y = pixel // width
    x = pixel % width
    nv12 = address.to(tl.pointer_type(tl.uint8))
    pair = nv12 + n_pixels + (y // 2) * width + (x // 2) * 2
    luma = tl.load(nv12 + pixel, mask=inside, other=0).to(tl.int32)
    cb = tl.load(pair, mask=inside, other=0).to(tl.int32)
    cr = tl.load(pair + 1, mask=inside, other=0).to(tl.int32)
    grey = luma * tl.load(weights)
    target = rgb + start + y * step_y + x * step_x
    for channel in tl.static_range(3):
        row = weights + 1 + 3 * channel
        value = (grey + cb * tl.load(row) + cr * tl.load(row + 1) + tl.load(row + 2)) >> 16
        value = tl.minimum(tl.maximum(value, 0), 255)
        tl.store(target + channel * n_pixels, value.to(tl.uint8), mask=inside)
