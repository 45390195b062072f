"""Quantizes the language model of a folder, and says what that saves and costs."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.plans import Quantization
from gpu_optimizer.quantization.errors import CannotFitError, InvalidTextError
from gpu_optimizer.quantization.files import save_quantized
from gpu_optimizer.quantization.filling import Packing, fill
from gpu_optimizer.quantization.kv_cache import KvBits
from gpu_optimizer.quantization.mixed import choose_within
from gpu_optimizer.quantization.model_folders import folder_weights, model_without_values
from gpu_optimizer.quantization.quality import (
    Calibration,
    LayerError,
    Window,
    calibrate,
    layer_error,
    perplexity,
    read_tokens,
    tokenize,
    windows,
)
from gpu_optimizer.quantization.schemes import LayerChoice, Scheme
from gpu_optimizer.quantizer import (
    chosen_layers,
    layer_options,
    linear_layers,
    measured_errors,
    mixed_by_quality,
    model_bytes,
    model_cache,
    plan_choices,
    plan_steps,
    quantize,
    stored_weight,
)

_USUAL_WINDOW: Final = 2048
_MAX_CALIBRATION_WINDOWS: Final = 16
_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class QuantizingRequest:
    """What is asked for."""

    folder: Path
    scheme: Scheme
    group_size: int | None
    text: Path | None = None
    """Quality is measured on it: a text file, or token numbers as a JSON list (``.json``)."""
    calibration: Path | None = None
    """Another such file, that scales and layers are chosen by."""
    kv_cache_bits: KvBits | None = None
    budget_bytes: int | None = None
    """For all parameters together; layers are mixed so that they just fit."""
    max_increase_ratio: float | None = None
    """Of the perplexity; layers are mixed so that it is kept."""
    out: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class QuantizingResult:
    """What came of it."""

    bytes_before: int
    bytes_after: int
    steps: tuple[Quantization, ...]
    """As a plan holds them."""
    errors: tuple[LayerError, ...]
    perplexity_before: float | None
    """None: no text was given."""
    perplexity_after: float | None
    perplexity_with_cache: float | None
    """With the quantized key-value cache as well; None: not asked for."""


def quantize_folder(request: QuantizingRequest, say: Say) -> QuantizingResult:
    """Quantize a model, measure it, and write it if asked to.

    Without text, calibration or a limit to keep, weights are packed as they are read, so that the
    model need not fit as a whole.

    Raises
    ------
    InvalidModelError
        The folder holds no such model.
    InvalidTextError
        A text that cannot be read, or a limit of quality without one.
    CannotFitError
        A limit that no mixture of the scheme, int8 and plain layers keeps.
    MissingLibraryError
        A library is not installed.
    """
    if request.max_increase_ratio is not None and request.text is None:
        raise InvalidTextError("A limit of quality", "needs a text it is measured on (--text)")
    if request.scheme == "nf4" and (request.budget_bytes or request.max_increase_ratio is not None):
        raise InvalidModelError("nf4", "is not mixed with other schemes; mix int4 or int8.")
    model, described = model_without_values(request.folder)
    device = torch.device(request.device)
    with ExitStack() as stack:
        weights = stack.enter_context(folder_weights(request.folder))
        dtype = torch.float32
        if device.type == "cuda":
            dtype = _DTYPES.get(described.stored_dtype or "", torch.float32)
        needs_whole = request.text or request.calibration or request.budget_bytes
        if needs_whole is None:
            say("reading and packing")
            result = _packed_on_the_way(
                model, request, lambda packing: fill(model, weights, device, dtype, packing)
            )
        else:
            say("reading the model")
            fill(model, weights, device, dtype)
            result = _measured(model, described, request, say)
    if request.out is not None:
        say("writing")
        save_quantized(model, request.out)
    return result


def _packed_on_the_way(
    model: nn.Module, request: QuantizingRequest, fill_with: Callable[[Packing], nn.Module]
) -> QuantizingResult:
    before = sum(each.nbytes for each in model.parameters())
    choices = plan_choices(model, Quantization(request.scheme, (), request.group_size))
    errors = []

    def seen(name: str, weight: Tensor, stored: nn.Module) -> None:
        errors.append(layer_error(name, weight, stored_weight(stored), choices[name]))

    fill_with(Packing(choices, seen=seen))
    scale = next(model.parameters()).element_size() / torch.float32.itemsize
    return QuantizingResult(
        bytes_before=int(before * scale),
        bytes_after=model_bytes(model),
        steps=plan_steps(choices),
        errors=tuple(errors),
        perplexity_before=None,
        perplexity_after=None,
        perplexity_with_cache=None,
    )


def _measured(
    model: nn.Module, described: HfModel, request: QuantizingRequest, say: Say
) -> QuantizingResult:
    bytes_before = model_bytes(model)
    pieces = _pieces(request.text, request.folder, described)
    say("measuring the model as it is")
    before = perplexity(model, pieces) if pieces else None
    calibration = Calibration()
    if request.calibration is not None:
        say("watching what layers are fed with")
        watched = _pieces(request.calibration, request.folder, described)
        names = [each.name for each in linear_layers(model)]
        calibration = calibrate(model, watched[:_MAX_CALIBRATION_WINDOWS], names)
    say("choosing")
    choices = _choices(model, request, calibration, pieces, before)
    say("quantizing")
    quantized = quantize(model, choices, calibration)
    say("measuring what is left")
    after = perplexity(model, pieces) if pieces else None
    bits, with_cache = request.kv_cache_bits, None
    if pieces and bits is not None:
        with_cache = perplexity(model, pieces, lambda: model_cache(model, bits))
    return QuantizingResult(
        bytes_before=bytes_before,
        bytes_after=model_bytes(model),
        steps=plan_steps(choices),
        errors=quantized.errors,
        perplexity_before=before,
        perplexity_after=after,
        perplexity_with_cache=with_cache,
    )


def _choices(
    model: nn.Module,
    request: QuantizingRequest,
    calibration: Calibration,
    pieces: tuple[Window, ...],
    before: float | None,
) -> dict[str, LayerChoice]:
    if request.budget_bytes is None and request.max_increase_ratio is None:
        return plan_choices(model, Quantization(request.scheme, (), request.group_size))
    candidates = tuple({LayerChoice(request.scheme, request.group_size), LayerChoice("int8")})
    options = layer_options(model, measured_errors(model, candidates, calibration))
    rest = model_bytes(model) - sum(each.n_bytes for each in linear_layers(model))
    if before is None or request.max_increase_ratio is None:
        return chosen_layers(choose_within(options, (request.budget_bytes or 0) - rest))
    limit = before * (1.0 + request.max_increase_ratio)
    found = mixed_by_quality(model, options, pieces, limit, calibration)
    if found is None or (request.budget_bytes or found.n_bytes + rest) < found.n_bytes + rest:
        raise CannotFitError(request.budget_bytes or 0, rest + (found.n_bytes if found else 0))
    return found.choices


def _pieces(path: Path | None, folder: Path, described: HfModel) -> tuple[Window, ...]:
    if path is None:
        return ()
    fields = described.config.model_dump()
    if path.suffix == ".json":
        tokens = read_tokens(path, int(fields["vocab_size"]))
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidTextError(str(path), str(error)) from error
        tokens = tokenize(text, folder / "tokenizer.json")
    longest = int(fields.get("max_position_embeddings") or fields["n_positions"])
    return windows(tokens, min(longest, _USUAL_WINDOW))
