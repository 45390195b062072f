"""What the service has done in processes of their own: predictions and layer tables as JSON."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.jobs.descriptions import describe
from gpu_optimizer.machines.gpus import gpu_machine
from gpu_optimizer.machines.registry import default_machines_file, load_machines
from gpu_optimizer.memory_predictor import fits, predict_from
from gpu_optimizer.model_files.hf_configs import HfModel, reduce_hf_config
from gpu_optimizer.model_specs import (
    ModelSpec,
    RegisteredModel,
    read_model_file,
    registered_model,
)
from gpu_optimizer.models.registered_names import REGISTERED_NAMES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.runs.fitting import ModelRun, card_constants, prediction_dict, record_on
from gpu_optimizer.types import LayerMemory, Mode

Report = Callable[[Mapping[str, Any]], None]


def predict_job(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Job ``predict``: the peak memory of a run, and which machines it fits.

    Parameters
    ----------
    payload
        Fields of `api.schemas.RunRequest`; for an upload also ``path``, ``name``, ``complete``.
    report
        Told the stages.

    Raises
    ------
    InvalidModelError, UnknownNameError
        It cannot be run as asked, or is no model one can run.
    """
    spec = _spec(payload)
    workload = _workload(spec, payload)
    return {
        "model": describe(spec),
        **_predicted(spec, workload, payload, report)[0],
    }


def profile_job(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Job ``profile``: memory layer by layer; of files without geometry the table of tensors.

    Raises
    ------
    InvalidModelError, UnknownNameError
        As `predict_job`.
    """
    spec = _spec(payload)
    if not isinstance(spec, RegisteredModel | HfModel):
        return {"model": describe(spec)}
    predicted, layers = _predicted(spec, _workload(spec, payload), payload, report)
    return {"model": describe(spec), "layers": _layer(layers), **predicted}


def _spec(payload: Mapping[str, Any]) -> ModelSpec:
    if "path" in payload:
        with Path(payload["path"]).open("rb") as file:
            return read_model_file(
                file, str(payload["name"]), complete=bool(payload.get("complete", True))
            )
    if isinstance(payload["model"], str):
        return registered_model(payload["model"], REGISTERED_NAMES)
    return reduce_hf_config(payload["model"], "config")


def _workload(spec: ModelSpec, payload: Mapping[str, Any]) -> Workload:
    if not isinstance(spec, RegisteredModel | HfModel):
        raise InvalidModelError(
            str(payload["name"]),
            "holds tensors but not how they are run. Give its config.json or a registered name; "
            "POST /profile shows what is in it.",
        )
    return Workload(
        family=spec.name if isinstance(spec, RegisteredModel) else spec.model_type,
        mode=Mode(payload["mode"]),
        batch_size=payload["batch_size"],
        n_tokens=payload["n_tokens"],
        image_size_px=payload["image_size_px"],
        dtype=payload["dtype"],
        autocast=payload["autocast"],
        optimizer=payload["optimizer"],
        foreach=payload["foreach"],
        checkpointing=payload["checkpointing"],
        n_new_tokens=payload["n_new_tokens"],
    )


def _predicted(
    spec: ModelSpec, workload: Workload, payload: Mapping[str, Any], report: Report
) -> tuple[dict[str, Any], LayerMemory]:
    machine = gpu_machine(payload["gpu"])
    constants = card_constants(machine)
    report({"stage": "recording a step on tensors without values"})
    run = ModelRun(workload, spec if isinstance(spec, HfModel) else None)
    recording = record_on(run, machine)
    report({"stage": "replaying the allocator", "n_events": len(recording.timeline)})
    allocator = AllocatorConfig(expandable_segments=bool(payload["expandable_segments"]))
    prediction = predict_from(recording, constants, allocator)
    answer = {
        "gpu": constants.name,
        "prediction": prediction_dict(prediction),
        "flops": recording.flops,
        "machines": [
            {
                "machine": name,
                "gpu": entry.machine.gpu,
                "usable_bytes": entry.machine.total_bytes - entry.machine.reserved_bytes,
                "fits": fits(prediction, entry.machine).value,
            }
            for name, entry in load_machines(default_machines_file()).items()
        ],
    }
    return answer, recording.layers


def _layer(layer: LayerMemory) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "parameter_bytes": layer.parameter_bytes,
        "gradient_bytes": layer.gradient_bytes,
        "activation_bytes": layer.activation_bytes,
        "peak_bytes": layer.peak_bytes,
        "flops": layer.flops,
        "children": [_layer(child) for child in layer.children],
    }
