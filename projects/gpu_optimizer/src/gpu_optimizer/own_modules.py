"""A module of the caller's own as a workload that can be planned, and tried in another process."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gpu_optimizer.batch_probing.cases import (
    ModuleCase,
    ModuleUse,
    RepeatedBatch,
    build_case,
    call,
    default_loss,
)
from gpu_optimizer.batch_probing.hints import module_workload
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.fakes import fake_copy, fake_like

StepLoss = Callable[[nn.Module, Any], Tensor]
"""From a model and one batch to the loss."""


@dataclass(frozen=True, slots=True, eq=False)
class _WholeStep:
    """Stands in `ModuleUse.loss` for a function that calls the model itself."""

    loss_of: StepLoss

    def __call__(self, _outputs: Any) -> Tensor:  # noqa: ANN401 -- never called
        raise TypeError("A whole step takes the model and its batch, not what the model returns.")


@dataclass(frozen=True, slots=True, eq=False)
class OwnModule:
    """A module, one batch and how it is run."""

    case: ModuleCase
    batch_size: int

    def workload(self) -> Workload:
        """Describe the run."""
        return module_workload(self.case, self.batch_size)

    def fake_family(self) -> Family:
        """Return what builds it on fake tensors; the module itself stays as it is."""
        return self._family(lambda: fake_copy(self.case.model), fake_like)

    def real_family(self, device: torch.device) -> Family:
        """Return what builds it on a device; large weights have random values."""
        return self._family(lambda: build_case(self.case, 1, device).model, list)

    def _family(
        self,
        build: Callable[[], nn.Module],
        prepare: Callable[[list[Any]], list[Any]],
    ) -> Family:
        given = self.case.use.loss or default_loss
        others, spec = tree_flatten(self.case.make_inputs(1))

        def inputs(workload: Workload) -> dict[str, Tensor]:
            # Real tensors are cut here, also where steps are recorded on fake ones.
            with _disable_current_modes():
                batch = tree_leaves(self.case.make_inputs(workload.batch_size))
            leaves = prepare(batch)
            to = torch.empty(0).device
            return {
                str(number): leaf.to(to)
                for number, leaf in enumerate(leaves)
                if isinstance(leaf, Tensor)
            }

        def whole(batch: dict[str, Tensor]) -> Any:  # noqa: ANN401
            values = [batch.get(str(number), leaf) for number, leaf in enumerate(others)]
            return tree_unflatten(values, spec)

        def run(model: nn.Module, batch: dict[str, Tensor]) -> Any:  # noqa: ANN401
            return call(model, whole(batch))

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            if isinstance(given, _WholeStep):
                return given.loss_of(model, whole(batch))
            return given(run(model, batch))

        return Family(
            name=type(self.case.model).__name__,
            build=lambda _: build(),
            inputs=inputs,
            loss=loss,
            blocks=lambda _: (),
            predict=run,
        )


def own_module(
    model: nn.Module,
    step: StepLoss | None,
    inputs: Any,  # noqa: ANN401
    use: ModuleUse | None,
) -> OwnModule:
    """Put together a module and one batch, whose first dimension counts the items.

    Parameters
    ----------
    model
        Stays as it is.
    step
        Calls the model and returns the loss; None: as `use` says.
    inputs
        The batch.
    use
        Optimizer, autocast.

    Raises
    ------
    InvalidModelError
        If there is no tensor in the batch.
    """
    tensors = [each for each in tree_leaves(inputs) if isinstance(each, Tensor) and each.ndim]
    if not tensors:
        raise InvalidModelError(
            type(model).__name__, "a batch of tensors is needed to plan it; give one as inputs."
        )
    use = use or ModuleUse()
    use = use if step is None else replace(use, loss=_WholeStep(step))
    return OwnModule(ModuleCase(model, RepeatedBatch(inputs), use), len(tensors[0]))
