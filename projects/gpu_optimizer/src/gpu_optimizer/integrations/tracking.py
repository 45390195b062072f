"""Figures of a plan, and the memory over a step, beside the curves of a training.

TensorBoard and Weights & Biases come with ``gpu-optimizer[tracking]``. Nothing is sent anywhere:
runs of Weights & Biases are written in its offline mode.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpu_optimizer.plans import InvalidPlanError, Plan
from gpu_optimizer.types import MemoryTimeline

_MAX_POINTS: Final = 1000
_MISSING: Final = "is not installed: install gpu-optimizer[tracking]."


def plan_figures(plan: Plan) -> dict[str, float]:
    """Return a plan's figures by the names under which they are logged."""
    return {
        "plan/budget_bytes": float(plan.budget_bytes),
        "plan/base_allocated_bytes": float(plan.base_peak.allocated),
        "plan/predicted_allocated_bytes": float(plan.predicted_peak.allocated),
        "plan/predicted_reserved_bytes": float(plan.predicted_peak.reserved),
        "plan/predicted_total_bytes": float(plan.predicted_peak.total),
        "plan/slowdown_ratio": plan.slowdown_ratio,
    }


def allocated_curve(timeline: MemoryTimeline) -> Iterator[tuple[int, int]]:
    """Go through what is allocated after each event: a thousand points at most, peaks kept.

    Yields
    ------
    tuple of int
        Number of the event, bytes.
    """
    allocated = np.cumsum(timeline.size_bytes)
    n_events = len(allocated)
    for first in range(0, n_events, max(-(-n_events // _MAX_POINTS), 1)):
        part = allocated[first : first + max(-(-n_events // _MAX_POINTS), 1)]
        highest = int(part.argmax())
        yield first + highest, int(part[highest])


def log_to_tensorboard(
    folder: Path, plan: Plan | None = None, timeline: MemoryTimeline | None = None
) -> None:
    """Write figures of a plan and a memory timeline as a TensorBoard run.

    Parameters
    ----------
    folder
        Of the run; the training's own, or one beside it.
    plan
        Its figures become scalars, its explanation a table.
    timeline
        Becomes a curve of allocated bytes over events.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise InvalidPlanError("tensorboard", _MISSING) from error
    with SummaryWriter(str(folder)) as writer:
        add: Any = writer
        if plan:
            for name, value in plan_figures(plan).items():
                add.add_scalar(name, value, 0)
            add.add_text("plan/steps", _table(plan), 0)
        for event, size_bytes in allocated_curve(timeline) if timeline else ():
            add.add_scalar("memory/allocated_bytes", size_bytes, event)


def log_to_wandb(
    folder: Path,
    project: str,
    plan: Plan | None = None,
    timeline: MemoryTimeline | None = None,
) -> Path:
    """Write the same as an offline run of Weights & Biases; ``wandb sync`` would upload it.

    Returns
    -------
    Path
        Folder of the run.
    """
    try:
        import wandb  # noqa: PLC0415 -- optional, takes seconds
    except ImportError as error:
        raise InvalidPlanError("wandb", _MISSING) from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project=project, dir=str(folder), mode="offline", reinit="create_new")
    try:
        if plan:
            run.summary.update(plan_figures(plan))
            rows = [[name, text] for name, text in _steps(plan)]
            run.log({"plan/steps": wandb.Table(columns=["step", "effect"], data=rows)})
        run.define_metric("memory/allocated_bytes", step_metric="memory/event")
        for event, size_bytes in allocated_curve(timeline) if timeline else ():
            run.log({"memory/event": event, "memory/allocated_bytes": size_bytes})
        return Path(run.dir).parent
    finally:
        run.finish()


def _steps(plan: Plan) -> Iterator[tuple[str, str]]:
    for number, step in enumerate(plan.steps):
        effect = plan.explanation[number].text if plan.explanation else ""
        yield str(step), effect


def _table(plan: Plan) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in _steps(plan)]
    return "\n".join(["| step | effect |", "| --- | --- |", *rows])
