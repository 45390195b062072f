"""The same training step with less memory at once: fewer bits, or fewer items.

Autocast with the gradient scaler that fp16 needs; a batch run in parts whose gradients add up to
those of the whole. Fewer logits at once: `chunked_loss`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gpu_optimizer.chunked_loss import IGNORED_LABEL
from gpu_optimizer.errors import UnknownNameError

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Autocast, and for fp16 a scaler that keeps small gradients from vanishing.

    Parameters
    ----------
    autocast
        ``bf16``, ``fp16``, or None for neither.
    device_type
        Of the model: ``cuda`` or ``cpu``.
    grad_scaler
        None: with fp16 only, whose exponent is too short for gradients; bf16 has that of fp32.

    Raises
    ------
    UnknownNameError
        If the dtype is another one.
    """

    def __init__(
        self, autocast: str | None, device_type: str = "cuda", *, grad_scaler: bool | None = None
    ) -> None:
        if autocast is not None and autocast not in _AUTOCAST:
            raise UnknownNameError("autocast dtype", autocast, tuple(_AUTOCAST))
        self._dtype = None if autocast is None else _AUTOCAST[autocast]
        self._device_type = device_type
        scales = autocast == "fp16" if grad_scaler is None else grad_scaler
        self.scaler = GradScaler(device_type, enabled=scales)
        """For checkpoints: its `state_dict` belongs beside the optimizer's."""

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the forward pass and the loss."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass; gradients are scaled until `step`."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> None:
        """Step the optimizer, or leave it where a gradient has overflowed and lower the scale.

        Parameters
        ----------
        optimizer
            Has the gradients of `backward`.
        max_norm
            Longest gradient of all parameters together, longer ones are shortened; None: any.
        """
        if max_norm is not None:
            self.scaler.unscale_(optimizer)
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatches:
    """How a batch is run in parts.

    The gradients are those of the whole batch, up to rounding, if the loss is a mean over what
    `weight` counts, and no item's result depends on the others: see `batch_dependent_modules`.
    """

    size: int
    """Items at a time; the last part may be smaller."""
    weight: Callable[[Any], float] | None = None
    """What the loss of a part is a mean over; None: its items. For language models
    `count_label_tokens`, as texts differ in how many tokens count."""
    no_sync: Callable[[], AbstractContextManager[object]] | None = None
    """Of `DistributedDataParallel`: gradients are exchanged after the last part only."""


def accumulate(
    loss_of: Callable[[Any], Tensor],
    batch: Any,  # noqa: ANN401 -- whatever the model takes
    parts: MicroBatches,
    precision: MixedPrecision | None = None,
) -> Tensor:
    """Run a batch forward and backward in parts, adding the gradients up.

    Parameters
    ----------
    loss_of
        Runs the model on a part of the batch and returns the mean loss; autocast is entered here.
    batch
        Nested lists, tuples and dicts of tensors; see `split_batch`.
    parts
        How it is cut.
    precision
        None: no autocast, no scaler.

    Returns
    -------
    Tensor
        Loss of the whole batch, without a graph; zero if nothing in it counts.
    """
    precision = precision or MixedPrecision(None)
    pieces = split_batch(batch, parts.size)
    weigh = parts.weight or count_items
    weighted = [(piece, float(weigh(piece))) for piece in pieces]
    # The mean over nothing is not a number; such a part has no gradients to add.
    counted = [(piece, weight) for piece, weight in weighted if weight > 0.0]
    whole = sum(weight for _, weight in counted)
    losses = []
    for number, (piece, weight) in enumerate(counted, start=1):
        with ExitStack() as stack:
            if parts.no_sync is not None and number < len(counted):
                stack.enter_context(parts.no_sync())
            with precision.autocast():
                loss = loss_of(piece)
            share = loss * (weight / whole)
            precision.backward(share)
        losses.append(share.detach().float())
    return torch.stack(losses).sum() if losses else torch.zeros(())


def split_batch(batch: Any, size: int) -> list[Any]:  # noqa: ANN401 -- whatever the model takes
    """Cut a batch into parts of so many items.

    The first dimension of the first tensor counts the items; tensors with as long a first dimension
    are cut, all else goes to each part as it is.
    """
    leaves, spec = tree_flatten(batch)
    n_items = count_items(batch)

    def part(first: int) -> Any:  # noqa: ANN401
        cut = [
            leaf[first : first + size]
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == n_items
            else leaf
            for leaf in leaves
        ]
        return tree_unflatten(cut, spec)

    return [part(first) for first in range(0, n_items, max(size, 1))]


def count_items(batch: Any) -> int:  # noqa: ANN401
    """Length of the first tensor of a batch."""
    tensors = (each for each in tree_leaves(batch) if isinstance(each, Tensor) and each.ndim)
    first = next(tensors, None)
    if first is None:
        raise ValueError("The batch has no tensor with a first dimension that counts its items.")
    return len(first)


def count_label_tokens(batch: Any) -> int:  # noqa: ANN401
    """How many tokens of ``batch["labels"]`` count in the loss of a causal language model.

    The first token of each text is predicted from nothing and does not count, nor do ignored ones.
    """
    labels: Tensor = batch["labels"]
    return int((labels[..., 1:] != IGNORED_LABEL).sum())


def batch_dependent_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of modules whose result for an item depends on the other items of its batch.

    Batch normalisation in training takes mean and variance from the items it sees together: with
    parts of a batch they are those of the part, the running statistics are updated once per part,
    and the gradients differ from those of the whole batch. Nothing else in PyTorch is like this.
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001
        and (module.training or not module.track_running_stats)
    )
