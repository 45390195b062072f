"""Steps of plans recorded on fake tensors, by the very code that applies a plan to a real model."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from gpu_optimizer.applying import apply
from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.planning.proposals import Recorders
from gpu_optimizer.plans import Budgeted, Exactness, PeakBytes, Plan, PlanStep
from gpu_optimizer.steps.builder import Prepare
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.steps.operations import record_graph
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.steps.recordings import Recording

_UNKNOWN = PeakBytes(0, 0, 0)


def fake_recorders(target: CudaTarget | None = None, family: Family | None = None) -> Recorders:
    """Return what records steps for a planner.

    Parameters
    ----------
    target
        GPU whose kernels are assumed; a Hopper card by default.
    family
        Builds the model; None: the registered one of the workload's name.
    """

    def step(workload: Workload, steps: Sequence[PlanStep]) -> Recording:
        return record_step(workload, target, family, preparation(workload, steps))

    def graph(workload: Workload, steps: Sequence[PlanStep]) -> StepGraph:
        return record_graph(workload, target, family, preparation(workload, steps))

    return Recorders(step=step, graph=graph)


def preparation(workload: Workload, steps: Sequence[PlanStep]) -> Prepare | None:
    """Return what applies steps to a model that `build_step` has made; None if there are none."""
    if not steps:
        return None
    plan = Plan(
        workload=workload,
        budget_bytes=0,
        budget_of=Budgeted.TOTAL,
        steps=tuple(steps),
        base_peak=_UNKNOWN,
        predicted_peak=_UNKNOWN,
        base_s=0.0,
        slowdown_ratio=0.0,
        exactness=Exactness.APPROXIMATE,
    )
    return partial(_prepare, plan)


def _prepare(
    plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> torch.optim.Optimizer | None:
    return apply(plan, model, optimizer).optimizer
