"""Triton kernels of the GPU path; this module needs the package triton, which torch brings along.

Each does what a function of `gpu_letterbox` or `gpu_people` does in many steps.
"""

# Triton reads annotations as types of its own, and the source of undecorated functions.
# ruff: noqa: ANN001, ANN201, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def letterbox_kernel(  # noqa: PLR0913
    table,
    out,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    height,
    width,
    pad,
    n_columns: tl.constexpr,
    block: tl.constexpr,
):
    """Resize pictures of any sizes into one batch; see `gpu_letterbox.letterbox` for the formula.

    One row of `table` per picture: address, strides of channel, row and column, height and width,
    height and width after resizing, rows above and columns left of it.
    """
    image = tl.program_id(1)
    row = table + image * n_columns
    source = tl.load(row).to(tl.pointer_type(tl.uint8))
    step_c, step_y, step_x = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    source_h, source_w = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    resized_h, resized_w = tl.load(row + 6).to(tl.int32), tl.load(row + 7).to(tl.int32)
    top, left = tl.load(row + 8).to(tl.int32), tl.load(row + 9).to(tl.int32)

    pixel = tl.program_id(0) * block + tl.arange(0, block)
    y = pixel // width
    x = pixel % width
    in_batch = y < height
    within = (y >= top) & (y < top + resized_h) & (x >= left) & (x < left + resized_w)

    # OpenCV takes the reciprocal of the reciprocal.
    one = tl.full((1,), 1.0, tl.float64)
    scale_y = one / (resized_h.to(tl.float64) / source_h.to(tl.float64))
    scale_x = one / (resized_w.to(tl.float64) / source_w.to(tl.float64))
    at_y = (((y - top).to(tl.float64) + 0.5) * scale_y - 0.5).to(tl.float32)
    at_x = (((x - left).to(tl.float64) + 0.5) * scale_x - 0.5).to(tl.float32)
    y0 = tl.floor(at_y).to(tl.int32)
    x0 = tl.floor(at_x).to(tl.int32)
    part_y = at_y - y0.to(tl.float32)
    part_x = at_x - x0.to(tl.float32)
    part_x = tl.where((x0 < 0) | (x0 >= source_w - 1), 0.0, part_x)
    # Adding and subtracting 1.5 * 2**23 rounds to the nearest even number.
    weight_y1 = ((part_y * 2048.0 + 12582912.0) - 12582912.0).to(tl.int32)
    weight_y0 = (((1.0 - part_y) * 2048.0 + 12582912.0) - 12582912.0).to(tl.int32)
    weight_x1 = ((part_x * 2048.0 + 12582912.0) - 12582912.0).to(tl.int32)
    weight_x0 = (((1.0 - part_x) * 2048.0 + 12582912.0) - 12582912.0).to(tl.int32)

    y1 = tl.minimum(tl.maximum(y0 + 1, 0), source_h - 1).to(tl.int64)
    y0 = tl.minimum(tl.maximum(y0, 0), source_h - 1).to(tl.int64)
    x1 = tl.minimum(tl.maximum(x0 + 1, 0), source_w - 1).to(tl.int64)
    x0 = tl.minimum(tl.maximum(x0, 0), source_w - 1).to(tl.int64)
    target = out + image.to(tl.int64) * stride_n + y * stride_y + x * stride_x
    for channel in tl.static_range(3):
        plane = source + channel * step_c
        above, below = plane + y0 * step_y, plane + y1 * step_y
        p00 = tl.load(above + x0 * step_x, mask=within, other=0).to(tl.int32)
        p01 = tl.load(above + x1 * step_x, mask=within, other=0).to(tl.int32)
        p10 = tl.load(below + x0 * step_x, mask=within, other=0).to(tl.int32)
        p11 = tl.load(below + x1 * step_x, mask=within, other=0).to(tl.int32)
        upper = (p00 * weight_x0 + p01 * weight_x1) >> 4
        lower = (p10 * weight_x0 + p11 * weight_x1) >> 4
        value = (((weight_y0 * upper) >> 16) + ((weight_y1 * lower) >> 16) + 2) >> 2
        value = tl.where(within, value, pad).to(tl.float32) / 255.0
        tl.store(target + channel * stride_c, value.to(out.dtype.element_ty), mask=in_batch)


@triton.jit
@no_type_check
def suppress_kernel(  # noqa: PLR0913
    boxes,
    scores,
    kept,
    n_kept,
    confidence,
    iou,
    n_candidates: tl.constexpr,
    block: tl.constexpr,
    max_people: tl.constexpr,
):
    """Greedy suppression of one image by each program; see `gpu_people.suppress`.

    It goes from one kept box to the next, so few people take few steps.
    """
    image = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, block)
    present = lanes < n_candidates
    image_boxes = boxes + image * n_candidates * 4
    x0 = tl.load(image_boxes + lanes * 4, mask=present, other=0.0)
    y0 = tl.load(image_boxes + lanes * 4 + 1, mask=present, other=0.0)
    x1 = tl.load(image_boxes + lanes * 4 + 2, mask=present, other=0.0)
    y1 = tl.load(image_boxes + lanes * 4 + 3, mask=present, other=0.0)
    score = tl.load(scores + image * n_candidates + lanes, mask=present, other=0.0)
    areas = (x1 - x0) * (y1 - y0)
    alive = tl.where(present & (score > confidence), 1, 0)
    best = tl.min(tl.where(alive == 1, lanes, block), axis=0)
    n_found = 0
    while (best < block) & (n_found < max_people):
        tl.store(kept + image * max_people + n_found, best.to(tl.int64))
        n_found += 1
        left = tl.load(image_boxes + best * 4)
        top = tl.load(image_boxes + best * 4 + 1)
        right = tl.load(image_boxes + best * 4 + 2)
        bottom = tl.load(image_boxes + best * 4 + 3)
        width = tl.maximum(tl.minimum(x1, right) - tl.maximum(x0, left), 0.0)
        height = tl.maximum(tl.minimum(y1, bottom) - tl.maximum(y0, top), 0.0)
        shared = width * height
        union = tl.maximum(areas + (right - left) * (bottom - top) - shared, 1.1754943508222875e-38)
        stays = (lanes > best) & (shared / union <= iou)
        alive = tl.where(stays, alive, 0)
        best = tl.min(tl.where(alive == 1, lanes, block), axis=0)
    tl.store(n_kept + image, n_found)
