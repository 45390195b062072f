"""Memory that CUDA's libraries take beside the tensors of an operation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gpu_optimizer.attention_kernels import AttentionKernel, CudaTarget, backward_scratch_bytes
from gpu_optimizer.cuda_semantics import attention_call
from gpu_optimizer.reduction_scratch import reduction_scratch_bytes

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

    def scratch_bytes(self, op: OpOverload, args: tuple[Any, ...], out: object) -> tuple[int, ...]:
        """Allocations an operation makes and frees before it returns, beside its results."""
        if op in _REDUCTIONS:
            return self._reduction(args[0], _dimensions(args))
        if op is _CONVOLUTION and isinstance(out, Tensor):
            return self._layout_copies(args[0], out, n_groups=args[8])
        if op is _CONVOLUTION_BACKWARD:
            grad, values, n_groups, wants_bias = args[0], args[1], args[9], args[10][2]
            # The bias's gradient: all but the channels are summed up.
            beside_channels = frozenset({0, *range(2, grad.dim())})
            bias = self._reduction(grad, beside_channels) if wants_bias else ()
            return (*bias, *self._layout_copies(values, grad, n_groups=n_groups))
        kernel = _ATTENTION_BACKWARD.get(op)
        if kernel is None:
            return ()
        query, key, value = args[1:4]
        call = attention_call(query, key, value, None, 0.0, causal=False)
        return backward_scratch_bytes(kernel, call)

    def _layout_copies(self, wide: Tensor, deep: Tensor, *, n_groups: int) -> tuple[int, ...]:
        """Workspace of a convolution whose tensors are channels first.

        cuDNN's tensor-core kernels want channels last; it copies both sides of the convolution
        into its workspace and back (`nchwToNhwcKernel` in profiles). Not published: chosen among
        four models because it explains a checkpointed ResNet50 in fp32 (TF32, which is on by
        default for convolutions) and bfloat16; see docs/reports/prediction_accuracy.md.
        """
        last = torch.channels_last
        is_first = wide.dim() == 4 and not wide.is_contiguous(memory_format=last)
        if n_groups > 1 or not is_first or self.target.compute_capability < (8, 0):
            return ()
        return (wide.numel() * wide.element_size() + deep.numel() * deep.element_size(),)

    def _reduction(self, values: Tensor, reduced: frozenset[int]) -> tuple[int, ...]:
        size_bytes = reduction_scratch_bytes(values.shape, values.stride(), reduced, self.target)
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


def tensors_in(values: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    leaves, _ = torch.utils._pytree.tree_flatten(values)  # noqa: SLF001
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
