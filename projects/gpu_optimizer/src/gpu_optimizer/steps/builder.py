"""The step a workload stands for, on a GPU or on fake tensors.

Prediction and measurement run the very same code: `build_step` makes the model, the inputs and the
optimizer, and the step it returns is called once per iteration.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.types import Mode

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Prepare = Callable[[nn.Module, torch.optim.Optimizer | None], torch.optim.Optimizer | None]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A model ready to run."""

    model: nn.Module
    inputs: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None
    run: Callable[[], None]
    """One iteration."""


def build_step(
    workload: Workload,
    device: torch.device,
    family: Family | None = None,
    prepare: Prepare | None = None,
    *,
    n_skipped_tokens: int = 0,
) -> Step:
    """Make the model, a batch and the optimizer of a workload.

    Parameters
    ----------
    workload
        What to build.
    device
        Where to; under a `FakeTensorMode` nothing is really allocated.
    family
        Builds the model; None: the registered one of the workload's name.
    prepare
        Changes the model in place before its first step, as a plan does, and returns the optimizer
        to be used.
    n_skipped_tokens
        How many new tokens are put into the cache without running the model for them.

    Raises
    ------
    UnknownNameError
        If the family is not registered.
    InvalidModelError
        If the model cannot be run as asked.
    """
    if family is None and workload.family not in FAMILIES:
        raise UnknownNameError("model", workload.family, tuple(FAMILIES))
    family = family or FAMILIES[workload.family]
    previous = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPES[workload.dtype])
    try:
        with torch.device(device):
            model = family.build(workload)
            inputs = family.inputs(_one_part(workload))
    finally:
        torch.set_default_dtype(previous)
    if workload.checkpointing:
        _checkpoint(family.blocks(model))
    if workload.mode is Mode.INFER:
        model.eval()
        if prepare is not None:
            prepare(model, None)
        run: Callable[[], None] = partial(_infer, workload, family, model, inputs)
        if workload.n_new_tokens:
            run = _generation(workload, model, inputs, n_skipped_tokens)
        return Step(model, inputs, None, run)
    model.train()
    optimizer = _optimizer(workload, model)
    if prepare is not None:
        optimizer = prepare(model, optimizer) or optimizer
    run = partial(_train, workload, family, model, inputs, optimizer)
    return Step(model, inputs, optimizer, run)


def _autocast(workload: Workload, model: nn.Module) -> AbstractContextManager[object]:
    if workload.autocast in {None, "fp32"}:
        return nullcontext()
    device = next(model.parameters()).device.type
    return torch.autocast(device, _DTYPES[str(workload.autocast)])


def _train(
    workload: Workload,
    family: Family,
    model: nn.Module,
    inputs: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    for _ in range(workload.n_micro_batches):
        with _autocast(workload, model):
            loss = family.loss(model, inputs)
            if workload.n_micro_batches > 1:
                loss = loss / workload.n_micro_batches
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _one_part(workload: Workload) -> Workload:
    return replace(workload, batch_size=workload.batch_size // workload.n_micro_batches)


def _infer(workload: Workload, family: Family, model: nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad(), _autocast(workload, model):
        family.predict(model, inputs)


def _generation(
    workload: Workload, model: nn.Module, inputs: dict[str, Tensor], n_skipped_tokens: int
) -> Callable[[], None]:
    if not hasattr(getattr(model, "config", None), "use_cache"):
        raise InvalidModelError(type(model).__name__, "generates no text")

    def generate() -> None:
        """Greedy decoding with a growing cache, as `generate` of transformers does it."""
        with torch.no_grad(), _autocast(workload, model):
            tokens, cache = inputs["input_ids"], None
            for index in range(workload.n_new_tokens - n_skipped_tokens):
                output = model(
                    input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache = output.past_key_values
                tokens = output.logits[:, -1:].argmax(-1)
                del output
                if index == 1 and n_skipped_tokens:
                    _lengthen(cache, n_skipped_tokens)

    return generate


def _lengthen(cache: Any, n_tokens: int) -> None:  # noqa: ANN401 -- a class of transformers
    """Grow a cache at once by what would have come one token at a time."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            new = kept.new_zeros((*kept.shape[:-2], n_tokens, kept.shape[-1]))
            setattr(layer, name, torch.cat([kept, new], dim=-2))


def _optimizer(workload: Workload, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [each for each in model.parameters() if each.requires_grad]
    options: dict[str, Any] = {"lr": 1e-4, "foreach": workload.foreach}
    if workload.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if workload.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    momentum = 0.9 if workload.optimizer == "sgd-momentum" else 0.0
    return torch.optim.SGD(parameters, momentum=momentum, **options)


def _checkpoint(blocks: Iterable[nn.Module]) -> None:
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
