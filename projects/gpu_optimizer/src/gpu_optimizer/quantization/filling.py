"""Giving a model its weights one layer at a time, quantized on the way.

A model in 16 bits need never be in memory as a whole: its modules are made without values, then
each weight is fetched, packed, and forgotten before the next.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gpu_optimizer.quantization.libraries import nf4_linear
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.packing import pack
from gpu_optimizer.quantization.schemes import LayerChoice, can_hold

Weights = Callable[[str, torch.Size], Tensor]
"""Gives the tensor of a parameter's name and shape."""


@contextmanager
def parameters_without_values() -> Iterator[None]:
    """Build modules whose parameters have shapes only; buffers, which are small, are real."""

    def strip(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    # Its annotation says that hooks return nothing; its documentation, what replaces the value.
    hook = register_module_parameter_registration_hook(strip)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class Packing:
    """What is quantized while a model is filled."""

    choices: Mapping[str, LayerChoice] = field(default_factory=dict)
    """Linear layers, by name."""
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    """Of each layer's inputs; see `packing.pack`."""
    seen: Callable[[str, Tensor, nn.Module], None] | None = None
    """Told of each quantized layer: its name, its weight as it was, and what holds it now."""


def fill(
    model: nn.Module,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype | None,
    packing: Packing | None = None,
) -> nn.Module:
    """Give a model from `parameters_without_values` its weights, in place.

    Parameters
    ----------
    model
        Its parameters are on the meta device; tied ones stay tied.
    weights
        Called once for each parameter.
    device
        Where everything goes.
    dtype
        Of what is not quantized; None: as it is fetched.
    packing
        What is quantized; None: nothing.
    """
    wanted = packing or Packing()
    done: dict[int, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        choice = wanted.choices.get(name)
        if choice is not None and isinstance(module, nn.Linear):
            bias = None
            if module.bias is not None:
                bias = weights(f"{prefix}bias", module.bias.shape).to(device, dtype)
            weight = weights(f"{prefix}weight", module.weight.shape).to(device, dtype)
            stored = quantized_linear(weight, bias, choice, wanted.importance.get(name))
            if wanted.seen is not None:
                wanted.seen(name, weight, stored)
            model.set_submodule(name, stored)
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in done:
                value = weights(f"{prefix}{key}", parameter.shape).to(device, dtype)
                done[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            setattr(module, key, done[id(parameter)])
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, buffer.to(device))
    return model


def quantized_linear(
    weight: Tensor, bias: Tensor | None, choice: LayerChoice, importance: Tensor | None = None
) -> nn.Module:
    """Make a linear layer that stores its weight as was chosen; see `packing.pack`.

    Raises
    ------
    MissingLibraryError
        nf4 needs bitsandbytes.
    ValueError
        The scheme does not hold rows of this length; see `schemes.can_hold`.
    """
    if not can_hold(weight.shape[1], choice.scheme):
        raise ValueError(f"{choice.scheme} does not hold rows of {weight.shape[1]} weights")
    if choice.scheme == "nf4":
        return nf4_linear(weight, bias)
    return PackedLinear(pack(weight, choice, importance), bias)
