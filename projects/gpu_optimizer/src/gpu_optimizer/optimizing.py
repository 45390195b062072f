"""From a model and a budget to a plan that keeps within it, and to its proof where there is a GPU.

found = gpu_optimizer.optimize("resnet50", budget="7.2 GiB")
applied = found.apply(model, optimizer)
"""

import asyncio
import multiprocessing.spawn
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil
import torch
from torch import nn

from gpu_optimizer.applying import Applied, apply
from gpu_optimizer.batch_probing.cases import (
    ModuleCase,
    ModuleUse,
    WorkloadCase,
    pack,
    refers_to_script,
    unpack,
)
from gpu_optimizer.batch_probing.child import INSIDE_VARIABLE
from gpu_optimizer.batch_probing.process import preparation
from gpu_optimizer.budgets import parse_budget
from gpu_optimizer.errors import InvalidModelError, JobFailedError
from gpu_optimizer.fake_recorders import fake_recorders
from gpu_optimizer.machines.detection import this_gpu
from gpu_optimizer.machines.registry import default_machines_file, find_machine, load_machines
from gpu_optimizer.models.described import described_family
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.own_modules import OwnModule, StepLoss, own_module
from gpu_optimizer.plan_checks import PlanCheck, check_plan
from gpu_optimizer.plan_files import dump_plan, load_plan
from gpu_optimizer.planner import Planner, PlanOptions, Trade
from gpu_optimizer.planning.proposals import Allowed, Recorders
from gpu_optimizer.plans import STEP_TYPES, Budgeted, Exactness, Plan, PlanFailure, PlanStep
from gpu_optimizer.profiling_worker import JobLimits, JobRunner, WorkerConfig
from gpu_optimizer.runs.fitting import ModelRun, card_constants
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import Machine

USUAL_GPU: Final = "H200"
"""Planned for where none is named and none is here: the one card that was measured."""
PREDICTED: Final = "The peak is predicted: there is no GPU here to measure it on."
PREDICTED_FOR_OTHER: Final = "The peak is predicted: the GPU here is not the one it was asked for."
PREDICTED_ONLY: Final = "The peak is predicted; nothing was measured."
MEASURED: Final = "Measured in a process of its own."
_CHECK_WALL_S: Final = 600.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is to keep to, beside the budget."""

    gpu: str | None = None
    """Name of a card or a machine; None: the one that is here, else an H200."""
    budget_of: Budgeted = Budgeted.TOTAL
    max_slowdown_ratio: float | None = None
    """0.2: a step may take 20% longer; None: as long as it takes."""
    exactness: Exactness = Exactness.NUMERIC
    """How far results may move, at most."""
    techniques: frozenset[str] = frozenset(STEP_TYPES)
    """What may be used, by the names in `plans.STEP_TYPES`."""
    verify: bool = True
    """Whether the plan is measured if its card is here."""
    frontier: bool = False
    """Whether to list what memory can be had for how much time; takes up to minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Optimized:
    """A plan, or why there is none."""

    answer: Plan | PlanFailure
    base: Plan
    """The run without any change."""
    machine: Machine
    """Whose card was planned for."""
    trades: tuple[Trade, ...] = ()
    """Only if they were wished for."""
    check: PlanCheck | None = None
    """None: not measured; `note` says why."""
    note: str = PREDICTED_ONLY

    @property
    def fits(self) -> bool:
        """Whether a plan keeps within the budget."""
        return isinstance(self.answer, Plan)

    @property
    def plan(self) -> Plan:
        """The plan; if none fits, the one with the lowest peak."""
        return self.answer if isinstance(self.answer, Plan) else self.answer.smallest

    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Applied:
        """Put the plan into effect; see `applying.apply`.

        Raises
        ------
        InvalidModelError
            If nothing keeps within the budget.
        """
        if isinstance(self.answer, PlanFailure):
            name = self.answer.workload.family
            raise InvalidModelError(name, f"it cannot fit: {self.answer.reason}.")
        return apply(self.answer, model, optimizer)


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """What is planned, and how it is built for real."""

    workload: Workload
    family: Family | None
    """On fake tensors; None: the registered one."""
    case: ModuleCase | WorkloadCase
    """For another process."""


def optimize(  # noqa: PLR0913 -- what a step consists of is asked for piece by piece
    model: nn.Module | Workload | str,
    step: StepLoss | None = None,
    budget: str | int = "90%",
    *,
    inputs: Any = None,  # noqa: ANN401 -- whatever the model takes
    use: ModuleUse | None = None,
    wishes: Wishes | None = None,
    report: Report | None = None,
) -> Optimized:
    """Find the fastest way to train a model within a memory budget.

    Planning needs no GPU. Where the card is here, the plan is tried in a fresh process: its peak,
    its time and its gradients beside those of the plain run.

    Parameters
    ----------
    model
        A module of your own, the name of a registered model, or a `Workload`.
    step
        For a module: from it and one batch to the loss; None: what `use` says. To be measured,
        functions must have a name to be found by.
    budget
        ``"7.2 GiB"``, ``"8GB"``, ``"90%"`` of the card, or bytes.
    inputs
        For a module: one batch, as `step` takes it.
    use
        For a module: optimizer, autocast.
    wishes
        What else counts.
    report
        Is told what is being done.

    Raises
    ------
    InvalidBudgetError
        If the budget is none.
    UnknownNameError, InvalidModelError
        If there is no such model or card, or the model cannot be run or planned.
    JobFailedError
        If the process that was to measure failed.
    """
    if INSIDE_VARIABLE in os.environ:
        raise InvalidModelError(
            "script",
            "it is imported by the process that measures its model, and must not plan again there: "
            'put that under `if __name__ == "__main__":`.',
        )
    if isinstance(model, nn.Module):
        own = own_module(model, step, inputs, use)
        subject = _Subject(own.workload(), own.fake_family(), own.case)
    elif any(each is not None for each in (step, inputs, use)):
        raise InvalidModelError(str(model), "step, inputs and use are for modules.")
    else:
        workload = Workload(model) if isinstance(model, str) else model
        subject = _Subject(workload, None, WorkloadCase(workload))
    return _optimize(subject, budget, wishes or Wishes(), report or _say_nothing)


def optimize_run(
    run: ModelRun,
    budget: str | int,
    wishes: Wishes,
    report: Report,
    *,
    in_this_process: bool = False,
) -> Optimized:
    """Do the same for a registered or described model.

    Parameters
    ----------
    run
        As `runs.asked.model_run` understood it.
    budget, wishes, report
        As for `optimize`.
    in_this_process
        Measure here: this process was started for nothing else.
    """
    family = None if run.described is None else described_family(run.described)
    subject = _Subject(run.workload, family, WorkloadCase(run.workload, run.described))
    return _optimize(subject, budget, wishes, report, in_this_process=in_this_process)


def card_for(name: str | None) -> Machine:
    """Find the card to plan for: by name, else the one here, else `USUAL_GPU`.

    Raises
    ------
    UnknownNameError
        If neither a machine nor a GPU has this name.
    """
    here = this_gpu() if name is None else None
    if here is not None:
        return here
    return find_machine(name or USUAL_GPU, load_machines(default_machines_file()))


def _optimize(
    subject: _Subject,
    budget: str | int,
    wishes: Wishes,
    report: Report,
    *,
    in_this_process: bool = False,
) -> Optimized:
    machine = card_for(wishes.gpu)
    budget_bytes = parse_budget(budget, machine.total_bytes)
    options = PlanOptions(
        gpu=machine.gpu,
        budget_of=wishes.budget_of,
        allowed=Allowed(wishes.techniques, wishes.exactness),
        max_slowdown_ratio=wishes.max_slowdown_ratio,
    )
    recorders = fake_recorders(card_constants(machine).target, subject.family)
    planner = Planner(subject.workload, options, _watched(recorders, report))
    base = planner.base
    answer = planner.plan(budget_bytes)
    trades: tuple[Trade, ...] = ()
    if wishes.frontier:
        report("listing what memory can be had for how much time")
        trades = planner.trades()
    found = Optimized(answer, replace(base, budget_bytes=budget_bytes), machine, trades)
    if not wishes.verify or not isinstance(answer, Plan):
        return found
    here = this_gpu()
    if here is None or not torch.cuda.is_available():
        return replace(found, note=PREDICTED)
    if here.gpu != machine.gpu:
        return replace(found, note=PREDICTED_FOR_OTHER)
    if in_this_process:
        check = check_plan(answer, _real_family(subject.case), report)
    else:
        check = check_in_fresh_process(answer, subject.case, report)
    return replace(found, check=check, note=MEASURED)


def _watched(recorders: Recorders, report: Report) -> Recorders:
    """Say what is recorded; what a model's own code raises about its input becomes our error."""
    n_recorded = 0

    def tell(workload: Workload) -> None:
        nonlocal n_recorded
        n_recorded += 1
        parts = f", {workload.n_micro_batches} parts" if workload.n_micro_batches > 1 else ""
        report(
            f"planning, recording {n_recorded}: {workload.autocast or workload.dtype}, "
            f"batch {workload.batch_size:,}{parts}"
        )

    def step(workload: Workload, steps: tuple[PlanStep, ...]) -> Recording:
        tell(workload)
        return recorders.step(workload, steps)

    def graph(workload: Workload, steps: tuple[PlanStep, ...]) -> StepGraph:
        tell(workload)
        is_first = n_recorded == 1
        try:
            return recorders.graph(workload, steps)
        except (AssertionError, RuntimeError, ValueError) as error:
            if not is_first:
                raise
            reason = str(error).strip().split("\n", 1)[0]
            raise InvalidModelError(
                workload.family, f"it cannot be run like this: {reason}"
            ) from error

    return Recorders(step=step, graph=graph)


def check_in_fresh_process(
    plan: Plan, case: ModuleCase | WorkloadCase, report: Report
) -> PlanCheck:
    """Measure a plan on the GPU here; this process takes nothing of it.

    Raises
    ------
    ProbeFailedError
        If a module cannot be handed over.
    JobFailedError
        If the process ends without a result.
    """
    packed = pack(case)
    payload = {
        "plan": dump_plan(plan),
        "case": packed,
        "batch_size": plan.workload.batch_size,
        "preparation": preparation(with_script=refers_to_script(packed)),
    }
    limits = JobLimits(
        memory_bytes=psutil.virtual_memory().total,
        wall_s=_CHECK_WALL_S,
        cpu_s=int(_CHECK_WALL_S) * (os.cpu_count() or 1),
        file_bytes=1 << 30,
        n_open_files=4096,
        n_processes=64,
        limit_private_memory=False,
    )
    runner = JobRunner(WorkerConfig(jobs={"check": f"{__name__}:check_job"}, limits=limits))

    def on_event(event: Mapping[str, Any]) -> None:
        if "stage" in event:
            report(str(event["stage"]))

    # A loop of its own: the caller may be a notebook, in which one is running.
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(asyncio.run, runner.run("check", payload, on_event=on_event)).result()
    if result.failure is not None:
        detail = result.failure.detail.splitlines()[-1:]
        raise JobFailedError(
            result.failure.reason,
            " ".join([f"Measuring failed: {result.failure.message}", *detail]),
        )
    return PlanCheck.from_dict(result.value or {})


def check_job(
    payload: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Any]:
    """Measure in the process that `check_in_fresh_process` started."""
    # A script that is imported to find its classes must not plan again.
    os.environ[INSIDE_VARIABLE] = "1"
    multiprocessing.spawn.prepare(payload["preparation"])
    plan = load_plan(payload["plan"])
    check = check_plan(
        plan, _real_family(unpack(payload["case"])), lambda text: report({"stage": text})
    )
    return check.as_dict()


def _real_family(case: ModuleCase | WorkloadCase) -> Family | None:
    if isinstance(case, WorkloadCase):
        return None if case.described is None else described_family(case.described)
    return OwnModule(case, 1).real_family(torch.device("cuda"))


def _say_nothing(_text: str) -> None:
    """Nobody listens."""
