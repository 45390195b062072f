"""What ``gpu-optimizer optimize`` prints and draws; imports PyTorch."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpu_optimizer.optimizing import Optimized, Wishes, optimize_run
from gpu_optimizer.plan_answers import answer_dict, rented_alternative, step_kind, steps_words
from gpu_optimizer.plan_checks import GradientCheck, MeasuredRun, PlanCheck
from gpu_optimizer.plan_files import dump_plan
from gpu_optimizer.plans import CheckpointRegion, Offload, PeakBytes, Plan, PlanFailure, PlanStep
from gpu_optimizer.reports.pareto import ParetoPoint, draw_pareto
from shared_utils.units import format_bytes

__all__ = ["Wishes", "answer_dict", "dump_plan", "optimize_run", "page", "report"]

_MS_PER_S: Final = 1e3


def report(found: Optimized, words: str, n_rows: int | None) -> Group:
    """Put a plan or its failure into tables.

    Parameters
    ----------
    found
        The answer.
    words
        The run.
    n_rows
        Most steps that are listed; None: all.
    """
    answer = found.answer
    budget = f"budget {format_bytes(answer.budget_bytes)} {answer.budget_of.value}"
    parts: list[RenderableType] = [Text(f"{words}; on {found.machine.gpu}, {budget}", style="bold")]
    if isinstance(answer, PlanFailure):
        parts += [
            Text(f"It cannot fit, because {answer.reason}.", style="red"),
            Text(f"The smallest possible is {format_bytes(answer.smallest_bytes)}, with:"),
        ]
    parts.append(_peaks(found))
    if found.plan.steps:
        parts.append(_steps_table(found.plan, n_rows))
    elif found.fits:
        parts.append(Text("Nothing needs to be changed."))
    if found.check is not None:
        parts.append(_check_table(found.check, found.plan))
    parts.append(Text(_proof(found)))
    if found.trades:
        parts.append(_frontier_table(found))
    parts.append(Text(_rented_words(found)))
    return Group(*parts)


def _peaks(found: Optimized) -> Table:
    table = Table("", "allocated", "reserved", "total", "a step", "exactness")
    for column in table.columns[1:5]:
        column.justify = "right"
    base, plan = found.base, found.plan
    table.add_row("as it is", *_sizes(base.predicted_peak), _ms(base.base_s), "")
    plan_s = plan.base_s * (1 + plan.slowdown_ratio)
    table.add_row(
        "the plan" if found.fits else "the smallest",
        *_sizes(plan.predicted_peak),
        f"{_ms(plan_s)} {plan.slowdown_ratio:+.1%}",
        plan.exactness.value,
    )
    return table


def _steps_table(plan: Plan, n_rows: int | None) -> Table:
    table = Table("step", "gains", "costs", "exactness", "what it does")
    table.columns[1].justify = table.columns[2].justify = "right"
    rows = list(zip(plan.steps, plan.explanation, strict=True))
    rows.sort(key=lambda row: -row[1].gained_bytes)
    for step, effect in rows[:n_rows]:
        table.add_row(
            _step_words(step),
            format_bytes(effect.gained_bytes),
            _ms(effect.added_s),
            effect.exactness.value,
            effect.text,
        )
    hidden = rows[n_rows:] if n_rows is not None else []
    if hidden:
        gained = format_bytes(sum(effect.gained_bytes for _, effect in hidden))
        cost = _ms(sum(effect.added_s for _, effect in hidden))
        table.add_row(f"and {len(hidden)} more (--all)", gained, cost, "", "")
    return table


def _step_words(step: PlanStep) -> str:
    match step:
        case CheckpointRegion():
            return f"checkpoint {step.module or 'model'}"
        case Offload():
            return f"offload {len(step.modules)} modules"
        case _:
            return step_kind(step)


def _check_table(check: PlanCheck, plan: Plan) -> Table:
    table = Table(f"measured on {check.gpu}", "allocated", "reserved", "total", "a step")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measured in (("as it is", check.base), ("the plan", check.planned)):
        table.add_row(name, *_measured(measured))
    if check.planned.peak is not None:
        ratios = (
            getattr(plan.predicted_peak, each) / getattr(check.planned.peak, each) - 1
            for each in ("allocated", "reserved", "total")
        )
        slower = check.slowdown_ratio
        table.add_row(
            "prediction is off by",
            *(f"{ratio:+.1%}" for ratio in ratios),
            "" if slower is None else f"{plan.slowdown_ratio - slower:+.1%}",
        )
    return table


def _measured(run: MeasuredRun) -> tuple[str, ...]:
    if run.peak is None or run.step_s is None:
        return (run.failure, "", "", "")
    return (*_sizes(run.peak), _ms(run.step_s))


def _proof(found: Optimized) -> str:
    check = found.check
    if check is None:
        return found.note
    said = [found.note]
    if check.slowdown_ratio is not None:
        said.append(f"A step takes {check.slowdown_ratio:+.1%} of the time.")
    peak = check.planned.peak
    if peak is not None:
        within = peak.of(found.plan.budget_of) <= found.plan.budget_bytes
        said.append("The peak is within the budget." if within else "THE PEAK EXCEEDS THE BUDGET.")
    said.append(_gradient_words(check.gradients) or check.gradients_note)
    return " ".join(said)


def _gradient_words(found: GradientCheck | None) -> str:
    if found is None:
        return ""
    verdict = "agree" if found.agrees else "DO NOT AGREE"
    bound = "" if found.tolerance_ratio is None else f", {found.tolerance_ratio:.1e} allowed"
    return (
        f"Gradients {verdict}: {found.difference_ratio:.1e} apart{bound}; two plain runs are "
        f"{found.noise_ratio:.1e} apart."
    )


def _frontier_table(found: Optimized) -> Table:
    table = Table("allocated peak", "of base", "time", "exactness", "how")
    for column in table.columns[:3]:
        column.justify = "right"
    base = found.trades[0].peak_bytes
    for trade in found.trades:
        table.add_row(
            format_bytes(trade.peak_bytes),
            f"{trade.peak_bytes / base:.0%}",
            f"{trade.slowdown_ratio:+.1%}",
            trade.exactness.value,
            steps_words(trade.steps),
        )
    return table


def _rented_words(found: Optimized) -> str:
    rented = rented_alternative(found)
    needed = format_bytes(found.base.predicted_peak.total)
    if rented is None:
        return f"As it is the run needs {needed}; no rented GPU that is known has so much."
    return (
        f"Instead: as it is the run needs {needed} and fits a rented {rented.gpu}, "
        f"{rented.usd_per_hour:,.2f} USD per hour ({rented.provider}, {rented.date.isoformat()})."
    )


def page(found: Optimized, words: str) -> str:
    """Draw memory against time."""
    plan = found.plan
    points = [
        ParetoPoint(
            each.peak_bytes, each.slowdown_ratio, each.exactness.value, steps_words(each.steps)
        )
        for each in found.trades
    ]
    above_bytes = plan.predicted_peak.of(plan.budget_of) - plan.predicted_peak.allocated
    return draw_pareto(
        points,
        f"{words}; on {found.machine.gpu}",
        "Estimated time of a step against the memory it needs; each point is a way to run it.",
        {"the plan": _point(plan), "as it is": _point(found.base)},
        # As a peak of live tensors: what the allocator and CUDA take on top does not count.
        (found.answer.budget_bytes - above_bytes, _budget_words(found, above_bytes)),
    )


def _budget_words(found: Optimized, above_bytes: int) -> str:
    budget = f"budget {format_bytes(found.answer.budget_bytes)}"
    if not above_bytes:
        return budget
    return f"{budget}, {format_bytes(above_bytes)} of it for cache and CUDA"


def _point(plan: Plan) -> ParetoPoint:
    return ParetoPoint(
        plan.predicted_peak.allocated,
        plan.slowdown_ratio,
        plan.exactness.value,
        steps_words(plan.steps),
    )


def _sizes(peak: PeakBytes) -> tuple[str, str, str]:
    return format_bytes(peak.allocated), format_bytes(peak.reserved), format_bytes(peak.total)


def _ms(seconds: float) -> str:
    return f"{seconds * _MS_PER_S:,.2f} ms"
