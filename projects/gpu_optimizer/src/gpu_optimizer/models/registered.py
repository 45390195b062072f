"""The registered models: their published geometries, with random weights, built offline."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.transformers_library import import_transformers
from gpu_optimizer.models.workloads import Workload

# Geometry of each model as its authors published it: configuration class of transformers, class
# that is built, fields that differ from the class's defaults.
_LLAMA_1B = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
_LLAMA_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
_QWEN = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}  # fmt: skip
_MISTRAL_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "sliding_window": None,
}  # fmt: skip


def _label_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model(batch["images"])
    logits = getattr(output, "logits", output)
    return functional.cross_entropy(logits, batch["labels"])


def _see(model: nn.Module, batch: dict[str, Tensor]) -> object:
    return model(batch["images"])


def _images(workload: Workload, size_px: int) -> Tensor:
    size = workload.image_size_px or size_px
    return torch.randn(workload.batch_size, 3, size, size)


def _labelled_images(workload: Workload, size_px: int = 224) -> dict[str, Tensor]:
    labels = torch.zeros(workload.batch_size, dtype=torch.int64)
    return {"images": _images(workload, size_px), "labels": labels}


def _torchvision(name: str, workload: Workload) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 -- takes a second

    options: dict[str, Any] = {}
    if name.startswith("vit") and workload.image_size_px:
        options["image_size"] = workload.image_size_px
    model: nn.Module = getattr(models, name)(weights=None, **options)
    return model


def _named(classes: frozenset[str], model: nn.Module) -> Iterable[nn.Module]:
    return [each for each in model.modules() if type(each).__name__ in classes]


def _vision(name: str, *blocks: str) -> Family:
    return Family(
        name=name,
        build=partial(_torchvision, name),
        inputs=_labelled_images,
        loss=_label_loss,
        blocks=partial(_named, frozenset(blocks)),
        predict=_see,
    )


def _transformer(
    model_type: str, task: str, fields: Mapping[str, object], workload: Workload
) -> nn.Module:
    transformers = import_transformers()
    config = transformers.AutoConfig.for_model(model_type, **fields)
    if workload.image_size_px:
        config.image_size = workload.image_size_px
    longest = getattr(config, "max_position_embeddings", None)
    if longest and (workload.n_tokens or 0) + workload.n_new_tokens > longest:
        raise InvalidModelError(model_type, f"takes at most {longest} tokens")
    dtype = torch.get_default_dtype()
    model: nn.Module = getattr(transformers, task).from_config(
        config, dtype=dtype, attn_implementation="sdpa"
    )
    return model


def _tokens(workload: Workload, n_tokens: int) -> dict[str, Tensor]:
    shape = (workload.batch_size, workload.n_tokens or n_tokens)
    return {"input_ids": torch.zeros(shape, dtype=torch.int64)}


def _own_labels(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
    return loss


def _class_labels(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    tokens = batch["input_ids"]
    loss: Tensor = model(input_ids=tokens, labels=torch.zeros_like(tokens[:, 0])).loss
    return loss


def _read(model: nn.Module, batch: dict[str, Tensor]) -> object:
    return model(**batch)


def _text(
    name: str, model_type: str, fields: Mapping[str, object], n_tokens: int, *, classifier: bool
) -> Family:
    task = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    return Family(
        name=name,
        build=partial(_transformer, model_type, task, fields),
        inputs=partial(_tokens, n_tokens=n_tokens),
        loss=_class_labels if classifier else _own_labels,
        blocks=_repeated_blocks,
        predict=_read,
    )


def _repeated_blocks(model: nn.Module) -> Iterable[nn.Module]:
    """Layers of a transformers model, which all derive from one class there."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415

    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]


def _pose_model(workload: Workload) -> nn.Module:
    try:
        from ultralytics.nn.tasks import PoseModel  # noqa: PLC0415 -- optional, takes seconds
    except ImportError as error:
        raise InvalidModelError("yolo11n-pose", "needs the package ultralytics") from error
    del workload
    model: nn.Module = PoseModel("yolo11n-pose.yaml", verbose=False)  # type: ignore[no-untyped-call]
    return model


def _pose_images(workload: Workload) -> dict[str, Tensor]:
    return {"images": _images(workload, 640)}


def _raw_outputs_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean square of all outputs: the detector's own loss depends on where people are."""
    return _squares(model(batch["images"]))


def _squares(outputs: object) -> Tensor:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)  # noqa: SLF001
    squares = [leaf.float().square().mean() for leaf in leaves if isinstance(leaf, Tensor)]
    return torch.stack(squares).sum()


def _top_layers(model: nn.Module) -> Iterable[nn.Module]:
    """All stages of a YOLO model but the head."""
    stages = [each for each in model.children() if isinstance(each, nn.Sequential)]
    return list(stages[0])[:-1]


def _unet_batch(workload: Workload) -> dict[str, Tensor]:
    return {"images": _images(workload, 64), "times": torch.zeros(workload.batch_size)}


def _unet(workload: Workload) -> nn.Module:
    from gpu_optimizer.models.unet import UNet  # noqa: PLC0415 -- keeps this module a registry

    del workload
    return UNet()


def _denoise(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch["images"], batch["times"]), batch["images"])


def _denoised(model: nn.Module, batch: dict[str, Tensor]) -> object:
    return model(batch["images"], batch["times"])


_ALL = (
    _vision("resnet50", "Bottleneck"),
    _vision("vit_b_16", "EncoderBlock"),
    Family(
        name="vit",
        build=partial(_transformer, "vit", "AutoModelForImageClassification", {}),
        inputs=_labelled_images,
        loss=_label_loss,
        blocks=_repeated_blocks,
        predict=_see,
    ),
    _text("bert-base", "bert", {}, 128, classifier=True),
    _text("gpt2", "gpt2", {}, 1024, classifier=False),
    _text("llama-1b", "llama", _LLAMA_1B, 2048, classifier=False),
    _text("llama-7b", "llama", _LLAMA_7B, 2048, classifier=False),
    _text("qwen", "qwen2", _QWEN, 2048, classifier=False),
    _text("mistral", "mistral", _MISTRAL_7B, 2048, classifier=False),
    Family(
        name="yolo11n-pose",
        build=_pose_model,
        inputs=_pose_images,
        loss=_raw_outputs_loss,
        blocks=_top_layers,
        predict=_see,
    ),
    Family(
        name="unet",
        build=_unet,
        inputs=_unet_batch,
        loss=_denoise,
        blocks=partial(_named, frozenset({"ResidualBlock", "AttentionBlock"})),
        predict=_denoised,
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
