"""Builds a checked Hugging Face model: no published weights, no network, no foreign code."""

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.model_files.hf_families import FAMILIES
from gpu_optimizer.models.transformers_library import import_transformers


def build_hf_model(model: HfModel, attention: str = "sdpa") -> nn.Module:
    """Module of a checked description, on PyTorch's default device and in its default dtype.

    Under ``torch.device("meta")`` or a `FakeTensorMode` nothing is allocated. The classes come
    from `hf_families.FAMILIES`; no name from the description is looked up.

    Parameters
    ----------
    model
        As `hf_configs.parse_hf_config` returns it.
    attention
        Implementation as transformers names it.

    Raises
    ------
    InvalidModelError
        If transformers finds the numbers contradictory.
    """
    family = FAMILIES[model.model_type]
    if model.architecture not in family.architectures:
        raise InvalidModelError(model.model_type, f"no class {model.architecture}.")
    library = import_transformers()
    fields = {
        name: value
        for name, value in model.config.model_dump().items()
        if not (name == "head_dim" and value is None)
    }
    try:
        config = getattr(library, family.config_class)(**fields, attn_implementation=attention)
        built: nn.Module = getattr(library, model.architecture)(config)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise InvalidModelError(model.model_type, f"transformers refuses it: {error}.") from error
    return built
