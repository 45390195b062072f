"""From a command line to what is predicted: the model, the run, the GPU."""

from pathlib import Path
from typing import Any, Final

from gpu_optimizer.cli.options import RunOptions
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.machines.detection import this_gpu
from gpu_optimizer.machines.gpus import find_gpu
from gpu_optimizer.machines.registry import default_machines_file, find_machine, load_machines
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.model_specs import ModelSpec, RegisteredModel, read_model_file
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.runs.fitting import ModelRun
from gpu_optimizer.types import Machine

USUAL_GPU: Final = "H200"
"""Assumed where none is named and none is here: the one card that was measured."""
_FILE_ENDINGS: Final = frozenset(
    {".json", ".safetensors", ".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx", ".gguf"}
)
# As their authors publish the weights: meta-llama, TinyLlama, Qwen, mistralai on Hugging Face.
_PUBLISHED_BF16: Final = frozenset({"llama-1b", "llama-7b", "qwen", "mistral"})
_DTYPES: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


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
    InvalidModelError
        If the file holds tensors without the computation.
    UnknownNameError
        If a dtype or an optimizer is not known.
    """
    if not isinstance(spec, RegisteredModel | HfModel):
        raise InvalidModelError(
            "The file",
            "it lists tensors, not how they are used. `gpu-optimizer profile` shows them; a "
            "prediction needs a registered name or a config.json.",
        )
    workload = Workload(
        family=spec.name if isinstance(spec, RegisteredModel) else spec.model_type,
        mode=run.mode,
        batch_size=batch or run.batch,
        n_tokens=run.seq,
        image_size_px=run.image,
        dtype=run.dtype or _usual_dtype(spec),
        autocast=run.autocast,
        optimizer=run.optimizer,
        foreach=run.foreach,
        checkpointing=run.checkpointing,
        n_new_tokens=run.new_tokens,
    )
    return ModelRun(workload, spec if isinstance(spec, HfModel) else None)


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


def run_dict(name: str, asked: ModelRun) -> dict[str, Any]:
    """The run as it was understood, for programs."""
    run = asked.workload
    return {
        "model": name,
        "mode": run.mode,
        "batch_size": run.batch_size,
        "n_tokens": run.n_tokens,
        "image_size_px": run.image_size_px,
        "dtype": run.dtype,
        "autocast": run.autocast,
        "optimizer": run.optimizer if run.mode == "train" else None,
        "foreach": run.foreach,
        "checkpointing": run.checkpointing,
        "n_new_tokens": run.n_new_tokens,
    }


def run_words(name: str, asked: ModelRun) -> str:
    """The run as it was understood, in words."""
    run = asked.workload
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


def _usual_dtype(spec: RegisteredModel | HfModel) -> str:
    if isinstance(spec, HfModel):
        return _DTYPES[spec.stored_dtype or "float32"]
    return "bf16" if spec.name in _PUBLISHED_BF16 else "fp32"
