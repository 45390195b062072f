"""The tables of kernels and scratch memory against figures worked out by hand from PyTorch."""

from dataclasses import replace

import pytest

from gpu_optimizer.kernels.attention import (
    AttentionCall,
    AttentionKernel,
    CudaTarget,
    backward_scratch_bytes,
    choose_kernel,
)
from gpu_optimizer.kernels.convolutions import (
    ConvolutionCall,
    forward_workspace_bytes,
    values_gradient_workspace_bytes,
    weight_gradient_workspace_bytes,
)
from gpu_optimizer.kernels.reductions import reduction_scratch_bytes

HOPPER = CudaTarget()
OLD_CUDNN = CudaTarget(cudnn_version=91002)
TURING = CudaTarget((7, 5), n_multiprocessors=40, threads_per_multiprocessor=1024)
ADA = CudaTarget((8, 9))
CALL = AttentionCall(
    itemsize_bytes=2,
    is_bfloat16=True,
    batch=2,
    heads=8,
    key_heads=8,
    n_queries=128,
    n_keys=128,
    head_size=64,
    value_size=64,
)
FP32 = {"itemsize_bytes": 4, "is_bfloat16": False}


@pytest.mark.parametrize(
    ("change", "target", "kernel"),
    [
        ({}, HOPPER, AttentionKernel.CUDNN),
        ({}, OLD_CUDNN, AttentionKernel.FLASH),
        ({}, ADA, AttentionKernel.FLASH),
        ({}, TURING, AttentionKernel.MATH),
        ({"is_bfloat16": False}, TURING, AttentionKernel.EFFICIENT),
        (FP32, HOPPER, AttentionKernel.EFFICIENT),
        ({"dense_rows": False}, HOPPER, AttentionKernel.MATH),
        (FP32 | {"key_heads": 2}, HOPPER, AttentionKernel.MATH),
        ({"key_heads": 2}, OLD_CUDNN, AttentionKernel.FLASH),
        ({"dropout_ratio": 0.1}, HOPPER, AttentionKernel.FLASH),
        ({"dropout_ratio": 0.125}, HOPPER, AttentionKernel.CUDNN),
        ({"has_mask": True}, OLD_CUDNN, AttentionKernel.EFFICIENT),
        ({"has_mask": True, "key_heads": 2}, OLD_CUDNN, AttentionKernel.MATH),
        ({"head_size": 200, "value_size": 200, "requires_grad": True}, ADA, "memory-efficient"),
        ({"head_size": 512, "value_size": 512}, HOPPER, AttentionKernel.EFFICIENT),
        ({"causal": True, "n_queries": 1}, ADA, AttentionKernel.EFFICIENT),
    ],
)
def test_the_kernel_is_the_one_pytorch_would_pick(change, target, kernel):
    assert choose_kernel(replace(CALL, **change), target) == kernel


def test_backward_kernels_take_what_their_sources_say():
    rows = 2 * 8 * 128
    flash = backward_scratch_bytes(AttentionKernel.FLASH, CALL)
    assert flash == (4 * rows, 4 * rows * 64)
    assert backward_scratch_bytes(AttentionKernel.MATH, CALL) == ()
    fp32 = replace(CALL, **FP32)
    assert backward_scratch_bytes(AttentionKernel.EFFICIENT, fp32) == (4 * rows,)


def test_bias_gradients_of_bert_and_vit_take_the_buffers_seen_on_an_h200():
    # 64 thread blocks meet per output in BERT (4,096 rows), 197 in ViT (12,608 rows).
    bert = reduction_scratch_bytes((4096, 768), (768, 1), {0}, HOPPER)
    vit = reduction_scratch_bytes((12608, 768), (768, 1), {0}, HOPPER)
    assert bert == 24 * 2**20
    assert vit == 4 * 768 * 197 * 128


@pytest.mark.parametrize(
    ("shape", "reduced"), [((4, 768), {0}), ((4096, 768), {1}), ((4096, 1000000), {0}), ((), set())]
)
def test_short_sums_and_many_outputs_need_no_buffer(shape, reduced):
    strides = [1] * len(shape)
    for dimension in range(len(shape) - 2, -1, -1):
        strides[dimension] = strides[dimension + 1] * shape[dimension + 1]
    assert reduction_scratch_bytes(shape, strides, reduced, HOPPER) == 0


def test_a_sum_of_everything_needs_one_value_per_block():
    buffer = reduction_scratch_bytes((2**24,), (1,), {0}, HOPPER)
    assert 0 < buffer <= 4 * HOPPER.n_multiprocessors * 2048


@pytest.mark.parametrize(
    ("values", "weight", "output", "itemsize_bytes", "measured_mib"),
    [
        # Copies of both sides and the weight; the weight's gradient in 14 parts, or 8 MiB.
        ((64, 64, 56, 56), (64, 64, 3, 3), (64, 64, 56, 56), 4, (98.14, 98.14, 100.11)),
        ((64, 128, 56, 56), (128, 128, 3, 3), (64, 128, 28, 28), 4, (123.06, 123.06, 130.94)),
        # A plain product copies nothing; its weight's gradient has a part per image.
        ((64, 256, 56, 56), (128, 256, 1, 1), (64, 128, 56, 56), 2, (0, 0, 8)),
        # 64 parts would be more than the copies.
        ((64, 1024, 14, 14), (512, 1024, 1, 1), (64, 512, 14, 14), 4, (0, 0, 81.5)),
        # An odd number of pixels.
        ((64, 2048, 7, 7), (512, 2048, 1, 1), (64, 512, 7, 7), 4, (30.63, 30.63, 38.63)),
        # Three channels are padded to eight in half precision; fp32 reads them as they are.
        ((64, 3, 224, 224), (64, 3, 7, 7), (64, 64, 112, 112), 2, (147.05, 147.24, 152.89)),
        ((64, 3, 64, 64), (64, 3, 3, 3), (64, 64, 64, 64), 4, (0, 0, 0)),
    ],
)
def test_workspaces_of_convolutions_are_as_measured(
    values, weight, output, itemsize_bytes, measured_mib
):
    call = ConvolutionCall(values, weight, output, itemsize_bytes)
    rules = (
        forward_workspace_bytes,
        values_gradient_workspace_bytes,
        weight_gradient_workspace_bytes,
    )
    found = [rule(call) / 2**20 for rule in rules]
    assert found[:2] == pytest.approx(measured_mib[:2], abs=0.25)
    assert found[2] == pytest.approx(measured_mib[2], rel=0.04)
