"""What torchao and bitsandbytes do: kernels for packed weights, and nf4.

torchao reads int4 through PyTorch's own tinygemm product, which needs none of torchao's compiled
extensions but an NVIDIA GPU of compute capability 8 or higher and bf16; its other int4 layouts need
the package mslk. Its int8 layout multiplies weights that it widens first, on any device.
"""

import importlib
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gpu_optimizer.quantization.errors import MissingLibraryError
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.packing import PackedWeight
from gpu_optimizer.quantization.schemes import KERNEL_GROUPS

_INNER_K_TILES: Final = 8
_ROW_MULTIPLE: Final = 8
_COLUMN_MULTIPLE: Final = 1024
"""torchao pads activations to this, so weights must be padded likewise."""
_MIDDLE_CODES: Final = 0x88
_LEAST_CAPABILITY: Final = (8, 0)


def library(name: str, what: str) -> Any:  # noqa: ANN401 -- a module without types
    """Import an optional library.

    Parameters
    ----------
    name
        Of the module.
    what
        Asks for it; begins the error's sentence.

    Raises
    ------
    MissingLibraryError
        It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingLibraryError(what, name.partition(".")[0]) from error


def nf4_linear(weight: Float[Tensor, "out in"], bias: Tensor | None) -> nn.Module:
    """Make a bitsandbytes layer with an nf4 weight, its scales quantized too.

    On the weight's device. peft knows this layer and trains adapters on top of it (QLoRA).

    Raises
    ------
    MissingLibraryError
        bitsandbytes is not installed.
    """
    bnb = library("bitsandbytes", "nf4")
    layer: nn.Module = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    _without_cpu_layout(layer)
    parameter = bnb.nn.Params4bit(
        weight.detach(), requires_grad=False, quant_type="nf4", module=layer
    )
    layer.weight = parameter.to(weight.device)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def nf4_from_tensors(
    shape: tuple[int, int], tensors: dict[str, Tensor], bias: Tensor | None
) -> nn.Module:
    """Make the layer again from what its `state_dict` held, names without the layer's.

    Raises
    ------
    MissingLibraryError
        bitsandbytes is not installed.
    ValueError
        The tensors belong to a weight of another shape.
    """
    bnb = library("bitsandbytes", "nf4")
    codes = tensors["weight"]
    scales = {name: each for name, each in tensors.items() if name.startswith("weight.")}
    layer: nn.Module = bnb.nn.Linear4bit(
        shape[1], shape[0], bias=bias is not None, quant_type="nf4", device="meta"
    )
    _without_cpu_layout(layer)
    weight = bnb.nn.Params4bit.from_prequantized(codes, scales, device=codes.device, module=layer)
    state = weight.quant_state
    if tuple(state.shape) != shape or state.quant_type != "nf4" or state.blocksize != 64:
        raise ValueError(f"an nf4 weight of shape {tuple(state.shape)}; expected {shape}")
    if codes.numel() != -(-shape[0] * shape[1] // 2) or state.absmax.numel() * 64 < (
        shape[0] * shape[1]
    ):
        raise ValueError(f"too few codes or scales for an nf4 weight of shape {shape}")
    layer.weight = weight
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _without_cpu_layout(layer: Any) -> None:  # noqa: ANN401 -- bitsandbytes'
    """Keep codes as they are on CPUs with AVX-512.

    bitsandbytes 0.50 rearranges them there on first use, which fails unless rows are a multiple
    of 64 weights.
    """
    layer.support_avx512bf16_for_cpu = False


def nf4_weight(layer: nn.Module) -> Float[Tensor, "out in"]:
    """Read the weight of a layer from `nf4_linear` back."""
    bnb = library("bitsandbytes", "nf4")
    layer_weight: Any = layer.weight
    weight: Tensor = bnb.functional.dequantize_4bit(layer_weight.data, layer_weight.quant_state)
    return weight


def is_nf4(module: nn.Module) -> bool:
    """Say whether a module is a 4-bit layer of bitsandbytes; imports nothing."""
    return any(kind.__name__ == "Linear4bit" for kind in type(module).__mro__)


def with_torchao(model: nn.Module) -> tuple[str, ...]:
    """Hand packed layers to torchao's tensors and kernels, in place; for inference.

    int4 layers on a suitable GPU then use tinygemm, which is made for few tokens at a time; int8
    layers use torchao's `Int8Tensor` on any device. The values stay the same. Such a model can
    neither be saved by `files.save_quantized` nor trained through.

    Parameters
    ----------
    model
        With `PackedLinear` layers. Each layer's packed weight is freed before the next is made.

    Returns
    -------
    Names of the layers that changed.

    Raises
    ------
    MissingLibraryError
        torchao is not installed.
    """
    changed = []
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            weight = _torchao_weight(module.packed)
            if weight is not None:
                model.set_submodule(name, _linear(weight, module.bias))
                changed.append(name)
    return tuple(changed)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _torchao_weight(packed: PackedWeight) -> Tensor | None:
    """None: torchao has no kernel for it here."""
    if packed.zeros is None:
        return _int8_tensor(packed)
    group = packed.n_in // packed.scales.shape[1]
    device = packed.codes.device
    if device.type != "cuda" or group not in KERNEL_GROUPS or _COLUMN_MULTIPLE % group:
        return None
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    return _tinygemm_tensor(packed, packed.zeros, group)


def _int8_tensor(packed: PackedWeight) -> Tensor:
    workflows = library("torchao.quantization", "int8 through torchao")
    group = packed.n_in // packed.scales.shape[1]
    weight: Tensor = workflows.Int8Tensor(packed.codes, packed.scales, [1, group], torch.bfloat16)
    return weight


def _tinygemm_tensor(packed: PackedWeight, zeros: Tensor, group: int) -> Tensor:
    workflows = library("torchao.quantization", "the int4 kernel")
    utils = library("torchao.quantization.utils", "the int4 kernel")
    more_rows = -packed.n_out % _ROW_MULTIPLE
    more_columns = -packed.n_in % _COLUMN_MULTIPLE
    pad = nn.functional.pad
    codes = pad(packed.codes, (0, more_columns // 2, 0, more_rows), value=_MIDDLE_CODES)
    to_groups = (0, more_columns // group, 0, more_rows)
    scales, zeros = pad(packed.scales, to_groups), pad(zeros, to_groups)
    weight: Tensor = workflows.Int4TilePackedTo4dTensor(
        torch.ops.aten._convert_weight_to_int4pack(codes.contiguous(), _INNER_K_TILES),  # noqa: SLF001
        utils.pack_tinygemm_scales_and_zeros(scales, zeros, torch.bfloat16),
        [1, group],
        torch.Size((packed.n_out, packed.n_in)),
    )
    return weight
