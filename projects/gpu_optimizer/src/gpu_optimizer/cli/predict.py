"""``gpu-optimizer predict``: how much GPU memory a run takes, before it is run."""

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpu_optimizer.cli.options import Json, Model, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import bar, print_json, result_console, steps
from gpu_optimizer.cli.runs import machine_for, model_run, read_model, run_dict, run_words
from gpu_optimizer.memory_predictor import fits
from gpu_optimizer.plans import Offload
from gpu_optimizer.runs.fitting import headroom_bytes, predict_on, prediction_dict
from gpu_optimizer.types import Machine, Prediction
from shared_utils.units import format_bytes


@with_run_options
def show_prediction(
    model: Model,
    *,
    run: RunOptions,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU or machine it is to run on; default: the one here, else an H200."),
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(
            metavar="MODULES",
            help="Activations of these modules, separated by commas, wait in the host's memory.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the peak memory of a run; no GPU is needed."""
    machine = machine_for(gpu)
    spec = read_model(model)
    with steps(quiet=quiet or as_json) as progress:
        progress.say("loading PyTorch, running the step on tensors without values")
        asked = model_run(spec, run)
        if offload is not None:
            asked = replace(asked, changes=(Offload(tuple(offload.split(","))),))
        prediction = predict_on(asked, machine, run.allocator)
    if as_json:
        print_json(
            {
                **run_dict(model, asked),
                "offload": [] if offload is None else offload.split(","),
                "gpu": machine.gpu,
                "verdict": fits(prediction, machine).name.lower(),
                "headroom_bytes": headroom_bytes(prediction, machine),
                **prediction_dict(prediction),
            }
        )
    elif not quiet:
        moved = f", {offload} on the host" if offload else ""
        heading = f"{run_words(model, asked)}{moved}; on {machine.gpu}"
        result_console().print(_report(heading, prediction, machine))


def _report(heading: str, prediction: Prediction, machine: Machine) -> Group:
    error = prediction.total_bytes * prediction.error_ratio
    figures = Table.grid(padding=(0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_column()
    figures.add_row("allocated peak", format_bytes(prediction.allocated_peak_bytes))
    figures.add_row("reserved peak", format_bytes(prediction.reserved_peak_bytes))
    figures.add_row(
        "total",
        format_bytes(prediction.total_bytes),
        f"± {format_bytes(int(error))} ({prediction.error_ratio:.1%}), with the CUDA context",
    )
    verdict = fits(prediction, machine)
    free_bytes = machine.total_bytes - machine.reserved_bytes
    figures.add_row(machine.name, format_bytes(free_bytes), f"usable: {verdict}")
    return Group(
        Text(heading, style="bold"),
        figures,
        Text(),
        Text(f"The allocated peak, {_place(prediction)}:"),
        _category_table(prediction),
        *(Text(f"Assumed: {each}.") for each in prediction.assumptions),
    )


def _place(prediction: Prediction) -> str:
    where = f" in {prediction.peak_module}" if prediction.peak_module else ""
    return f"reached in the {prediction.peak_phase} pass{where}"


def _category_table(prediction: Prediction) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="cyan")
    whole = max(prediction.allocated_peak_bytes, 1)
    largest_first = sorted(prediction.by_category_bytes.items(), key=lambda pair: -pair[1])
    for category, n_bytes in largest_first:
        part = n_bytes / whole
        name = category.replace("_", " ")
        table.add_row(name, format_bytes(n_bytes), f"{part:.1%}", bar(part))
    return table
