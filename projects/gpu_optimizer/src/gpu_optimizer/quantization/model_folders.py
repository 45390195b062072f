"""Reads a language model that lies in a folder as Hugging Face lays it out: JSON and safetensors.

Nothing in the folder is run, and nothing is fetched: the class comes from a table of this package,
tensors from safetensors files. Pickled weights (``pytorch_model.bin``) are not read.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gpu_optimizer.bounded.json import parse_json
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import CONFIG_LIMITS, HfModel, reduce_hf_config
from gpu_optimizer.model_files.hf_families import FAMILIES
from gpu_optimizer.quantization.filling import Weights, parameters_without_values

# They decide about values, not about memory, so `hf_configs` leaves them out.
_VALUES: Final = (
    "rms_norm_eps", "layer_norm_epsilon", "rope_theta", "rope_parameters", "rope_scaling",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
)  # fmt: skip


def model_without_values(folder: Path) -> tuple[nn.Module, HfModel]:
    """Build the causal language model that a folder's ``config.json`` describes.

    Returns
    -------
    The model, its parameters without values, and what the file says.

    Raises
    ------
    InvalidModelError
        No such file, or none that describes a known causal language model.
    """
    path = folder / "config.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModelError(str(path), f"{error.strerror}.") from error
    document = parse_json(data, str(path), CONFIG_LIMITS)
    if not isinstance(document, dict):
        raise InvalidModelError(str(path), "a config.json must be a JSON object.")
    described = reduce_hf_config(document, str(path))
    if not described.architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InvalidModelError(str(path), "only causal language models are quantized.")
    with parameters_without_values():
        model = _build(described, document, str(path))
    return model.eval(), described


def _build(described: HfModel, document: Mapping[str, Any], source: str) -> nn.Module:
    library: Any = importlib.import_module("transformers")
    fields = described.config.model_dump()
    fields.update({name: document[name] for name in _VALUES if document.get(name) is not None})
    if fields.get("head_dim", 0) is None:
        del fields["head_dim"]
    try:
        config = getattr(library, FAMILIES[described.model_type].config_class)(**fields)
        model: nn.Module = getattr(library, described.architecture)(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(source, f"transformers refuses it: {error}.") from error
    return model


@contextmanager
def folder_weights(folder: Path) -> Iterator[Weights]:
    """Open all safetensors files of a folder; one tensor at a time is read.

    Raises
    ------
    InvalidModelError
        There are none, or a tensor is asked for that is missing or of another shape.
    """
    with ExitStack() as opened:
        where: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file: Any = opened.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise InvalidModelError(str(path), f"{error}.") from error
            where.update(dict.fromkeys(file.keys(), file))
        if not where:
            raise InvalidModelError(str(folder), "holds no .safetensors file.")

        def weights(name: str, shape: torch.Size) -> Tensor:
            if name not in where:
                raise InvalidModelError(str(folder), f"no tensor {name} in its files.")
            tensor: Tensor = where[name].get_tensor(name)
            if tensor.shape != shape or not tensor.is_floating_point():
                raise InvalidModelError(
                    str(folder), f"{name} is {tuple(tensor.shape)}; expected {tuple(shape)}."
                )
            return tensor

        yield weights
