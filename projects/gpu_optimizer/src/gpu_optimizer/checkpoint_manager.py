"""Less memory for activations: parts of the forward pass are run again in the backward pass.

`CheckpointManager.apply` puts regions around modules and `undo` takes them away; `reach` tries
proposals against measured peaks until a target is met or proven out of reach. What happens inside
of a region: `checkpointing.tape`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from gpu_optimizer.checkpointing.regions import enter_region
from gpu_optimizer.gradient_parity import Parity, compare_steps
from gpu_optimizer.plans import CheckpointRegion, InvalidPlanError
from gpu_optimizer.types import LayerMemory

_MAX_TRIALS: Final = 8
_CONTAINERS: Final = (nn.ModuleList, nn.ModuleDict)
# Of a layer's own time in a step a third is the forward pass: the backward pass computes the
# gradients of inputs and of weights.
_FORWARD_RATIO: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that could be run again."""

    region: CheckpointRegion
    kept_bytes: int
    """What its forward pass keeps for the backward pass."""
    recompute_s: float | None
    """Time to run it again; None: it was not measured."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Regions that were applied and measured."""

    regions: tuple[CheckpointRegion, ...]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of trying to reach a target."""

    target_bytes: int
    base_bytes: int
    best: Trial
    """Applied now; no regions if nothing was better than doing nothing."""
    trials: tuple[Trial, ...]

    @property
    def is_met(self) -> bool:
        """Whether the best peak is within the target."""
        return self.best.peak_bytes <= self.target_bytes


class CheckpointManager:
    """Applies checkpoint regions to a model that runs eagerly.

    Of a model in `DistributedDataParallel` it takes the ``module``. Code inside of `torch.compile`
    is not seen. Hooks, dropout, autocast, batch norms, operations in place and modules that are
    called several times work as without regions.

    Parameters
    ----------
    model
        Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._regions: tuple[CheckpointRegion, ...] = ()
        self._own_forwards: list[tuple[nn.Module, Callable[..., Any] | None]] = []

    @property
    def regions(self) -> tuple[CheckpointRegion, ...]:
        """The regions that are applied."""
        return self._regions

    def apply(self, regions: Iterable[CheckpointRegion]) -> None:
        """Apply regions in place of those that were applied before.

        Raises
        ------
        InvalidPlanError
            If the model has no such module, a module is not called as such, or one region is inside
            of another. Nothing is applied then.
        """
        self.undo()
        regions = tuple(regions)
        self._check(regions)
        for region in regions:
            for module, forward in enter_region(self._model, region).items():
                self._own_forwards.append((module, vars(module).get("forward")))
                module.forward = forward
        self._regions = regions

    def undo(self) -> None:
        """Leave the model as it was; backward passes that are under way still work."""
        for module, own in reversed(self._own_forwards):
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._own_forwards, self._regions = [], ()

    def check(self, step: Callable[[], object]) -> Parity:
        """Compare gradients and buffers with those of the plain model.

        Parameters
        ----------
        step
            Forward and backward pass of one batch, without the optimizer. It is run five times:
            plainly three times, with regions once to see the calls as a whole, and once as in all
            later steps.
        """
        regions = self._regions
        self.undo()
        try:
            return compare_steps(self._model, step, lambda: self.apply(regions))
        finally:
            self.apply(regions)

    def reach(
        self,
        target_bytes: int,
        propose: Callable[[int], Sequence[CheckpointRegion] | None],
        measure: Callable[[], int],
    ) -> Reached:
        """Apply the first proposal whose measured peak is within a target, else the best one.

        Each proposal is measured; while the peak is too high the next one is asked for a budget
        lower by what was missing. It ends when proposals come to an end, or after eight. The peak
        is never higher than without regions.

        Parameters
        ----------
        target_bytes
            Peak to reach.
        propose
            Returns regions that should lower the peak to a budget in bytes; None: there are none.
            A planner, for example.
        measure
            Runs typical steps with what is applied and returns their peak; at least two, as the
            first step with new regions may take more than the others.
        """
        self.undo()
        base = Trial((), measure())
        trials, budget_bytes = [base], target_bytes
        for _ in range(_MAX_TRIALS):
            last = trials[-1]
            proposed = propose(budget_bytes) if last.peak_bytes > target_bytes else None
            if proposed is None:
                break
            if not any(tuple(proposed) == each.regions for each in trials):
                self.apply(proposed)
                last = Trial(self._regions, measure())
                trials.append(last)
            budget_bytes -= max(last.peak_bytes - target_bytes, 0)
        within = [each for each in trials if each.peak_bytes <= target_bytes]
        best = within[0] if within else min(trials, key=lambda each: each.peak_bytes)
        if best.regions != self._regions:
            self.apply(best.regions)
        return Reached(target_bytes, base.peak_bytes, best, tuple(trials))

    def _check(self, regions: Sequence[CheckpointRegion]) -> None:
        modules = dict(self._model.named_modules())
        inside: dict[nn.Module, str] = {}
        for region in regions:
            module = modules.get(region.module)
            if module is None:
                raise InvalidPlanError("checkpoint", f"the model has no module {region.module!r}.")
            if isinstance(module, _CONTAINERS):
                reason = f"{region.module!r} is a list, it is not called itself. Name its members."
                raise InvalidPlanError("checkpoint", reason)
            parts = dict(module.named_modules())
            for name in region.recompute:
                if name not in parts:
                    reason = f"{region.module!r} has no submodule {name!r}."
                    raise InvalidPlanError("checkpoint", reason)
            for part in parts.values():
                if part in inside:
                    reason = f"{region.module!r} and {inside[part]!r} have modules in common."
                    raise InvalidPlanError("checkpoint", reason)
            inside.update(dict.fromkeys(parts.values(), region.module))


def candidate_regions(layers: LayerMemory) -> tuple[Candidate, ...]:
    """List the modules that could be checkpointed, those that keep most first.

    Parameters
    ----------
    layers
        Measured or estimated, see `memory_profiler` and `steps.recorder`; with times if they were
        measured (`layers.times`).
    """
    found = []

    def walk(layer: LayerMemory) -> None:
        if layer.name and layer.activation_bytes and layer.kind not in {"ModuleList", "ModuleDict"}:
            recompute_s = None if layer.time_s is None else layer.time_s * _FORWARD_RATIO
            region = CheckpointRegion(layer.name)
            found.append(Candidate(region, layer.activation_bytes, recompute_s))
        for child in layer.children:
            walk(child)

    walk(layers)
    return tuple(sorted(found, key=lambda each: -each.kept_bytes))
