"""Weights of linear layers in fewer bits, and what that costs: chosen, applied, measured.

>>> quantized = quantize(model, plan_choices(model, Quantization("int4", group_size=64)))
>>> perplexity(model, windows(tokens, 2048))
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from gpu_optimizer.plans import InvalidPlanError, Quantization
from gpu_optimizer.quantization.filling import quantized_linear
from gpu_optimizer.quantization.kv_cache import KvBits, quantized_cache
from gpu_optimizer.quantization.libraries import is_nf4, nf4_weight
from gpu_optimizer.quantization.linear import PackedLinear
from gpu_optimizer.quantization.mixed import LayerOption, after, upgrades
from gpu_optimizer.quantization.packing import pack, unpack
from gpu_optimizer.quantization.quality import (
    Calibration,
    LayerError,
    Window,
    layer_error,
    loss_increases,
    perplexity,
    stored_as,
)
from gpu_optimizer.quantization.schemes import LayerChoice, LayerShape, can_hold

USUAL_GROUP: Final = 64
"""Of int4: 4.5 bits to a weight."""


def linear_layers(model: nn.Module) -> tuple[LayerShape, ...]:
    """List the linear layers that may be quantized: all but the head, which decides most."""
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    return tuple(
        LayerShape(name, each.out_features, each.in_features, each.weight.element_size())
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and each is not head and not is_nf4(each)
    )


def plan_choices(model: nn.Module, step: Quantization) -> dict[str, LayerChoice]:
    """Return how each layer that a plan's step names is stored.

    A name stands for that layer or for all linear layers inside that module.

    Raises
    ------
    InvalidPlanError
        A name stands for no linear layer, or a named layer cannot be stored so.
    """
    if step.scheme is None:
        return {}
    choice = LayerChoice(step.scheme, step.group_size)
    if not step.modules:
        return {
            layer.name: choice
            for layer in linear_layers(model)
            if can_hold(layer.n_in, step.scheme)
        }
    modules = dict(model.named_modules())
    chosen = {}
    for asked in step.modules:
        names = [name for name in modules if name == asked or name.startswith(f"{asked}.")]
        layers = [
            name
            for name in names
            if isinstance(layer := modules[name], nn.Linear)
            and can_hold(layer.in_features, step.scheme)
        ]
        if not layers:
            raise InvalidPlanError(
                "quantization", f"{asked!r} holds no linear layer that {step.scheme} can store"
            )
        chosen.update(dict.fromkeys(layers, choice))
    return chosen


def plan_cache(model: nn.Module, step: Quantization) -> object | None:
    """Make the key-value cache that a plan's step asks for; None: the model's usual one."""
    if step.kv_cache_bits is None:
        return None
    return model_cache(model, step.kv_cache_bits)


def model_cache(model: nn.Module, bits: KvBits) -> object:
    """Make an empty quantized key-value cache for a transformers model."""
    config = getattr(model, "config", None)
    n_layers = getattr(config, "num_hidden_layers", None)
    if n_layers is None:
        raise InvalidPlanError("quantization", "the model has no key-value cache to quantize")
    return quantized_cache(n_layers, bits)


@dataclass(slots=True)
class Quantized:
    """A model whose layers were replaced in place."""

    model: nn.Module
    choices: Mapping[str, LayerChoice]
    errors: tuple[LayerError, ...]
    """One for each layer, in the order of `choices`; empty if not measured."""
    _originals: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def undo(self) -> None:
        """Put the layers back, which must have been kept.

        Raises
        ------
        ValueError
            They were not: fewer bits do not hold what the weights were.
        """
        if len(self._originals) != len(self.choices):
            raise ValueError("the layers were not kept: quantize with keep_originals=True")
        for name, original in self._originals.items():
            quantized = self.model.get_submodule(name)
            device = next(tensor.device for tensor in _tensors(quantized))
            self.model.set_submodule(name, original.to(device))
        self._originals = {}
        self.choices = {}


def quantize(
    model: nn.Module,
    choices: Mapping[str, LayerChoice],
    calibration: Calibration | None = None,
    *,
    keep_originals: bool = False,
    measure: bool = True,
) -> Quantized:
    """Replace linear layers by ones in fewer bits, one after the other, in place.

    Parameters
    ----------
    model
        Any module; a layer stays on the device where its weight is.
    choices
        From `plan_choices` or `mixed_within`.
    calibration
        From `quality.calibrate`: int4 then spares the inputs that matter most, and errors of
        outputs are measured beside those of weights.
    keep_originals
        Keep the layers in the host's memory, for `Quantized.undo`.
    measure
        Measure errors; not possible on tensors without values, where only memory is asked for.

    Raises
    ------
    MissingLibraryError
        nf4 needs bitsandbytes.
    TypeError
        A name is no linear layer.
    """
    seen = calibration or Calibration()
    errors: list[LayerError] = []
    originals: dict[str, nn.Module] = {}
    for name, choice in choices.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is no linear layer")
        weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach()
        stored = quantized_linear(weight, bias, choice, seen.importance.get(name))
        if measure:
            read_back = stored_weight(stored)
            errors.append(layer_error(name, weight, read_back, choice, seen.inputs.get(name)))
        stored.train(layer.training)
        model.set_submodule(name, stored)
        if keep_originals:
            originals[name] = layer.to("cpu")
    return Quantized(model, dict(choices), tuple(errors), originals)


def stored_weight(layer: nn.Module) -> Tensor:
    """Read the weight of a quantized layer back.

    Raises
    ------
    TypeError
        The layer is not quantized.
    """
    if isinstance(layer, PackedLinear):
        return unpack(layer.packed, torch.float32)
    if is_nf4(layer):
        return nf4_weight(layer)
    raise TypeError(f"{type(layer).__name__} is no quantized layer")


def model_bytes(model: nn.Module) -> int:
    """Return what parameters and buffers take, shared ones once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}.values())


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield from _inner_tensors(tensor)
    for module in model.modules():
        if is_nf4(module):
            weight: Any = module.weight
            state = weight.quant_state
            yield from (state.absmax, state.code, state.state2.absmax, state.state2.code)
            yield state.offset


def _inner_tensors(tensor: Tensor) -> Iterable[Tensor]:
    """Tensors that one of torchao's consists of; any other tensor itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        yield from _inner_tensors(getattr(tensor, name))


def measured_errors(
    model: nn.Module,
    candidates: Sequence[LayerChoice],
    calibration: Calibration,
    pieces: Sequence[Window] = (),
) -> tuple[LayerError, ...]:
    """Measure what each way to store each layer does, without changing the model.

    Parameters
    ----------
    model
        Of plain linear layers.
    candidates
        int8 and int4, with group sizes.
    calibration
        Of the same model.
    pieces
        If given, the loss with each layer alone stored so is measured on them too: slower by as
        many readings as there are layers and candidates, but what counts.
    """
    layers = linear_layers(model)
    fitting = {
        layer.name: [each for each in candidates if can_hold(layer.n_in, each.scheme)]
        for layer in layers
    }
    losses = loss_increases(model, pieces, fitting, calibration.importance) if pieces else {}
    errors = []
    for name, choices in fitting.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        for choice in choices:
            stored = unpack(pack(weight, choice, calibration.importance.get(name)), torch.float32)
            error = layer_error(name, weight, stored, choice, calibration.inputs.get(name))
            errors.append(replace(error, loss_increase=losses.get((name, choice))))
    return tuple(errors)


def layer_options(
    model: nn.Module, errors: Iterable[LayerError]
) -> dict[str, tuple[LayerOption, ...]]:
    """Return what `mixed.choose_within` chooses from: each layer as it is, and as was measured.

    Damage is the loss's increase where it was measured (at least zero), else the square of the
    outputs' error, else that of the weights': errors of many layers add up like variances.
    """
    options: dict[str, list[LayerOption]] = {
        layer.name: [LayerOption(None, layer.n_bytes, 0.0)] for layer in linear_layers(model)
    }
    for error in errors:
        if error.loss_increase is not None:
            damage = max(error.loss_increase, 0.0)
        else:
            ratio = error.output_error_ratio
            damage = (error.weight_error_ratio if ratio is None else ratio) ** 2
        options[error.layer].append(LayerOption(error.choice, error.n_bytes, damage))
    return {name: tuple(each) for name, each in options.items()}


@dataclass(frozen=True, slots=True)
class MixedResult:
    """A choice that keeps a limit of quality, with the fewest bytes that were found."""

    choices: dict[str, LayerChoice]
    n_bytes: int
    perplexity: float
    """Measured with exactly this choice."""


def mixed_by_quality(
    model: nn.Module,
    options: Mapping[str, Sequence[LayerOption]],
    pieces: Sequence[Window],
    max_perplexity: float,
    calibration: Calibration,
) -> MixedResult | None:
    """Give layers more bits, the most sensitive first, until a measured perplexity is low enough.

    Halves the order of `mixed.upgrades` again and again, and measures each time.

    Parameters
    ----------
    model
        Of plain linear layers; unchanged afterwards.
    options
        From `layer_options`.
    pieces
        Text the limit holds for.
    max_perplexity
        The limit.
    calibration
        As the options were measured with.

    Returns
    -------
    None if even the best options do not keep the limit.
    """
    low, high = 0, len(upgrades(options))
    best: MixedResult | None = None
    while low <= high:
        middle = (low + high) // 2
        chosen = after(options, middle)
        choices = {name: each.choice for name, each in chosen.items() if each.choice is not None}
        with stored_as(model, choices, calibration.importance):
            found = perplexity(model, pieces)
        if found <= max_perplexity:
            best = MixedResult(choices, sum(each.n_bytes for each in chosen.values()), found)
            high = middle - 1
        else:
            low = middle + 1
    return best


def chosen_layers(options: Mapping[str, LayerOption]) -> dict[str, LayerChoice]:
    """Leave out the layers that stay as they are."""
    return {name: each.choice for name, each in options.items() if each.choice is not None}


def plan_steps(choices: Mapping[str, LayerChoice]) -> tuple[Quantization, ...]:
    """Write choices as steps of a plan: one for each scheme, with its layers' names."""
    by_choice: dict[LayerChoice, list[str]] = {}
    for name, choice in choices.items():
        by_choice.setdefault(choice, []).append(name)
    return tuple(
        Quantization(choice.scheme, tuple(names), choice.group_size)
        for choice, names in by_choice.items()
    )
