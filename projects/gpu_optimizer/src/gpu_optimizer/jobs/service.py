"""What the service has done in processes of their own: predictions and layer tables as JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_optimizer.allocator.config import AllocatorConfig
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
from gpu_optimizer.runs.asked import model_run, run_dict
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
    spec = model_spec(payload)
    return {"model": describe(spec), **_predicted(asked_run(spec, payload), payload, report)[0]}


def profile_job(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Job ``profile``: memory layer by layer; of files without geometry the table of tensors.

    Raises
    ------
    InvalidModelError, UnknownNameError
        As `predict_job`.
    """
    spec = model_spec(payload)
    if not isinstance(spec, RegisteredModel | HfModel):
        return {"model": describe(spec)}
    predicted, layers = _predicted(asked_run(spec, payload), payload, report)
    return {"model": describe(spec), "layers": _layer(layers), **predicted}


def model_spec(payload: Mapping[str, Any]) -> ModelSpec:
    """Model that a request names or brings along."""
    if "path" in payload:
        with Path(payload["path"]).open("rb") as file:
            return read_model_file(
                file, str(payload["name"]), complete=bool(payload.get("complete", True))
            )
    if isinstance(payload["model"], str):
        return registered_model(payload["model"], REGISTERED_NAMES)
    return reduce_hf_config(payload["model"], "config")


def asked_run(spec: ModelSpec, payload: Mapping[str, Any]) -> ModelRun:
    """Run that a request asks for."""
    fields = {
        each.name: payload[each.name]
        for each in dataclasses.fields(Workload)
        if each.name in payload
    }
    return model_run(spec, **fields | {"mode": Mode(payload["mode"])})


def _predicted(
    run: ModelRun, payload: Mapping[str, Any], report: Report
) -> tuple[dict[str, Any], LayerMemory]:
    machine = gpu_machine(payload["gpu"])
    constants = card_constants(machine)
    report({"stage": "recording a step on tensors without values"})
    recording = record_on(run, machine)
    report({"stage": "replaying the allocator", "n_events": len(recording.timeline)})
    allocator = AllocatorConfig(expandable_segments=bool(payload["expandable_segments"]))
    prediction = predict_from(recording, constants, allocator)
    answer = {
        "run": run_dict(run),
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
