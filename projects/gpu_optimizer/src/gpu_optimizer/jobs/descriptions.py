"""Describes an uploaded model as JSON: the job that reads a stranger's file in its own process."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gpu_optimizer.model_files.exported_programs import ExportedGraph
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.model_files.tensor_tables import TensorEntry
from gpu_optimizer.model_specs import ModelSpec, RegisteredModel, read_model_file

_MAX_ROWS: Final = 20_000


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Facts about a model that a person or a program can read; sizes in bytes."""
    match spec:
        case RegisteredModel():
            return {"kind": "registered", "name": spec.name}
        case HfModel():
            return {
                "kind": "hf_config",
                "model_type": spec.model_type,
                "architecture": spec.architecture,
                "config": spec.config.model_dump(),
                "n_parameters": spec.n_parameters,
                "stored_dtype": spec.stored_dtype,
                "dropped": list(spec.dropped),
                "notes": list(spec.notes),
            }
        case ExportedGraph():
            return {
                "kind": "exported_program",
                "weight_bytes": spec.weight_bytes,
                "produced_bytes": spec.produced_bytes,
                "n_operations": spec.n_operations,
                "operators": dict(spec.operators),
                "bytes_by_module": spec.bytes_by_module(),
                **_rows(spec.tensors),
            }
        case _:
            return {
                "kind": "safetensors",
                "weight_bytes": spec.total_bytes,
                "bytes_by_module": spec.bytes_by_module(),
                **_rows(spec.tensors),
            }


def _rows(tensors: tuple[TensorEntry, ...]) -> dict[str, Any]:
    return {
        "n_tensors": len(tensors),
        "tensors": [asdict(tensor) for tensor in tensors[:_MAX_ROWS]],
    }


def describe_upload(payload: Mapping[str, Any], _report: object) -> Mapping[str, Any]:
    """Job ``describe``: what is in a file that the service has stored.

    Parameters
    ----------
    payload
        ``path`` of the stored file, chosen by the service; ``name`` as the user calls it;
        ``complete``: False if it is only the head of a file.

    Raises
    ------
    InvalidModelError
        As `model_specs.read_model_file`.
    """
    with Path(payload["path"]).open("rb") as file:
        complete = bool(payload.get("complete", True))
        return describe(read_model_file(file, str(payload["name"]), complete=complete))
