"""``gpu-optimizer optimize``: the fastest way to keep a run within a budget of memory."""

from pathlib import Path
from typing import Annotated, Final

import typer

from gpu_optimizer.cli.exits import CANNOT_FIT
from gpu_optimizer.cli.options import Json, Model, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import print_json, result_console, say, steps, write_text
from gpu_optimizer.cli.runs import model_run, read_model, run_dict, run_words
from gpu_optimizer.plans import STEP_TYPES, Budgeted, Exactness

_N_ROWS: Final = 24


@with_run_options
def show_optimization(  # noqa: PLR0913 - one parameter per option of the command
    model: Model,
    *,
    run: RunOptions,
    budget: Annotated[str, typer.Option(help="7.2GiB, 8GB, 90% of the card, or bytes.")] = "90%",
    budget_of: Annotated[
        Budgeted, typer.Option(help="The peak that the budget limits.")
    ] = Budgeted.TOTAL,
    max_slowdown: Annotated[
        float | None,
        typer.Option(min=0.0, help="0.2: a step may take 20% longer; default: as it must."),
    ] = None,
    exactness: Annotated[
        Exactness, typer.Option(help="How far results may move, at most.")
    ] = Exactness.NUMERIC,
    without: Annotated[
        list[str] | None,
        typer.Option(help=f"Do not use; may be repeated: {', '.join(STEP_TYPES)}."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU or machine; default: the one here, else H200.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Measure peak, time and gradients if the card is here.")
    ] = True,
    frontier: Annotated[
        bool, typer.Option(help="List what memory can be had for how much time; takes a minute.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Write the plan as YAML.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw memory against time as an HTML page.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All steps, not only the first.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plan how a training step keeps within a budget; exit code 3 if nothing allowed does."""
    unknown = sorted(set(without or ()) - set(STEP_TYPES))
    if unknown:
        known = ", ".join(STEP_TYPES)
        raise typer.BadParameter(f"{unknown[0]!r}; known: {known}", param_hint="--without")
    asked = model_run(read_model(model), run)
    with steps(quiet=quiet or as_json) as progress:
        progress.say("planning")
        from gpu_optimizer.cli import optimized  # noqa: PLC0415 -- imports PyTorch

        wishes = optimized.Wishes(
            gpu=gpu,
            budget_of=budget_of,
            max_slowdown_ratio=max_slowdown,
            exactness=exactness,
            techniques=frozenset(STEP_TYPES) - set(without or ()),
            verify=verify,
            frontier=frontier or plot is not None,
        )
        found = optimized.optimize_run(asked, budget, wishes, progress.say)
    words = run_words(model, asked)
    if out is not None and found.fits:
        write_text(out, optimized.dump_plan(found.plan))
    if plot is not None:
        write_text(plot, optimized.page(found, words))
    if as_json:
        print_json({**run_dict(model, asked), **optimized.answer_dict(found)})
    elif not quiet:
        result_console().print(optimized.report(found, words, None if every else _N_ROWS))
        if out is not None and found.fits:
            say(f"{out}: in your script, gpu_optimizer.apply({str(out)!r}, model, optimizer)")
    if not found.fits:
        raise typer.Exit(CANNOT_FIT)
