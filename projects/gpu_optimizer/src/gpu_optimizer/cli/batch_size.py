"""``gpu-optimizer batch-size``: how many items at a time, tried on this GPU or predicted."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpu_optimizer.batch_probing.results import BatchAnswer, StopReason
from gpu_optimizer.batch_probing.search import LARGEST_BATCH, Goal, SearchRules
from gpu_optimizer.cli.options import Json, Model, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import print_json, result_console, steps
from gpu_optimizer.cli.runs import machine_for, model_run, read_model, run_dict, run_words
from gpu_optimizer.machines.detection import this_gpu
from gpu_optimizer.runs.fitting import ModelRun
from shared_utils.exits import ExitCode
from shared_utils.units import BYTES_PER_GIB, format_bytes

_STOPS = {
    StopReason.MEMORY: "a larger batch does not fit",
    StopReason.LATENCY: "an item takes longer in a larger batch",
    StopReason.KNEE: "doubling it makes an item hardly quicker",
    StopReason.LIMIT: "larger ones were not asked for (--largest)",
    StopReason.TIME: "time was up; a larger one may fit",
    StopReason.FAILURE: "a larger batch fails",
}


@with_run_options
def show_batch_size(  # noqa: PLR0913 - one parameter per option of the command
    model: Model,
    *,
    run: RunOptions,
    max_vram: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Part of the GPU's memory that may be used, by all."),
    ] = 0.9,
    goal: Annotated[
        Goal, typer.Option(help="The largest batch, or the one beyond which nothing is gained.")
    ] = Goal.LARGEST,
    gib: Annotated[
        float | None,
        typer.Option(min=0.01, help="As on a card with so much for PyTorch's allocator, GiB."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Another GPU or machine: predicted only. Without a GPU here: H200."),
    ] = None,
    largest: Annotated[int, typer.Option(min=1, help="Never more items.")] = LARGEST_BATCH,
    budget_s: Annotated[
        float, typer.Option(min=1.0, help="Begin no further trial after so many seconds.")
    ] = 120.0,
    cache: Annotated[
        bool, typer.Option(help="Use what was found before for the same model, GPU and versions.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the largest batch by real steps on this GPU; exit code 1 if not one item fits."""
    if run.batch != 1:
        raise typer.BadParameter(
            "it is what is looked for; --largest limits it", param_hint="--batch"
        )
    asked = model_run(read_model(model), run)
    rules = SearchRules(goal, largest=largest, budget_s=budget_s)
    tried = gpu is None and this_gpu() is not None
    with steps(quiet=quiet or as_json) as progress:
        progress.say("trying batch sizes on this GPU" if tried else "predicting batch sizes")
        from gpu_optimizer.batch_optimizer import (  # noqa: PLC0415 -- imports PyTorch
            BatchOptions,
            find_batch_size,
            predict_batch_size,
        )
        from gpu_optimizer.batch_probing.cases import WorkloadCase  # noqa: PLC0415

        options = BatchOptions(
            rules,
            cap_bytes=None if gib is None else round(gib * BYTES_PER_GIB),
            allocator="expandable_segments:True" if run.expandable_segments else None,
            cache=cache,
        )
        case = WorkloadCase(asked.workload, asked.described)
        if tried:
            found = find_batch_size(case, max_vram, options=options)
        else:
            found = predict_batch_size(case, machine_for(gpu), max_vram, options)
    if as_json:
        print_json(_document(model, asked, found))
    elif not quiet:
        result_console().print(_report(model, asked, found))
    if found.batch_size == 0:
        raise typer.Exit(ExitCode.FAILED)


def _document(model: str, asked: ModelRun, found: BatchAnswer) -> dict[str, Any]:
    return {**run_dict(model, asked), **asdict(found)}


def _report(model: str, asked: ModelRun, found: BatchAnswer) -> Group:
    words = run_words(model, asked).replace("batch 1, ", "")
    figures = Table.grid(padding=(0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_column()
    figures.add_row("batch size", f"{found.batch_size:,}", _why(found))
    if found.verified:
        figures.add_row("allocated peak", format_bytes(found.peak_allocated_bytes))
        figures.add_row(
            "reserved peak",
            format_bytes(found.peak_reserved_bytes),
            f"of {format_bytes(found.limit_bytes)} permitted",
        )
    if found.item_s is not None:
        figures.add_row("items per second", f"{1.0 / found.item_s:,.1f}")
    return Group(Text(words, style="bold"), figures, Text(_origin(found)))


def _why(found: BatchAnswer) -> str:
    reason = _STOPS[found.stop]
    return f"{reason}: {found.failure}" if found.failure else reason


def _origin(found: BatchAnswer) -> str:
    if found.cached:
        return "Found before with the same model, GPU and versions; --no-cache tries again."
    if not found.verified:
        return f"Predicted in {found.took_s:.1f} s, not tried; only memory was looked at."
    steady = ", the last ones without a new request to the device" if found.steady else ""
    begun = "" if found.predicted is None else f" beginning near a predicted {found.predicted:,}"
    return (
        f"Tried {found.n_trials} times in {found.took_s:.1f} s{begun}; held for "
        f"{found.n_verified_steps} steps in a fresh process{steady}."
    )
