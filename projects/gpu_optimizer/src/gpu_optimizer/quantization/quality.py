"""What quantization costs: perplexity on text, and errors layer by layer."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from gpu_optimizer.quantization.errors import InvalidTextError
from gpu_optimizer.quantization.packing import pack, unpack
from gpu_optimizer.quantization.schemes import LayerChoice, weight_bytes

_N_ROWS: Final = 64
"""Inputs of a layer that are kept for comparing its outputs."""
_N_LOGITS_AT_ONCE: Final = 1 << 24
_MAX_TEXT_BYTES: Final = 64 << 20


Window = Int[Tensor, " _"]


def windows(tokens: Sequence[int], n_tokens: int) -> tuple[Window, ...]:
    """Cut a text's tokens into pieces that the model reads one at a time.

    Parameters
    ----------
    tokens
        Of the whole text.
    n_tokens
        Of a piece; a last piece with fewer than two is left out.
    """
    pieces = (tokens[at : at + n_tokens] for at in range(0, len(tokens), n_tokens))
    return tuple(torch.tensor(piece, dtype=torch.int64) for piece in pieces if len(piece) > 1)


def read_tokens(path: Path, n_vocabulary: int) -> list[int]:
    """Read token numbers from a JSON list.

    Raises
    ------
    InvalidTextError
        The file is no list of numbers that the model knows.
    """
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InvalidTextError(str(path), f"larger than {_MAX_TEXT_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidTextError(str(path), f"not a JSON list of token numbers: {error}") from error
    if not isinstance(content, list) or len(content) < 2:
        raise InvalidTextError(str(path), "must be a JSON list of at least two token numbers")
    for each in content:
        if type(each) is not int or not 0 <= each < n_vocabulary:
            raise InvalidTextError(str(path), f"holds what is no token below {n_vocabulary:,}")
    return content


def tokenize(text: str, tokenizer_file: Path) -> list[int]:
    """Cut text into tokens with a ``tokenizer.json``, which is data and never code.

    Raises
    ------
    InvalidTextError
        There is no such file, or it describes no tokenizer.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 -- only where there is text

    if not tokenizer_file.is_file():
        raise InvalidTextError(
            str(tokenizer_file), "not there; without it give token numbers (--tokens)"
        )
    try:
        tokenizer: Any = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises plain Exception
        raise InvalidTextError(str(tokenizer_file), str(error)) from error
    ids: list[int] = tokenizer.encode(text).ids
    return ids


@torch.no_grad()
def perplexity(
    model: nn.Module,
    pieces: Iterable[Window],
    new_cache: Callable[[], object] | None = None,
    chunk_tokens: int = 32,
) -> float:
    """Measure how well a language model expects a text: exp of the mean negative log likelihood.

    Parameters
    ----------
    model
        A causal language model of transformers.
    pieces
        From `windows`; all but the first token of each count.
    new_cache
        Makes an empty key-value cache for each piece, which is then read `chunk_tokens` at a
        time, so that what the cache loses shows; None: whole pieces.
    chunk_tokens
        See `new_cache`.
    """
    device = next(model.parameters()).device
    total, n_expected = 0.0, 0
    for piece in pieces:
        read = piece.to(device).unsqueeze(0)
        cache = None if new_cache is None else new_cache()
        step = read.shape[1] if cache is None else chunk_tokens
        for at in range(0, read.shape[1] - 1, step):
            options = {"use_cache": False} if cache is None else {"past_key_values": cache}
            logits = model(read[:, at : at + step], **options).logits[0]
            expected = read[0, at + 1 : at + step + 1]
            total += _negative_log_likelihood(logits[: len(expected)], expected)
            n_expected += len(expected)
    if n_expected == 0:
        raise InvalidTextError("The text", "too short to measure anything on")
    return math.exp(total / n_expected)


def _negative_log_likelihood(
    logits: Float[Tensor, "tokens vocabulary"], expected: Int[Tensor, " tokens"]
) -> float:
    step = max(1, _N_LOGITS_AT_ONCE // logits.shape[1])
    total = 0.0
    for at in range(0, len(expected), step):
        some, wanted = logits[at : at + step], expected[at : at + step]
        total += float(functional.cross_entropy(some.float(), wanted, reduction="sum"))
    return total


@dataclass(slots=True)
class Calibration:
    """What layers are fed with while a text is read."""

    importance: dict[str, Float[Tensor, " in"]] = field(default_factory=dict)
    """Mean square of each input, by layer."""
    inputs: dict[str, Float[Tensor, "rows in"]] = field(default_factory=dict)
    """Some inputs as they were, by layer."""


@torch.no_grad()
def calibrate(model: nn.Module, pieces: Iterable[Window], layers: Iterable[str]) -> Calibration:
    """Watch the inputs of linear layers while the model reads.

    Use another text than the one quality is measured on.
    """
    found = Calibration()
    counts: dict[str, int] = {}
    device = next(model.parameters()).device
    with _watched(model, layers, found, counts):
        for piece in pieces:
            model(piece.to(device).unsqueeze(0), use_cache=False)
    for name, count in counts.items():
        found.importance[name] /= count
    return found


@contextmanager
def _watched(
    model: nn.Module, layers: Iterable[str], found: Calibration, counts: dict[str, int]
) -> Iterator[None]:
    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            squares = rows.float().square().sum(0)
            found.importance[name] = found.importance.get(name, torch.zeros_like(squares)) + squares
            counts[name] = counts.get(name, 0) + rows.shape[0]
            # Evenly from the first pieces, of which there may be many.
            if name not in found.inputs:
                every = max(1, rows.shape[0] // _N_ROWS)
                found.inputs[name] = rows[::every][:_N_ROWS].clone()

        return note

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True)
class LayerError:
    """What storing one layer in fewer bits does to it."""

    layer: str
    choice: LayerChoice
    n_bytes: int
    weight_error_ratio: float
    """Norm of the change of the weight over the norm of the weight."""
    output_error_ratio: float | None
    """The same of the layer's outputs on calibration inputs; None: not measured."""
    loss_increase: float | None = None
    """Nats per token lost when this layer alone is stored so; None: not measured."""


@torch.no_grad()
def layer_error(
    layer: str,
    weight: Float[Tensor, "out in"],
    stored: Float[Tensor, "out in"],
    choice: LayerChoice,
    inputs: Float[Tensor, "rows in"] | None = None,
) -> LayerError:
    """Compare a weight with what is read back of it."""
    change = stored.float() - weight.float()
    output = None
    if inputs is not None:
        rows = inputs.to(weight.device).float()
        output = _ratio(rows @ change.T, rows @ weight.float().T)
    n_out, n_in = weight.shape
    return LayerError(
        layer, choice, weight_bytes(n_out, n_in, choice), _ratio(change, weight.float()), output
    )


def _ratio(change: Tensor, whole: Tensor) -> float:
    return float(change.norm() / whole.norm().clamp_min(torch.finfo(torch.float32).tiny))


@contextmanager
def stored_as(
    model: nn.Module, choices: Mapping[str, LayerChoice], importance: Mapping[str, Tensor]
) -> Iterator[None]:
    """Run a model as if layers were stored in fewer bits; the weights are as before afterwards.

    int8 and int4 only.
    """
    before: dict[str, Tensor] = {}
    try:
        for name, choice in choices.items():
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"{name} is no linear layer")
            before[name] = weight = layer.weight.data
            layer.weight.data = unpack(pack(weight, choice, importance.get(name)), weight.dtype)
        yield
    finally:
        for name, weight in before.items():
            layer = model.get_submodule(name)
            layer.weight.data = weight


def loss_increases(
    model: nn.Module,
    pieces: Sequence[Window],
    choices: Mapping[str, Sequence[LayerChoice]],
    importance: Mapping[str, Tensor],
) -> dict[tuple[str, LayerChoice], float]:
    """Measure what the model loses when one layer at a time is stored in fewer bits.

    As many readings of the text as there are layers and choices, so a short text is meant.

    Returns
    -------
    Nats per token; may be slightly negative, as some errors happen to help.
    """
    plain = math.log(perplexity(model, pieces))
    increases = {}
    for name, candidates in choices.items():
        for choice in candidates:
            with stored_as(model, {name: choice}, importance):
                increases[name, choice] = math.log(perplexity(model, pieces)) - plain
    return increases
