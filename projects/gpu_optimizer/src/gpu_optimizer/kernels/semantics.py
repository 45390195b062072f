"""Lets tensors without a GPU behave as they would on CUDA: autocast, dropout, attention.

A recording runs on fake CPU tensors, because those work on every machine and build of PyTorch:
backward passes of fake *cuda* tensors fail where a CUDA build finds no GPU (PyTorch 2.10). Where
the CPU keeps other tensors than CUDA would, the rules of CUDA are installed in PyTorch's dispatcher
for the time of the recording. Attention and dropout of real tensors in other threads stay the
CPU's; autocasting on the CPU follows CUDA's list in the whole process meanwhile.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map_only

from gpu_optimizer.kernels.attention import (
    AttentionCall,
    AttentionKernel,
    CudaTarget,
    choose_kernel,
)

ChoiceListener = Callable[[AttentionKernel, AttentionCall], None]

# AT_FORALL_* in aten/src/ATen/autocast_mode.h; what is in none of them but has a CUDA kernel for
# autocasting runs in fp32.
_LOWER_PRECISION = frozenset(
    [
        "_convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_tbc",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
        "prelu",
        "addmm",
        "addmv",
        "addr",
        "matmul",
        "einsum",
        "mm",
        "mv",
        "linalg_vecdot",
        "linear",
        "addbmm",
        "baddbmm",
        "bmm",
        "chain_matmul",
        "linalg_multi_dot",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "_scaled_dot_product_flash_attention",
        "scaled_dot_product_attention",
    ]
)
_OUTPUT_FP32 = frozenset(
    [
        "prod",
        "softmax",
        "log_softmax",
        "cumprod",
        "cumsum",
        "linalg_vector_norm",
        "linalg_matrix_norm",
        "sum",
        "norm",
    ]
)
_WIDEST_INPUT = frozenset(
    [
        "addcdiv",
        "addcmul",
        "atan2",
        "bilinear",
        "cross",
        "dot",
        "vdot",
        "grid_sampler",
        "index_put",
        "tensordot",
        "scatter_add",
        "cat",
        "stack",
    ]
)
_HALF = frozenset({torch.float16, torch.bfloat16})
_AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU)

# The dispatcher's table is one per process.
_installed = threading.Lock()


@contextmanager
def cuda_semantics(target: CudaTarget, on_attention: ChoiceListener) -> Iterator[None]:
    """Treat fake CPU tensors by CUDA's rules inside the block.

    Autocasting is then asked for as ``torch.autocast("cpu", dtype)``.

    Parameters
    ----------
    target
        The GPU that is imitated.
    on_attention
        Is told each choice of an attention kernel.
    """
    with _installed:
        library = torch.library.Library(  # type: ignore[no-untyped-call]
            "aten", "IMPL"
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*other operators may also be overridden")
                _install_autocast(library)
            _override(library, torch.ops.aten.dropout.default, _fused_dropout)
            attention = _attention(target, on_attention)
            _override(library, torch.ops.aten.scaled_dot_product_attention.default, attention)
            yield
        finally:
            # The only way to take overrides back.
            library._destroy()  # type: ignore[no-untyped-call]  # noqa: SLF001


def _override(library: torch.library.Library, op: OpOverload, rule: Callable[..., Any]) -> None:
    """Install a rule above autograd for fake tensors; others go the usual way."""

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- signature of any operator
        if any(isinstance(leaf, FakeTensor) for leaf in tree_flatten((args, kwargs))[0]):
            return rule(*args, **kwargs)
        composite = DispatchKey.CompositeImplicitAutograd
        return op._op_dk(composite, *args, **kwargs)  # noqa: SLF001

    _implement(library, op, kernel, "AutogradCPU")


def _implement(
    library: torch.library.Library, op: OpOverload | str, kernel: Callable[..., Any], key: str
) -> None:
    library.impl(op, kernel, key, allow_override=True)  # type: ignore[no-untyped-call]


def _install_autocast(library: torch.library.Library) -> None:
    """Replace the CPU's list of autocast operations by CUDA's."""
    for qualified_name in torch._C._dispatch_get_all_op_names():  # noqa: SLF001
        has = torch._C._dispatch_has_kernel_for_dispatch_key  # noqa: SLF001
        if not qualified_name.startswith("aten::"):
            continue
        on_cuda = has(qualified_name, "AutocastCUDA")
        on_cpu = has(qualified_name, "AutocastCPU")
        name, _, overload = qualified_name.removeprefix("aten::").partition(".")
        if on_cpu and on_cuda and name in _LOWER_PRECISION | _WIDEST_INPUT:
            continue
        if on_cuda:
            op = getattr(getattr(torch.ops.aten, name), overload or "default", None)
            if op is not None:
                _implement(library, op, _autocast_kernel(op, name), "AutocastCPU")
        elif on_cpu:
            _implement(library, qualified_name, torch.library.fallthrough_kernel, "AutocastCPU")


def _autocast_kernel(op: OpOverload, name: str) -> Callable[..., Any]:
    names = [argument.name for argument in op._schema.arguments]  # noqa: SLF001
    position = names.index("dtype") if "dtype" in names else None

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- signature of any operator
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):  # noqa: SLF001
            if name in _LOWER_PRECISION:
                return op(*_cast(args, torch.get_autocast_dtype("cpu")), **kwargs)
            if name in _WIDEST_INPUT:
                return op(*_cast(args, _widest(args)), **kwargs)
            if name not in _OUTPUT_FP32 or position is None:
                return op(*_cast(args, torch.float32), **kwargs)
            asked = kwargs.pop("dtype", None) or next(iter(args[position:]), None)
            if asked is None and args[0].dtype in _HALF:
                asked = torch.float32
            return op(*args[:position], dtype=asked, **kwargs)

    return kernel


def _cast(arguments: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    def cast(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if floating else tensor

    return tree_map_only(Tensor, cast, arguments)


def _widest(arguments: Any) -> torch.dtype:  # noqa: ANN401
    dtypes = {leaf.dtype for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)}
    return torch.float32 if torch.float32 in dtypes else torch.get_autocast_dtype("cpu")


def _fused_dropout(values: Tensor, p: float, train: bool) -> Tensor:
    """Dropout as CUDA does it: one kernel that keeps a mask of one byte per value.

    Source: `is_fused_kernel_acceptable` in aten/src/ATen/native/Dropout.cpp.
    """
    if not train or p == 0 or values.numel() == 0:
        return values
    if p == 1:
        return values * torch.zeros_like(values)
    return torch.native_dropout(values, p, train)[0]


def _attention(target: CudaTarget, on_attention: ChoiceListener) -> Callable[..., Tensor]:
    """Build attention as `scaled_dot_product_attention` in attention.cpp runs it on CUDA."""

    def attention(  # noqa: PLR0913 -- the operator's own signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = attention_call(query, key, value, attn_mask, dropout_p, causal=is_causal)
        kernel = choose_kernel(call, target) if query.dim() == 4 else AttentionKernel.MATH
        on_attention(kernel, call)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # convert_boolean_attn_mask
            attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
        if kernel is AttentionKernel.MATH:
            mixed: Tensor = torch.ops.aten._scaled_dot_product_attention_math(  # noqa: SLF001
                query, key, value, attn_mask, dropout_p, is_causal, None,
                scale=scale, enable_gqa=enable_gqa,
            )[0]  # fmt: skip
            return mixed
        if kernel is AttentionKernel.FLASH:
            scale = scale if scale is not None else query.shape[-1] ** -0.5
            return _flash(query, key, value, dropout_p, is_causal, scale)
        logsumexp = call.requires_grad
        if attn_mask is not None:
            attn_mask = _aligned(attn_mask, call)
        fused = (
            torch.ops.aten._scaled_dot_product_cudnn_attention  # noqa: SLF001
            if kernel is AttentionKernel.CUDNN
            else torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001
        )
        arguments = (query, key, value, attn_mask, logsumexp, dropout_p, is_causal)
        attended: Tensor = fused(*arguments, scale=scale)[0]
        return attended

    return attention


def attention_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_ratio: float,
    *,
    causal: bool,
) -> AttentionCall:
    """Describe a call; query, key and value are (batch, heads, positions, size)."""
    tensors = (query, key, value, *(() if mask is None else (mask,)))
    return AttentionCall(
        itemsize_bytes=query.element_size(),
        is_bfloat16=query.dtype == torch.bfloat16,
        batch=query.shape[0],
        heads=query.shape[-3],
        key_heads=key.shape[-3],
        n_queries=query.shape[-2],
        n_keys=key.shape[-2],
        head_size=query.shape[-1],
        value_size=value.shape[-1],
        has_mask=mask is not None,
        dropout_ratio=dropout_ratio,
        causal=causal,
        requires_grad=torch.is_grad_enabled() and any(each.requires_grad for each in tensors),
        dense_rows=all(each.stride(-1) == 1 or each.shape[-1] == 1 for each in tensors),
    )


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_ratio: float,
    causal: bool,
    scale: float,
) -> Tensor:
    size = query.shape[-1]
    missing = -size % 8
    if missing:
        pad = torch.nn.functional.pad
        query, key, value = (pad(each, (0, missing)) for each in (query, key, value))
    flash = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001
    out: Tensor = flash(query, key, value, dropout_ratio, causal, scale=scale)[0]
    return out[..., :size]


def _aligned(mask: Tensor, call: AttentionCall) -> Tensor:
    """Pad a mask's rows as `preprocess_mask` does, then spread it over batch and heads."""
    alignment = 16 if call.itemsize_bytes == 2 else 8
    missing = -mask.shape[-1] % alignment
    if missing:
        mask = torch.nn.functional.pad(mask, (0, missing))[..., : call.n_keys]
    return mask.expand(call.batch, call.heads, call.n_queries, call.n_keys)
