"""Cross-entropy over a large vocabulary without all of its logits at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpu_optimizer.errors import InvalidModelError

IGNORED_LABEL: Final = -100
"""Of tokens that do not count in a loss, as in `torch.nn.functional.cross_entropy`."""
# Settings of transformers' models that do more to the logits than the head does.
_LOGIT_SETTINGS: Final = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """What counts in a chunked cross-entropy."""

    n_chunks: int
    ignored_label: int = IGNORED_LABEL
    n_counted: Tensor | int | None = None
    """What the sum over tokens is divided by; None: the tokens that are not ignored. For parts of
    a batch whose losses are added up: the tokens of the whole batch."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "*items features"],
    head: nn.Linear,
    labels: Int[Tensor, "*items"],
    how: TokenLoss,
) -> Float[Tensor, ""]:
    """Cross-entropy of a linear head's logits, which exist for one chunk of tokens at a time.

    Equals ``cross_entropy(head(hidden).float(), labels)`` up to rounding, in value and gradients.
    The logits are computed again in the backward pass: one matrix product more than three, and the
    memory of one chunk's logits instead of all of them twice or three times.

    Parameters
    ----------
    hidden
        What the head is given.
    head
        From features to the vocabulary. Hooks on it are not called.
    labels
        Index of the right token.
    how
        Chunks, and what counts.
    """
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        # Casts outside of the function, so that their backward returns fp32 gradients.
        dtype = torch.get_autocast_dtype(device_type)
        flat, weight = flat.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device_type, enabled=False):
        total: Tensor = _ChunkedTotal.apply(flat, weight, bias, targets, how)  # type: ignore[no-untyped-call]
    n_counted = how.n_counted
    return total / ((targets != how.ignored_label).sum() if n_counted is None else n_counted)


def chunk_causal_lm_loss(model: nn.Module, n_chunks: int) -> Callable[[], None]:
    """Let a causal language model of transformers compute its loss in chunks.

    Where the model is given labels, its output has a loss and no logits (None) from now on; without
    labels it works as before.

    Parameters
    ----------
    model
        Such as ``AutoModelForCausalLM`` returns.
    n_chunks
        Of the tokens of a batch.

    Returns
    -------
    Callable
        Undoes it.

    Raises
    ------
    InvalidModelError
        If the model is of another kind, or changes its logits after the head.
    """
    kind = type(model).__name__
    if getattr(model, "loss_type", None) != "ForCausalLM":
        raise InvalidModelError(kind, "is no causal language model of transformers.")
    head = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear:
        raise InvalidModelError(kind, f"has a head of another kind: {type(head).__name__}.")
    for setting in _LOGIT_SETTINGS:
        if getattr(model.config, setting, None) not in {None, 1.0}:
            raise InvalidModelError(kind, f"changes its logits after the head ({setting}).")
    plain = model.forward
    had_own = "forward" in vars(model)
    model.forward = partial(_chunked_forward, model, head, plain, n_chunks)

    def undo() -> None:
        if had_own:
            model.forward = plain
        else:
            del model.forward

    return undo


def _chunked_forward(
    model: Any,  # noqa: ANN401 - a class of transformers
    head: nn.Linear,
    plain: Callable[..., Any],
    n_chunks: int,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    if kwargs.get("labels") is None:
        return plain(*args, **kwargs)
    loss_before = vars(model).get("_loss_function")
    # For this call the head hands its input on, and the loss applies the head.
    head.forward = _unchanged  # type: ignore[method-assign, assignment]
    model.loss_function = partial(_shifted_loss, head, n_chunks)
    try:
        output = plain(*args, **kwargs)
    finally:
        del head.forward
        if loss_before is None:
            del model._loss_function  # noqa: SLF001
        else:
            model.loss_function = loss_before
    if isinstance(output, tuple):
        return (output[0], None, *output[2:])
    # Not by assignment: what has an attribute of None there stays in the dictionary.
    return type(output)(**{**output, "logits": None})


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


def _shifted_loss(  # noqa: PLR0913 - the parameters of transformers' loss functions
    head: nn.Linear,
    n_chunks: int,
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    *,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED_LABEL,
    shift_labels: Tensor | None = None,
    **_others: Any,  # noqa: ANN401 - for other parts of the model
) -> Tensor:
    """Loss of the next tokens, as transformers' `ForCausalLMLoss`; `logits` is the head's input."""
    del vocab_size
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    how = TokenLoss(n_chunks, ignore_index, num_items_in_batch)
    return chunked_cross_entropy(logits, head, shift_labels, how)


class _ChunkedTotal(torch.autograd.Function):
    """Sum of the losses of all tokens that count, in fp32 at least."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - of autograd
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        how: TokenLoss,
    ) -> Tensor:
        total = torch.zeros((), dtype=_wide(hidden), device=hidden.device)
        normalisers = []
        for rows in _chunks(len(hidden), how.n_chunks):
            logits = nn.functional.linear(hidden[rows], weight, bias).to(_wide(hidden))
            normaliser = logits.logsumexp(-1)
            counted, index = _targets(labels[rows], how.ignored_label)
            right = logits.gather(-1, index).squeeze(-1)
            total = total + torch.where(counted, normaliser - right, 0.0).sum()
            normalisers.append(normaliser)
        known = torch.cat(normalisers) if normalisers else total.new_zeros(0)
        ctx.save_for_backward(hidden, weight, bias, labels, known)
        ctx.how = how
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        hidden, weight, bias, labels, normaliser = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if to_hidden else None
        # Sums over chunks in fp32, as one matrix product over all tokens would keep them.
        weight_grad = torch.zeros_like(weight, dtype=_wide(hidden)) if to_weight else None
        bias_grad = torch.zeros_like(bias, dtype=_wide(hidden)) if to_bias else None
        for rows in _chunks(len(hidden), ctx.how.n_chunks):
            logits = nn.functional.linear(hidden[rows], weight, bias).to(_wide(hidden))
            counted, index = _targets(labels[rows], ctx.how.ignored_label)
            # Softmax minus one where the right token is, scaled by what comes from above.
            slope = logits.sub_(normaliser[rows, None]).exp_()
            slope.scatter_(-1, index, slope.gather(-1, index) - 1.0)
            slope.mul_((counted * gradient)[:, None])
            if bias_grad is not None:
                bias_grad += slope.sum(0)
            low = slope.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = low @ weight
            if weight_grad is not None and weight_grad.dtype == low.dtype:
                weight_grad.addmm_(low.T, hidden[rows])
            elif weight_grad is not None:
                weight_grad += low.T @ hidden[rows]
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
        )


def _wide(tensor: Tensor) -> torch.dtype:
    """Dtype of losses: fp32, unless there are more bits already."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(n_rows: int, n_chunks: int) -> Sequence[slice]:
    size = max(-(-n_rows // max(n_chunks, 1)), 1)
    return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]


def _targets(labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Which tokens count, and the index of the right one, column by column."""
    counted = labels != ignored
    return counted, torch.where(counted, labels, 0)[:, None]
