"""From a checked Hugging Face configuration to something that can be run and predicted."""

from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.hugging_face import build_hf_model
from gpu_optimizer.models.workloads import Workload

_USUAL_TOKENS: Final = 2048
_CLASSIFIERS: Final = ("ForSequenceClassification", "ForImageClassification")


def described_family(model: HfModel) -> Family:
    """Describe how a configuration's model is built, fed and scored; weights are random."""
    if model.model_type == "vit":
        inputs = partial(_images, size_px=int(model.config.model_dump()["image_size"]))
    else:
        inputs = partial(_tokens, n_tokens=min(_USUAL_TOKENS, _longest(model)))
    return Family(
        name=model.model_type,
        build=partial(_build, model),
        inputs=inputs,
        loss=partial(_loss, model.architecture),
        blocks=_layers,
        predict=_run,
    )


def _longest(model: HfModel) -> int:
    fields = model.config.model_dump()
    return int(fields.get("max_position_embeddings") or fields["n_positions"])


def _build(model: HfModel, workload: Workload) -> nn.Module:
    if model.model_type == "vit":
        size_px = model.config.model_dump()["image_size"]
        if workload.image_size_px not in {None, size_px}:
            raise InvalidModelError(
                model.model_type, f"its configuration takes images of {size_px} pixels only."
            )
    elif (workload.n_tokens or 0) + workload.n_new_tokens > _longest(model):
        raise InvalidModelError(model.model_type, f"takes at most {_longest(model)} tokens.")
    return build_hf_model(model)


def _tokens(workload: Workload, n_tokens: int) -> dict[str, Tensor]:
    shape = (workload.batch_size, workload.n_tokens or n_tokens)
    return {"input_ids": torch.zeros(shape, dtype=torch.int64)}


def _images(workload: Workload, size_px: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(workload.batch_size, 3, size_px, size_px)}


def _loss(architecture: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    first = next(iter(batch.values()))
    if architecture.endswith(_CLASSIFIERS):
        labels = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        return loss_of(model(**batch, labels=labels))
    if architecture.endswith("Model"):
        hidden: Tensor = model(**batch).last_hidden_state
        return hidden.square().mean()
    return loss_of(model(**batch, labels=batch["input_ids"]))


def loss_of(output: object) -> Tensor:
    """Return what a transformers model computed because it was given labels."""
    loss: Tensor = getattr(output, "loss")  # noqa: B009 - its class is not known here
    return loss


def _layers(model: nn.Module) -> list[nn.Module]:
    """Blocks of a transformers model, which all derive from one class there."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415

    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]


def _run(model: nn.Module, batch: dict[str, Tensor]) -> object:
    return model(**batch)
