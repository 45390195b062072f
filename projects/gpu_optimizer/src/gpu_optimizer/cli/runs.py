"""From a command line to what is predicted: the model, the run, the GPU."""

from pathlib import Path
from typing import Any, Final

from gpu_optimizer.cli.options import RunOptions
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.machines.detection import this_gpu
from gpu_optimizer.machines.gpus import find_gpu
from gpu_optimizer.machines.registry import default_machines_file, find_machine, load_machines
from gpu_optimizer.model_specs import ModelSpec, RegisteredModel, read_model_file
from gpu_optimizer.runs import asked
from gpu_optimizer.runs.fitting import ModelRun
from gpu_optimizer.types import Machine

USUAL_GPU: Final = "H200"
"""Assumed where none is named and none is here: the one card that was measured."""
_FILE_ENDINGS: Final = frozenset(
    {".json", ".safetensors", ".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx", ".gguf"}
)


def read_model(model: str) -> ModelSpec:
    """Model by its registered name, or what a file describes.

    Raises
    ------
    InvalidModelError
        If there is no such file, or it is of no readable kind.
    """
    path = Path(model)
    named_like_file = path.name != model or path.suffix.lower() in _FILE_ENDINGS
    if not named_like_file:
        return RegisteredModel(model)
    try:
        with path.open("rb") as file:
            return read_model_file(file, path.name)
    except OSError as error:
        reason = error.strerror or "not readable"
        raise InvalidModelError(model, f"{reason}. Nothing is fetched from the network.") from error


def model_run(spec: ModelSpec, run: RunOptions, batch: int | None = None) -> ModelRun:
    """Run of a model as it was asked for.

    Parameters
    ----------
    spec
        From `read_model`.
    run
        The options.
    batch
        In place of the batch in the options.

    Raises
    ------
    InvalidModelError, UnknownNameError
        As `runs.asked.model_run`.
    """
    return asked.model_run(
        spec,
        mode=run.mode,
        batch_size=batch or run.batch,
        n_tokens=run.seq,
        image_size_px=run.image,
        dtype=run.dtype,
        autocast=run.autocast,
        optimizer=run.optimizer,
        foreach=run.foreach,
        checkpointing=run.checkpointing,
        n_new_tokens=run.new_tokens,
    )


def machine_for(name: str | None) -> Machine:
    """Machine or GPU by name; None: the GPU that is here, else `USUAL_GPU`.

    Raises
    ------
    UnknownNameError
        If neither a machine nor a GPU has this name.
    """
    machines = load_machines(default_machines_file())
    if name is not None:
        return find_machine(name, machines)
    here = this_gpu()
    return here if here is not None else find_machine(find_gpu(USUAL_GPU).name, machines)


def run_dict(name: str, understood: ModelRun) -> dict[str, Any]:
    """The run as it was understood, for programs."""
    return {"model": name, **asked.run_dict(understood)}


def run_words(name: str, understood: ModelRun) -> str:
    """The run as it was understood, in words."""
    run = understood.workload
    facts: list[str] = [Path(name).name, str(run.mode), f"batch {run.batch_size:,}"]
    if run.n_tokens is not None:
        facts.append(f"{run.n_tokens:,} tokens")
    if run.n_new_tokens:
        facts.append(f"{run.n_new_tokens:,} new tokens")
    if run.image_size_px is not None:
        facts.append(f"{run.image_size_px} px")
    facts.append(run.dtype)
    if run.autocast:
        facts.append(f"autocast {run.autocast}")
    if run.mode == "train":
        facts.append(run.optimizer + (" foreach" if run.foreach else ""))
    if run.checkpointing:
        facts.append("checkpointing")
    return ", ".join(facts)
