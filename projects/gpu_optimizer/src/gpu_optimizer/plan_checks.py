"""A plan tried on the GPU: its peak and its time beside the plain run's, and its gradients.

All of it in one process that does nothing else; who asks starts it.
"""

import gc
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from gpu_optimizer.applying import apply
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.batch_probing.trials import (
    CudaMeter,
    MemoryCap,
    Meter,
    means_out_of_memory,
    try_batch_size,
)
from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.fake_recorders import preparation
from gpu_optimizer.gradient_parity import compare_steps
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plans import (
    Accumulation,
    Allocator,
    Exactness,
    OptimizerState,
    PeakBytes,
    Plan,
    PlanStep,
    Precision,
)
from gpu_optimizer.steps.builder import Step, build_step
from gpu_optimizer.types import Mode
from shared_utils.gpu import GpuReader

N_STEPS: Final = 12
"""Libraries take their workspaces and optimizers their state in the first ones."""
_N_ROUNDS: Final = 2
"""Plain run and plan in turn, as a card's clock drifts."""
_SEED: Final = 0
_TOLERANCES: Final = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference of a gradient's element, in parts of its tensor's largest, that another order
of summation may make: some hundred roundings of the dtype; TF32 counts as fp32."""
_WITHOUT_GRADIENTS: Final = (Allocator, OptimizerState)
"""Steps that change no gradient, and stay when a plan is undone."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """Some steps on the GPU."""

    peak: PeakBytes | None
    """None: it did not run."""
    step_s: float | None
    """Median; None: it did not run."""
    failure: str = ""
    """Why not."""


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """Gradients of one batch, of the plain run and of the plan."""

    difference_ratio: float
    """Largest of any element, in parts of its tensor's largest."""
    noise_ratio: float
    """The same between two plain runs."""
    buffers_equal: bool
    """Such as the running statistics of batch norms."""
    tolerance_ratio: float | None
    """None: the plan promises none, as it is approximate."""
    agrees: bool
    """Whether the plan keeps what it promises; an approximate one: whether all are numbers."""


@dataclass(frozen=True, slots=True)
class PlanCheck:
    """What a plan comes to on a real GPU."""

    gpu: str
    base: MeasuredRun
    planned: MeasuredRun
    gradients: GradientCheck | None
    """None: not compared; see `gradients_note`."""
    gradients_note: str = ""

    @property
    def slowdown_ratio(self) -> float | None:
        """By how much longer a step takes; None: one of them did not run."""
        if self.base.step_s is None or self.planned.step_s is None:
            return None
        return self.planned.step_s / self.base.step_s - 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for programs; what is not finite is None."""
        facts = asdict(self)
        if facts["gradients"] is not None:
            facts["gradients"] = {
                name: None if value == float("inf") else value
                for name, value in facts["gradients"].items()
            }
        return {**facts, "slowdown_ratio": self.slowdown_ratio}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "PlanCheck":
        """Read what `as_dict` wrote."""
        gradients = facts["gradients"]
        if gradients is not None:
            endless = {
                name: float("inf") if gradients[name] is None else gradients[name]
                for name in ("difference_ratio", "noise_ratio")
            }
            gradients = GradientCheck(**gradients | endless)
        return cls(
            gpu=facts["gpu"],
            base=_run_of(facts["base"]),
            planned=_run_of(facts["planned"]),
            gradients=gradients,
            gradients_note=facts["gradients_note"],
        )


def _run_of(facts: Mapping[str, Any]) -> MeasuredRun:
    peak = facts["peak"]
    return MeasuredRun(
        None if peak is None else PeakBytes(**peak), facts["step_s"], facts["failure"]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Where steps are tried."""

    device: torch.device
    meter: Meter
    name: str
    context_bytes: Callable[[], int]
    """What the process has of the device beside the allocator's memory, by now."""


def check_plan(
    plan: Plan,
    family: Family | None = None,
    report: Report | None = None,
    bench: Bench | None = None,
) -> PlanCheck:
    """Measure a plan against the plain run; weights are random.

    Parameters
    ----------
    plan
        To be tried on the card it was made for.
    family
        Builds the model; None: the registered one.
    report
        Is told what is being done.
    bench
        None: the GPU that is here.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    """
    report = report or _say_nothing
    bench = bench or _gpu_bench()
    base, planned = [], []
    for number in range(_N_ROUNDS):
        report(f"measuring the plain run, {number + 1} of {_N_ROUNDS}")
        base.append(_try(plan, (), family, bench))
        report(f"measuring the plan, {number + 1} of {_N_ROUNDS}")
        planned.append(_try(plan, plan.steps, family, bench))
    report("comparing gradients")
    gradients, note = _compare(plan, family, bench)
    return PlanCheck(
        bench.name,
        _measured(base, plan.workload, bench),
        _measured(planned, plan.workload, bench),
        gradients,
        note,
    )


def planned_workload(plan: Plan, steps: Sequence[PlanStep]) -> Workload:
    """Return the workload in the precision and the parts that steps say."""
    workload = plan.workload
    for step in steps:
        if isinstance(step, Precision):
            workload = replace(workload, autocast=step.autocast)
        elif isinstance(step, Accumulation):
            workload = replace(workload, n_micro_batches=step.n_micro_batches)
    return workload


def _try(
    plan: Plan, steps: tuple[PlanStep, ...], family: Family | None, bench: Bench
) -> ProbeResult:
    workload = planned_workload(plan, steps)
    applied = [each for each in steps if not isinstance(each, Precision | Accumulation)]

    def build(_: int) -> Step:
        torch.manual_seed(_SEED)
        return build_step(workload, bench.device, family, preparation(workload, applied))

    return try_batch_size(build, ProbeRequest(workload.batch_size, N_STEPS), bench.meter)


def _measured(results: Sequence[ProbeResult], workload: Workload, bench: Bench) -> MeasuredRun:
    """Take the highest peak and the median time; one failure is a failure."""
    for each in results:
        if not each.ran:
            out = "It runs out of memory." if each.out_of_memory else each.failure
            return MeasuredRun(None, None, out)
    reserved_bytes = max(each.peak_reserved_bytes for each in results)
    peak = PeakBytes(
        allocated=max(each.peak_allocated_bytes for each in results),
        reserved=reserved_bytes,
        total=reserved_bytes + bench.context_bytes(),
    )
    times_s = [each.item_s * workload.batch_size for each in results if each.item_s is not None]
    return MeasuredRun(peak, statistics.median(times_s))


def _compare(plan: Plan, family: Family | None, bench: Bench) -> tuple[GradientCheck | None, str]:
    if plan.workload.mode is Mode.INFER:
        return None, "A run without training has no gradients."
    try:
        return _gradients(plan, family or FAMILIES[plan.workload.family], bench), ""
    except RuntimeError as error:
        if not means_out_of_memory(error):
            raise
        # Frames keep the tensors of the failed step alive.
        traceback.clear_frames(error.__traceback__)
        return None, "The plain run does not fit, so there is nothing to compare gradients with."
    finally:
        gc.collect()
        bench.meter.release()


def _gradients(plan: Plan, family: Family, bench: Bench) -> GradientCheck:
    """Run the same batch plainly and as planned, by what a user's own script would call."""
    torch.manual_seed(_SEED)
    step = build_step(plan.workload, bench.device, family)
    changing = tuple(each for each in plan.steps if not isinstance(each, _WITHOUT_GRADIENTS))

    in_effect = [apply(replace(plan, steps=(), explanation=()), step.model)]

    def run() -> None:
        applied = in_effect[-1]
        applied.accumulate(step.inputs, lambda part: family.loss(step.model, part))
        _unscale(step.model, applied.precision.scaler)

    def change() -> None:
        in_effect.append(apply(replace(plan, steps=changing, explanation=()), step.model))

    try:
        parity = compare_steps(step.model, run, change)
    finally:
        in_effect[-1].close()
    tolerance = _tolerance(plan, parity.allowed_difference)
    agrees = parity.agrees
    if plan.exactness is not Exactness.BIT_EQUAL:
        most = sys.float_info.max if tolerance is None else tolerance
        agrees = parity.gradient_difference <= most
    return GradientCheck(
        parity.gradient_difference,
        parity.noise_difference,
        parity.buffers_equal,
        tolerance,
        agrees,
    )


def _tolerance(plan: Plan, noise_ratio: float) -> float | None:
    """How far gradients may be off, in parts of each tensor's largest; None: as far as they are.

    Parameters
    ----------
    plan
        Says what it promises.
    noise_ratio
        How far plain runs may be apart.
    """
    match plan.exactness:
        case Exactness.BIT_EQUAL:
            return noise_ratio
        case Exactness.NUMERIC:
            narrow = plan.workload.autocast or plan.workload.dtype
            return max(_TOLERANCES[narrow], noise_ratio)
        case _:
            return None


def _unscale(model: torch.nn.Module, scaler: GradScaler) -> None:
    """Undo the scaling of fp16 gradients; the scaler's own way needs an optimizer."""
    if scaler.is_enabled():
        for parameter in model.parameters():
            gradient: Tensor | None = parameter.grad
            if gradient is not None:
                gradient.div_(scaler.get_scale())


def _gpu_bench() -> Bench:
    if not torch.cuda.is_available():
        raise NoGpuError("Measuring a plan")
    reader = GpuReader(0, os.environ.get("CUDA_VISIBLE_DEVICES"))
    before = reader.read()
    used_bytes = 0 if before is None else before.used_bytes or 0
    meter = CudaMeter(MemoryCap(1.0))

    def context_bytes() -> int:
        after = reader.read()
        now_bytes = 0 if after is None else after.used_bytes or 0
        return max(now_bytes - used_bytes - torch.cuda.memory_reserved(), 0)

    name = torch.cuda.get_device_name()
    return Bench(torch.device("cuda"), meter, name, context_bytes)


def _say_nothing(_text: str) -> None:
    """Nobody listens."""
