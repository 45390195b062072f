"""Which attention kernel does CUDA pick, and what scratch memory does that kernel take.

The choice is PyTorch's own, from `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (2.10),
written down as a table that needs no GPU. Only dense tensors; no user overrides of the backends.
"""

import math
from dataclasses import dataclass
from enum import StrEnum


class AttentionKernel(StrEnum):
    """Implementations of scaled dot-product attention in PyTorch."""

    FLASH = "flash"
    EFFICIENT = "memory-efficient"
    CUDNN = "cudnn"
    MATH = "math"
    """Plain matrix products, which keep the whole attention matrix."""


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """What of a GPU and its libraries decides between kernels."""

    compute_capability: tuple[int, int] = (9, 0)
    cudnn_version: int = 91900
    """As `torch.backends.cudnn.version()` gives it."""
    n_multiprocessors: int = 132
    threads_per_multiprocessor: int = 2048

    @property
    def prefers_cudnn_attention(self) -> bool:
        """Whether cuDNN is asked first (`check_prefer_cudnn_attention`)."""
        major, minor = self.compute_capability
        return self.cudnn_version > 91500 and major in {9, 10} and minor in {0, 3}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call, as far as the choice of a kernel depends on it."""

    itemsize_bytes: int
    is_bfloat16: bool
    batch: int
    heads: int
    key_heads: int
    n_queries: int
    n_keys: int
    head_size: int
    value_size: int
    has_mask: bool = False
    dropout_ratio: float = 0.0
    causal: bool = False
    requires_grad: bool = False
    dense_rows: bool = True
    """Whether values of one position lie next to each other in query, key, value and mask."""


def choose_kernel(call: AttentionCall, target: CudaTarget) -> AttentionKernel:
    """Return the kernel that `_fused_sdp_choice_cuda` would pick.

    Parameters
    ----------
    call
        The call; query, key and value have four dimensions and the same dtype.
    target
        The GPU.
    """
    if not call.dense_rows:
        # check_last_dim_stride_equals_1_dense, asked by all fused kernels.
        return AttentionKernel.MATH
    if target.prefers_cudnn_attention and _cudnn_can(call, target):
        return AttentionKernel.CUDNN
    if _flash_can(call, target):
        return AttentionKernel.FLASH
    if _efficient_can(call, target):
        return AttentionKernel.EFFICIENT
    return AttentionKernel.MATH


def _is_half(call: AttentionCall) -> bool:
    return call.itemsize_bytes == 2


def _cudnn_can(call: AttentionCall, target: CudaTarget) -> bool:
    # check_cudnn_tensor_shapes: up to 256 on Hopper since cuDNN 9.10, else 128.
    limit = 256 if target.compute_capability == (9, 0) else 128
    sizes = (call.head_size, call.value_size)
    return (
        _is_half(call)
        and all(size <= limit and size % 8 == 0 for size in sizes)
        and target.compute_capability >= (8, 0)
        and call.heads % call.key_heads == 0
        # check_cudnn_dropout: cuDNN knows multiples of 1/16 only.
        and (call.dropout_ratio * 16.0).is_integer()
    )


def _flash_can(call: AttentionCall, target: CudaTarget) -> bool:
    size = call.head_size
    # Its backward pass does not fit the shared memory of consumer cards (sm86, sm89, sm12x).
    too_wide = 192 < size <= 224 or (size > 224 and call.dropout_ratio > 0)
    consumer = (8, 6) <= target.compute_capability <= (8, 9) or target.compute_capability >= (12, 0)
    return (
        _is_half(call)
        and not call.has_mask
        and size == call.value_size
        and size <= 256
        and target.compute_capability >= (8, 0)
        and not (call.requires_grad and consumer and too_wide)
        and not (call.causal and call.n_queries != call.n_keys)
        and call.heads % call.key_heads == 0
    )


def _efficient_can(call: AttentionCall, target: CudaTarget) -> bool:
    major = target.compute_capability[0]
    # minimum_gemm_alignment: 16-byte rows where tensor cores are used.
    alignment = 16 // call.itemsize_bytes if major >= 8 or _is_half(call) else 1
    return (
        call.itemsize_bytes in {2, 4}
        and not (call.is_bfloat16 and major < 8)
        and call.head_size % alignment == 0
        and call.value_size % alignment == 0
        and call.heads == call.key_heads
    )


def backward_scratch_bytes(kernel: AttentionKernel, call: AttentionCall) -> tuple[int, ...]:
    """How much memory the backward kernel takes for itself, freed when it returns.

    Sources: `mha_bwd` in FlashAttention 2's `flash_api.cpp` (gradients of the queries and row sums
    in fp32, rows rounded to 128, columns to 32; full-width key gradients when heads are shared);
    `kernel_backward.h` of the memory-efficient kernel (fp32 sums of half-precision gradients).
    cuDNN does not publish its workspace: taken as FlashAttention's, the same algorithm.

    Returns
    -------
    tuple of int
        One entry per allocation, bytes.
    """
    rows = call.batch * call.heads
    if kernel is AttentionKernel.MATH:
        return ()
    if kernel is AttentionKernel.EFFICIENT:
        delta = 4 * rows * call.n_queries
        if call.itemsize_bytes == 4:
            return (delta,)
        queries = rows * _round_up(call.n_queries, 64) * _round_up(call.head_size, 64)
        keys = rows * _round_up(call.n_keys, 128) * _round_up(call.head_size, 64)
        return (delta, 4 * (queries + 2 * keys))
    padded_queries = _round_up(call.n_queries, 128)
    sums = 4 * rows * padded_queries
    queries = 4 * rows * padded_queries * _round_up(call.head_size, 32)
    if call.heads == call.key_heads:
        return (sums, queries)
    keys = call.itemsize_bytes * rows * call.n_keys * call.head_size
    return (sums, queries, keys, keys)


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
