"""From a model and what somebody asked for to the run that is meant."""

from typing import Any, Final

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.model_specs import ModelSpec, RegisteredModel
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.runs.fitting import ModelRun

# As their authors publish the weights: meta-llama, TinyLlama, Qwen, mistralai on Hugging Face.
_PUBLISHED_BF16: Final = frozenset({"llama-1b", "llama-7b", "qwen", "mistral"})
_DTYPES: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def model_run(spec: ModelSpec, *, dtype: str | None = None, **fields: Any) -> ModelRun:  # noqa: ANN401 - those of Workload
    """Run of a model.

    Parameters
    ----------
    spec
        The model.
    dtype
        Of the parameters; None: as the weights are published.
    fields
        The others of `Workload`, but its family.

    Raises
    ------
    InvalidModelError
        If all that is known of the model is its tensors.
    UnknownNameError
        If a dtype or an optimizer is not known.
    """
    if not isinstance(spec, RegisteredModel | HfModel):
        raise InvalidModelError(
            "The file",
            "it lists tensors, not how they are used: a profile shows them, a prediction needs a "
            "registered name or a config.json.",
        )
    workload = Workload(
        family=spec.name if isinstance(spec, RegisteredModel) else spec.model_type,
        dtype=dtype or _usual_dtype(spec),
        **fields,
    )
    return ModelRun(workload, spec if isinstance(spec, HfModel) else None)


def run_dict(asked: ModelRun) -> dict[str, Any]:
    """The run as it was understood, for programs."""
    run = asked.workload
    return {
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


def _usual_dtype(spec: RegisteredModel | HfModel) -> str:
    if isinstance(spec, HfModel):
        return _DTYPES[spec.stored_dtype or "float32"]
    return "bf16" if spec.name in _PUBLISHED_BF16 else "fp32"
