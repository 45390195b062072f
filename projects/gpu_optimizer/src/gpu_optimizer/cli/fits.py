"""``gpu-optimizer fits``: on which machines a run fits, and how large its batch may be."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.cli.options import Json, Model, Quiet, RunOptions, with_run_options
from gpu_optimizer.cli.output import Steps, print_json, result_console, say, steps
from gpu_optimizer.cli.runs import model_run, read_model, run_dict, run_words
from gpu_optimizer.machines.registry import default_machines_file, find_machine, load_machines
from gpu_optimizer.memory_predictor import Fit, fits
from gpu_optimizer.model_specs import ModelSpec
from gpu_optimizer.runs.fitting import (
    BatchSearch,
    headroom_bytes,
    largest_batch,
    predict_on,
    prediction_dict,
    safe_margin_bytes,
)
from gpu_optimizer.types import Machine, Prediction
from shared_utils.exits import ExitCode
from shared_utils.units import format_bytes

_TOLERANCE_RATIO: Final = 0.01
"""The largest batch is found to so much; each guess takes a prediction."""
_WORDS: Final = {Fit.YES: "yes", Fit.TIGHT: "perhaps", Fit.NO: "no"}


@dataclass(frozen=True, slots=True)
class _Question:
    spec: ModelSpec
    run: RunOptions
    allocator: AllocatorConfig
    search_s: float

    def predict(self, machine: Machine, batch: int) -> Prediction:
        return predict_on(model_run(self.spec, self.run, batch), machine, self.allocator)


@dataclass(frozen=True, slots=True)
class _Answer:
    machine: Machine
    batch_limit: int | None
    """Largest batch the machine should be asked for, whatever fits."""
    prediction: Prediction
    search: BatchSearch | None
    """None: not asked for."""

    @property
    def verdict(self) -> Fit:
        return fits(self.prediction, self.machine)

    def as_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine.name,
            "gpu": self.machine.gpu,
            "verdict": self.verdict.name.lower(),
            "headroom_bytes": headroom_bytes(self.prediction, self.machine),
            "largest_batch": None if self.search is None else self.search.largest,
            "batch_limit": self.batch_limit,
            "largest_batch_is_final": None if self.search is None else self.search.complete,
            "prediction": prediction_dict(self.prediction),
        }


@with_run_options
def show_fits(  # noqa: PLR0913 - one parameter per option of the command
    model: Model,
    *,
    run: RunOptions,
    machine: Annotated[
        list[str] | None, typer.Option(help="Name in config/machines.yml; may be repeated.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPU by its own name; may be repeated.")
    ] = None,
    search_s: Annotated[
        float,
        typer.Option(
            min=0.0, help="Look so long per machine for the largest batch, to 1%; 0: do not."
        ),
    ] = 20.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say on which machines a run fits; exit code 1 if on none of them."""
    asked = _machines(machine or [], gpu or [])
    question = _Question(read_model(model), run, run.allocator, search_s)
    with steps(quiet=quiet or as_json) as progress:
        answers = [_ask(question, *each, progress) for each in asked]
    understood = model_run(question.spec, run)
    if as_json:
        rows = [answer.as_dict() for answer in answers]
        print_json({**run_dict(model, understood), "machines": rows})
    elif not quiet:
        say(run_words(model, understood))
        result_console().print(_table(answers))
    if not any(answer.verdict is Fit.YES for answer in answers):
        raise typer.Exit(ExitCode.FAILED)


def _machines(names: list[str], gpus: list[str]) -> list[tuple[Machine, int | None]]:
    """Machines asked for with their batch limits; all of the file if none is."""
    known = load_machines(default_machines_file())
    asked = (*names, *gpus) or tuple(known)
    limits = {name: entry.batch_limit for name, entry in known.items()}
    return [(find_machine(name, known), limits.get(name)) for name in asked]


def _ask(
    question: _Question, machine: Machine, batch_limit: int | None, progress: Steps
) -> _Answer:
    batch = question.run.batch
    progress.say(f"{machine.name}: predicting batch {batch:,}")
    prediction = question.predict(machine, batch)
    if not question.search_s:
        return _Answer(machine, batch_limit, prediction, None)

    def margin_bytes(other: int) -> int:
        progress.say(f"{machine.name}: looking for the largest batch, predicting {other:,}")
        return safe_margin_bytes(question.predict(machine, other), machine)

    known = (batch, safe_margin_bytes(prediction, machine))
    search = largest_batch(
        margin_bytes, known, tolerance_ratio=_TOLERANCE_RATIO, budget_s=question.search_s
    )
    return _Answer(machine, batch_limit, prediction, search)


def _table(answers: list[_Answer]) -> Table:
    table = Table("machine", "GPU", "usable", "needed", "±", "fits", "head-room", "largest batch")
    for column in table.columns[2:]:
        column.justify = "right"
    for answer in answers:
        machine, prediction = answer.machine, answer.prediction
        table.add_row(
            machine.name,
            "" if machine.name == machine.gpu else machine.gpu,
            format_bytes(machine.total_bytes - machine.reserved_bytes),
            format_bytes(prediction.total_bytes),
            f"{prediction.error_ratio:.1%}",
            _WORDS[answer.verdict],
            format_bytes(headroom_bytes(prediction, machine)),
            _search_words(answer.search, answer.batch_limit),
        )
    return table


def _search_words(search: BatchSearch | None, batch_limit: int | None) -> str:
    if search is None:
        return ""
    if not search.largest:
        return "none" if search.complete else "?"
    text = f"{search.largest:,}" if search.complete else f"{search.largest:,} or more"
    is_limited = batch_limit is not None and batch_limit < search.largest
    return f"{text} (limit {batch_limit})" if is_limited else text
