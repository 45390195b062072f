"""A linear layer whose weight stays packed and is read back for each product, row by row."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from gpu_optimizer.quantization.packing import PackedWeight, row_spans, unpack

_N_STORED = ("codes", "scales", "zeros")


class PackedLinear(nn.Module):
    """Linear layer with a frozen weight in 8 or 4 bits.

    Works on any device and in any float type. Gradients flow to the input, and nothing but the
    packed weight is kept for that. Slower than a kernel that multiplies packed weights for few
    tokens (see `libraries.with_torchao`), about as fast as a 16-bit layer for many.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__()
        self.in_features = packed.n_in
        self.out_features = packed.n_out
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zeros", packed.zeros)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is stored."""
        return PackedWeight(self.codes, self.scales, self.zeros)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply in the input's dtype, or in that of `torch.autocast`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Product.apply(x, self.packed)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Shape and bits, for people."""
        packed = self.packed
        group = packed.n_in // packed.scales.shape[1]
        return f"{packed.n_in}, {packed.n_out}, bits={packed.bits}, group={group}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Move to a device; `model.half()` must not round the scales."""
        before = {name: getattr(self, name) for name in _N_STORED}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, stored in before.items():
            moved = getattr(self, name)
            if moved is not None and moved.dtype != stored.dtype:
                setattr(self, name, stored.to(moved.device))
        return self


class _Product(torch.autograd.Function):
    """Matrix product with a packed weight; reads it again for the gradient of the input."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, packed: PackedWeight) -> Tensor:
        ctx.packed = packed  # type: ignore[attr-defined]
        y = x.new_empty((*x.shape[:-1], packed.n_out))
        with torch.autocast(x.device.type, enabled=False):
            for start, stop in row_spans(packed.n_out, packed.n_in):
                weight = unpack(packed.rows(start, stop), x.dtype)
                y[..., start:stop] = functional.linear(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 -- PyTorch's
        packed: PackedWeight = ctx.packed
        grad_x: Tensor | None = None
        with torch.autocast(grad.device.type, enabled=False):
            for start, stop in row_spans(packed.n_out, packed.n_in):
                weight = unpack(packed.rows(start, stop), grad.dtype)
                part = grad[..., start:stop] @ weight
                grad_x = part if grad_x is None else grad_x + part
        if grad_x is None:
            raise ValueError("a layer without outputs has no gradient")
        return grad_x, None
