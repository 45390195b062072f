"""Copies of models and inputs without their values, to record what a step would allocate."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gpu_optimizer.errors import InvalidModelError


def fake_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that has shapes but no values; the weights are not copied.

    Called inside a `FakeTensorMode`, whose tensors the copy has. Shared parameters stay shared.

    Raises
    ------
    InvalidModelError
        Something in the model cannot be copied.
    """
    mode = torch._guards.active_fake_mode()  # noqa: SLF001
    if mode is not None:
        # A user's loss brings labels along, and a forward function may hold constants.
        mode.allow_non_fake_inputs = True
    # Tensors outside of parameters and buffers must not be copied as they are, either.
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in _tensors(model)}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, NotImplementedError, RuntimeError) as error:
        raise InvalidModelError(type(model).__name__, f"cannot be copied: {error}") from error


def fake_like(values: Any) -> Any:  # noqa: ANN401 -- whatever a model takes
    """Replace the tensors in nested lists, tuples and dicts by ones without values."""
    return tree_map_only(Tensor, _without_values, values)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for leaf in tree_leaves([*vars(module).values()]):
            if isinstance(leaf, Tensor):
                yield leaf


def _without_values(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
    ).requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake.detach(), tensor.requires_grad)
    return fake
