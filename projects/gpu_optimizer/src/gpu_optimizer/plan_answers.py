"""What is told about a plan: in words, and as plain values for programs."""

from dataclasses import asdict
from typing import Any

import yaml

from gpu_optimizer.cost_model import cheapest_that_fits
from gpu_optimizer.machines.price_catalogue import current_prices
from gpu_optimizer.machines.prices import GpuPrice
from gpu_optimizer.optimizing import Optimized
from gpu_optimizer.plan_files import dump_plan
from gpu_optimizer.planner import Trade
from gpu_optimizer.plans import (
    STEP_TYPES,
    CheckpointRegion,
    Offload,
    Plan,
    PlanFailure,
    PlanStep,
)

_NAMES = {kind: name.replace("_", " ") for name, kind in STEP_TYPES.items()}
_N_NAMED = 3


def step_kind(step: PlanStep) -> str:
    """Kind of a step, as in plan files but with spaces."""
    return _NAMES[type(step)]


def steps_words(steps: tuple[PlanStep, ...]) -> str:
    """Say briefly what several steps are."""
    regions = [each for each in steps if isinstance(each, CheckpointRegion)]
    said = [
        f"{step_kind(each)} {_settings(each)}".strip()
        for each in steps
        if not isinstance(each, CheckpointRegion)
    ]
    if regions:
        names = [each.module or "model" for each in regions[:_N_NAMED]]
        more = f" and {len(regions) - _N_NAMED} more" if len(regions) > _N_NAMED else ""
        said.append(f"checkpoint {', '.join(names)}{more}")
    return "; ".join(said) or "as it is"


def rented_alternative(found: Optimized) -> GpuPrice | None:
    """Cheapest rented GPU on which the run fits without any change; None: none is known."""
    return cheapest_that_fits(found.base.predicted_peak.total, current_prices())


def answer_dict(found: Optimized) -> dict[str, Any]:
    """A plan or why there is none, for programs; sizes in bytes, times in seconds."""
    failure = found.answer if isinstance(found.answer, PlanFailure) else None
    rented = rented_alternative(found)
    return {
        "fits": found.fits,
        "gpu": found.machine.gpu,
        "budget_bytes": found.answer.budget_bytes,
        "budget_of": found.answer.budget_of.value,
        "base": {"peak": asdict(found.base.predicted_peak), "step_s": found.base.base_s},
        "plan": None if failure else plan_dict(found.plan),
        "cannot_fit": failure
        and {
            "reason": failure.reason,
            "smallest_bytes": failure.smallest_bytes,
            "smallest": plan_dict(failure.smallest),
        },
        "frontier": [_trade_dict(trade) for trade in found.trades],
        "check": None if found.check is None else found.check.as_dict(),
        "note": found.note,
        "rented_alternative": None if rented is None else _price_dict(rented),
    }


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Content of a plan file."""
    content: dict[str, Any] = yaml.safe_load(dump_plan(plan))
    return content


def _trade_dict(trade: Trade) -> dict[str, Any]:
    return {
        "peak_allocated_bytes": trade.peak_bytes,
        "slowdown_ratio": trade.slowdown_ratio,
        "exactness": trade.exactness.value,
        "steps": steps_words(trade.steps),
    }


def _price_dict(price: GpuPrice) -> dict[str, Any]:
    return {
        "provider": price.provider,
        "instance": price.instance,
        "gpu": price.gpu,
        "usd_per_hour": price.usd_per_hour,
        "date": price.date.isoformat(),
    }


def _settings(step: PlanStep) -> str:
    if isinstance(step, Offload):
        return f"{len(step.modules)} modules"
    return ", ".join(str(value) for value in asdict(step).values() if value)
