"""What each step of a proposal is good for, in numbers and in words."""

from collections.abc import Sequence
from dataclasses import replace

from gpu_optimizer.planning.peak_model import PeakModel
from gpu_optimizer.planning.proposals import Proposals
from gpu_optimizer.planning.regions import Candidate
from gpu_optimizer.planning.setting_models import Proposal
from gpu_optimizer.planning.settings import Setting
from gpu_optimizer.plans import (
    Accumulation,
    CheckpointRegion,
    ChunkedLoss,
    Exactness,
    Offload,
    OptimizerState,
    PlanStep,
    Precision,
    StepEffect,
    step_exactness,
)
from shared_utils.units import format_bytes


def proposal_steps(proposal: Proposal, proposals: Proposals) -> tuple[PlanStep, ...]:
    """Return the steps of a plan that does what is proposed."""
    regions = tuple(each.region for each in proposal.choice.chosen)
    offload = () if proposal.offload is None else (Offload(proposal.offload.modules),)
    return (*proposal.setting.steps(proposals.workload), *regions, *offload)


def explain(proposal: Proposal, proposals: Proposals) -> tuple[StepEffect, ...]:
    """Say what each step of a proposal gains and costs, in the order of `proposal_steps`."""
    effects = [
        _setting_effect(step, proposal.setting, proposals)
        for step in proposal.setting.steps(proposals.workload)
    ]
    model = proposals.model(proposal.setting)
    if model is not None:
        effects += _region_effects(model.model, proposal.choice.chosen)
    if proposal.offload is not None:
        gained = proposal.choice.peak_bytes - proposal.offload.peak_bytes
        text = (
            f"{format_bytes(proposal.offload.offloaded_bytes)} of saved tensors wait on the host "
            "while they are not needed."
        )
        effects.append(StepEffect(gained, proposal.offload.stall_s, Exactness.BIT_EQUAL, text))
    return tuple(effects)


def _region_effects(model: PeakModel, chosen: Sequence[Candidate]) -> list[StepEffect]:
    peak = model.peak_bytes(chosen)
    return [
        StepEffect(
            gained_bytes=model.peak_bytes([each for each in chosen if each is not one]) - peak,
            added_s=one.recompute_s,
            exactness=Exactness.BIT_EQUAL,
            text=_region_text(one.region),
        )
        for one in chosen
    ]


def _region_text(region: CheckpointRegion) -> str:
    if region.keep == "nothing":
        return f"{region.module}: computed again in the backward pass."
    also = f" and {', '.join(region.recompute)}" if region.recompute else ""
    return f"{region.module}: norms, activations and sums{also} are computed again."


def _setting_effect(step: PlanStep, setting: Setting, proposals: Proposals) -> StepEffect:
    """Compare with the same setting but for one step, if both can be run."""
    without = _without(step, setting, proposals)
    this, other = proposals.model(setting), proposals.model(without)
    if this is None or other is None:
        return StepEffect(0, 0.0, step_exactness(step), _setting_text(step))
    exactness = step_exactness(step)
    if isinstance(step, Accumulation) and proposals.base.has_batch_norm:
        exactness = Exactness.APPROXIMATE
    return StepEffect(
        gained_bytes=other.model.base_bytes - this.model.base_bytes,
        added_s=this.plain().step_s - other.plain().step_s,
        exactness=exactness,
        text=_setting_text(step),
    )


def _without(step: PlanStep, setting: Setting, proposals: Proposals) -> Setting:
    base = proposals.base.setting
    match step:
        case Precision():
            return replace(setting, autocast=base.autocast)
        case Accumulation():
            return replace(setting, n_parts=base.n_parts)
        case ChunkedLoss():
            return replace(setting, n_chunks=1)
        case _:
            return replace(setting, state="plain")


def _setting_text(step: PlanStep) -> str:
    match step:
        case Precision(autocast=dtype):
            return f"Matrix products and convolutions run in {dtype}."
        case Accumulation(micro_batch=size, n_micro_batches=n_parts):
            return f"The batch is run in {n_parts} parts of {size}, whose gradients add up."
        case ChunkedLoss(n_chunks=n_chunks):
            return f"The loss is computed in {n_chunks} chunks, without all logits at once."
        case OptimizerState(kind="8bit"):
            return "The optimizer keeps its state in 8 bits."
        case OptimizerState(kind="offload"):
            return "The optimizer's state waits on the host between steps."
        case _:
            return ""
