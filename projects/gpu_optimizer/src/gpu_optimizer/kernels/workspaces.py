"""Memory that CUDA's libraries take beside the tensors of an operation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gpu_optimizer.kernels.attention import AttentionKernel, CudaTarget, backward_scratch_bytes
from gpu_optimizer.kernels.convolutions import (
    ConvolutionCall,
    forward_workspace_bytes,
    values_gradient_workspace_bytes,
    weight_gradient_workspace_bytes,
)
from gpu_optimizer.kernels.reductions import reduction_scratch_bytes
from gpu_optimizer.kernels.semantics import attention_call

_aten = torch.ops.aten
_MATRIX_PRODUCTS = frozenset(
    {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
)
_ATTENTION_BACKWARD = {
    _aten._scaled_dot_product_flash_attention_backward.default: AttentionKernel.FLASH,  # noqa: SLF001
    _aten._scaled_dot_product_efficient_attention_backward.default: AttentionKernel.EFFICIENT,  # noqa: SLF001
    _aten._scaled_dot_product_cudnn_attention_backward.default: AttentionKernel.CUDNN,  # noqa: SLF001
}

_REDUCTIONS = frozenset(
    {_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim}
)
_CONVOLUTION = _aten.convolution.default
_CONVOLUTION_BACKWARD = _aten.convolution_backward.default
_ATTENTION_FORWARD = frozenset(
    {
        _aten._scaled_dot_product_flash_attention,  # noqa: SLF001
        _aten._scaled_dot_product_efficient_attention,  # noqa: SLF001
        _aten._scaled_dot_product_cudnn_attention,  # noqa: SLF001
    }
)

# aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper, else :4096:2:16:8; cuBLASLt 1 MiB.
_CUBLAS_HOPPER_BYTES = 4096 * 8 * 1024
_CUBLAS_BYTES = (4096 * 2 + 16 * 8) * 1024
_CUBLASLT_BYTES = 1024 * 1024


@dataclass(slots=True)
class Workspaces:
    """What has been taken so far; asked once per operation."""

    target: CudaTarget
    _taken: set[tuple[str, bool]] = field(default_factory=set)

    def persistent_bytes(
        self, op: OpOverload, args: tuple[Any, ...], *, backward: bool
    ) -> list[int]:
        """Allocations an operation makes once and keeps until the process ends.

        PyTorch gives each thread its own cuBLAS handle with a workspace of its own, and runs
        backward passes in a thread of their own.
        """
        if op not in _MATRIX_PRODUCTS:
            return []
        hopper = self.target.compute_capability == (9, 0)
        wanted = [("cublas", _CUBLAS_HOPPER_BYTES if hopper else _CUBLAS_BYTES)]
        # addmm_out_cuda_impl: a bias of one dimension is added by cuBLASLt within the product.
        if op is _aten.addmm.default and args[0].dim() == 1:
            wanted.append(("cublaslt", _CUBLASLT_BYTES))
        new = [(name, size) for name, size in wanted if (name, backward) not in self._taken]
        self._taken.update((name, backward) for name, _ in new)
        return [size for _, size in new]

    def scratch_bytes(
        self, op: OpOverload, args: tuple[Any, ...], out: object
    ) -> list[tuple[int, ...]]:
        """Allocations an operation makes and frees before it returns, beside its results.

        Each entry is freed before the next one is made.
        """
        if op in _REDUCTIONS:
            return [self._reduction(args[0], _dimensions(args))]
        if op is _CONVOLUTION and isinstance(out, Tensor):
            call = self._convolution(args[0], args[1], out, args)
            return [] if call is None else [_some(forward_workspace_bytes(call))]
        if op is _CONVOLUTION_BACKWARD:
            return self._convolution_backward(args)
        kernel = _ATTENTION_BACKWARD.get(op)
        if kernel is None:
            return []
        query, key, value = args[1:4]
        attention = attention_call(query, key, value, None, 0.0, causal=False)
        return [backward_scratch_bytes(kernel, attention)]

    def _convolution_backward(self, args: tuple[Any, ...]) -> list[tuple[int, ...]]:
        grad, values, weight, (wants_values, wants_weight, wants_bias) = (*args[:3], args[10])
        call = self._convolution(values, weight, grad, args[1:])
        scratch = []
        if call is not None and wants_values:
            scratch.append(_some(values_gradient_workspace_bytes(call)))
        if call is not None and wants_weight:
            scratch.append(_some(weight_gradient_workspace_bytes(call)))
        if wants_bias:
            # The bias's gradient: all but the channels are summed up.
            scratch.append(self._reduction(grad, frozenset({0, *range(2, grad.dim())})))
        return scratch

    def _convolution(
        self, values: Tensor, weight: Tensor, output: Tensor, args: tuple[Any, ...]
    ) -> ConvolutionCall | None:
        """Describe a convolution that cuDNN takes workspace for; None: none is known of."""
        transposed, _, n_groups = args[6:9]
        first = values.dim() == 4 and not values.is_contiguous(memory_format=torch.channels_last)
        if n_groups > 1 or transposed or not first or self.target.compute_capability < (8, 0):
            return None
        return ConvolutionCall(
            tuple(values.shape), tuple(weight.shape), tuple(output.shape), values.element_size()
        )

    def _reduction(self, values: Tensor, reduced: frozenset[int]) -> tuple[int, ...]:
        size_bytes = reduction_scratch_bytes(values.shape, values.stride(), reduced, self.target)
        return _some(size_bytes)


def _some(size_bytes: int) -> tuple[int, ...]:
    return (size_bytes,) if size_bytes else ()


def _dimensions(args: tuple[Any, ...]) -> frozenset[int]:
    n_dimensions = args[0].dim()
    asked = args[1] if len(args) > 1 and args[1] else range(n_dimensions)
    return frozenset(dimension % max(n_dimensions, 1) for dimension in asked)


def forward_flops(
    op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: object
) -> int:
    """Multiplications and additions of one operation, as `torch.utils.flop_counter` counts."""
    from torch.utils.flop_counter import flop_registry  # noqa: PLC0415 -- only when recording

    packet = op._overloadpacket  # noqa: SLF001
    if packet in _ATTENTION_FORWARD:
        # PyTorch's own formula refuses heads that share keys.
        call = attention_call(args[0], args[1], args[2], None, 0.0, causal=False)
        pairs = call.batch * call.heads * call.n_queries * call.n_keys
        return 2 * pairs * (call.head_size + call.value_size)
    count: Callable[..., int] | None = flop_registry.get(packet)
    if count is None:
        return 0
    return int(count(*args, **kwargs, out_val=out))


def operation_flops(
    op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: object
) -> int:
    """Multiplications and additions of one operation, forward or backward."""
    if op in _ATTENTION_BACKWARD:
        # Five products of matrices where the forward pass has two (FlashAttention 2, section 3.1).
        call = attention_call(args[1], args[2], args[3], None, 0.0, causal=False)
        pairs = call.batch * call.heads * call.n_queries * call.n_keys
        return 2 * pairs * (3 * call.head_size + 2 * call.value_size)
    return forward_flops(op, args, kwargs, out)


def tensors_in(values: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    leaves, _ = torch.utils._pytree.tree_flatten(values)  # noqa: SLF001
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
