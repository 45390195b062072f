"""Quantized models as safetensors files: tensors and a table of layers, nothing that is run.

The header's metadata say how each layer is stored; the tensors have the names that `state_dict`
gives them, tied ones once.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.quantization.filling import fill
from gpu_optimizer.quantization.libraries import is_nf4, nf4_from_tensors
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.packing import PackedWeight

_FORMAT: Final = "gpu-optimizer quantized 1"
_SCHEMES: Final = frozenset({"int8", "int4", "nf4"})


def save_quantized(model: nn.Module, path: Path) -> None:
    """Write a quantized model's tensors.

    Raises
    ------
    ValueError
        Layers were handed to `libraries.with_torchao`, whose layouts belong to one kind of GPU.
    """
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            layers[name] = f"int{module.packed.bits}"
        elif is_nf4(module):
            layers[name] = "nf4"
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        if (
            type(tensor) not in {Tensor, nn.Parameter}
            and name.removesuffix(".weight") not in layers
        ):
            raise ValueError(f"{name} is in a kernel's layout; save before `with_torchao`")
        identity = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor.detach().as_subclass(Tensor).contiguous()
    metadata = {"format": _FORMAT, "layers": json.dumps(layers)}
    save_file(tensors, path, metadata=metadata)


def load_quantized(model: nn.Module, path: Path, device: torch.device) -> nn.Module:
    """Give a model the tensors that `save_quantized` wrote.

    Parameters
    ----------
    model
        Built anew under `filling.parameters_without_values`; changed in place.
    path
        The file. Names, shapes and dtypes are checked, nothing in it is run.
    device
        Where everything goes.

    Raises
    ------
    InvalidModelError
        No such file, or one that does not suit the model.
    MissingLibraryError
        It holds nf4 layers and bitsandbytes is not installed.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as opened:
            file: Any = opened
            layers = _layers(file.metadata(), path)
            names = frozenset(file.keys())
            for name, scheme in layers.items():
                _put(model, name, scheme, file, names)
            fill(model, lambda name, shape: _tensor(file, names, name, shape), device, None)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModelError(str(path), f"not the quantized form of this model: {error}.") from (
            error
        )
    return model


def _layers(metadata: dict[str, str] | None, path: Path) -> dict[str, str]:
    if metadata is None or metadata.get("format") != _FORMAT:
        raise InvalidModelError(str(path), f"not written as {_FORMAT!r}.")
    layers = json.loads(metadata.get("layers", "null"))
    if not isinstance(layers, dict) or not set(map(str, layers.values())) <= _SCHEMES:
        raise InvalidModelError(str(path), "its table of layers cannot be read.")
    return layers


def _put(model: nn.Module, name: str, scheme: str, file: Any, names: frozenset[str]) -> None:  # noqa: ANN401
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is no linear layer")
    bias = None
    if module.bias is not None:
        bias = _tensor(file, names, f"{name}.bias", module.bias.shape)
    shape = (module.out_features, module.in_features)
    if scheme == "nf4":
        prefix = f"{name}.weight"
        own = {each.removeprefix(f"{name}."): file.get_tensor(each)
               for each in names if each == prefix or each.startswith(f"{prefix}.")}  # fmt: skip
        model.set_submodule(name, nf4_from_tensors(shape, own, bias))
        return
    stored = {key: file.get_tensor(f"{name}.{key}") for key in ("codes", "scales")}
    zeros = file.get_tensor(f"{name}.zeros") if scheme == "int4" else None
    packed = PackedWeight(stored["codes"], stored["scales"], zeros)
    _check(packed, shape, name)
    model.set_submodule(name, PackedLinear(packed, bias))


def _check(packed: PackedWeight, shape: tuple[int, int], name: str) -> None:
    n_groups = packed.scales.shape[-1] if packed.scales.ndim == 2 else 0
    right = (
        packed.codes.ndim == 2
        and packed.codes.dtype == (torch.int8 if packed.zeros is None else torch.uint8)
        and (packed.n_out, packed.n_in) == shape
        and packed.scales.is_floating_point()
        and packed.scales.shape == (shape[0], n_groups)
        and n_groups > 0
        and shape[1] % n_groups == 0
        and (packed.zeros is None or packed.zeros.shape == packed.scales.shape)
    )
    if not right:
        raise ValueError(f"codes, scales and zeros of {name} do not make a weight of {shape}")


def _tensor(file: Any, names: frozenset[str], name: str, shape: torch.Size) -> Tensor:  # noqa: ANN401
    if name not in names:
        raise ValueError(f"{name} is missing")
    tensor: Tensor = file.get_tensor(name)
    if tensor.shape != shape or not tensor.is_floating_point():
        raise ValueError(
            f"{name} is {tuple(tensor.shape)}, {tensor.dtype}; expected {tuple(shape)}"
        )
    return tensor
