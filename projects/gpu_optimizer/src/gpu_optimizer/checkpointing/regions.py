"""Puts a tape around the calls of a module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from gpu_optimizer.checkpointing.tape import KeptResults, Tape, unpack
from gpu_optimizer.plans import CheckpointRegion


class RegionForward:
    """Takes the place of a module's ``forward``; what it returns is the same.

    Parameters
    ----------
    forward
        The module's own.
    repeats_products
        Whether matrix products, convolutions and attention are run again like the rest.
    """

    def __init__(self, forward: Callable[..., Any], *, repeats_products: bool) -> None:
        self._forward = forward
        self._repeats_products = repeats_products
        self._plan: KeptResults | None = None
        self.n_inside = 0
        """How many submodules are running whose products may be repeated."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as the module's
        """Run the module."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        tape = Tape(self._plan, self._may_repeat)
        with saved_tensors_hooks(tape.pack, unpack), tape:
            returned = self._forward(*args, **kwargs)
        was_foreseen = tape.was_foreseen
        found = tape.finish([each for each in tree_leaves(returned) if isinstance(each, Tensor)])
        # A call unlike the last one: the next one is looked at as a whole.
        self._plan = self._plan if was_foreseen else found
        return returned

    def _may_repeat(self) -> bool:
        return self._repeats_products or self.n_inside > 0


class InsideForward:
    """Takes the place of the ``forward`` of a submodule whose products may be run again."""

    def __init__(self, forward: Callable[..., Any], region: RegionForward) -> None:
        self._forward = forward
        self._region = region

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as the module's
        """Run the submodule."""
        self._region.n_inside += 1
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._region.n_inside -= 1


def enter_region(model: nn.Module, region: CheckpointRegion) -> dict[nn.Module, Callable[..., Any]]:
    """Make what takes the place of the ``forward`` of a region's modules.

    Raises
    ------
    AttributeError
        If the model has no such module.
    """
    module = model.get_submodule(region.module)
    forward = RegionForward(module.forward, repeats_products=region.keep == "nothing")
    return {
        module: forward,
        **{
            inside: InsideForward(inside.forward, forward)
            for inside in (module.get_submodule(name) for name in region.recompute)
        },
    }
