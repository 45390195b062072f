"""Reduces a stranger's Hugging Face config.json to the few fields that decide about memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from gpu_optimizer.bounded.json import JsonLimits, parse_json
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.hf_families import FAMILIES, Family
from gpu_optimizer.model_files.tensor_tables import check_parameters

CONFIG_LIMITS: Final = JsonLimits(n_bytes=1 << 20, n_elements=50_000, depth=16)
"""A classifier names its classes: ImageNet-21k has 43,682 values in its config.json."""
_MAX_DROPPED: Final = 100
_MAX_SHOWN_CHARACTERS: Final = 64
_DTYPES: Final = {"float32", "float16", "bfloat16"}

# They change numbers, texts or file names, never the size of a tensor.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
        "initializer_range", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps",
        "label2id", "model_type", "pretraining_tp", "rope_parameters", "rope_scaling",
        "rope_theta", "transformers_version",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HfModel:
    """A model that can be built offline from checked numbers alone."""

    model_type: str
    """Key of `hf_families.FAMILIES`."""
    architecture: str
    """Class of transformers that is built; from the family's table, never from the file."""
    config: Family
    n_parameters: int
    stored_dtype: str | None
    """What its weights are stored as, if the file says so."""
    dropped: tuple[str, ...]
    """Names of fields that were left out although they might matter."""
    notes: tuple[str, ...] = ()
    """What was read differently from how it was written, in words."""


def parse_hf_config(data: bytes, source: str) -> HfModel:
    """Model that a config.json describes.

    Raises
    ------
    InvalidModelError
        If the document breaks a limit, names no known family, holds a number outside its bounds,
        or describes more than `tensor_tables.MAX_PARAMETERS` parameters.
    """
    document = parse_json(data, source, CONFIG_LIMITS)
    if not isinstance(document, dict):
        raise InvalidModelError(source, "a config.json must be a JSON object.")
    return reduce_hf_config(document, source)


def reduce_hf_config(document: Mapping[str, Any], source: str) -> HfModel:
    """Model described by an already parsed config.json; see `parse_hf_config`."""
    model_type = document.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if not isinstance(model_type, str) or family is None:
        raise InvalidModelError(
            source, f"model_type must be one of {', '.join(FAMILIES)}; it is {_shown(model_type)}."
        )
    fields = dict(document)
    if "num_labels" not in fields and isinstance(fields.get("id2label"), dict):
        fields["num_labels"] = len(fields["id2label"])
    try:
        config = family.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or model_type
        raise InvalidModelError(source, f"{_shown(where)}: {first['msg']}.") from error
    architecture, note = _architecture(family, document.get("architectures"))
    n_parameters = config.n_parameters(architecture)
    check_parameters(n_parameters, source)
    dtype = document.get("dtype", document.get("torch_dtype"))
    return HfModel(
        model_type=model_type,
        architecture=architecture,
        config=config,
        n_parameters=n_parameters,
        stored_dtype=dtype if isinstance(dtype, str) and dtype in _DTYPES else None,
        dropped=_dropped(family, document),
        notes=note,
    )


def _architecture(family: type[Family], named: object) -> tuple[str, tuple[str, ...]]:
    default = family.architectures[0]
    if not isinstance(named, list) or not named:
        return default, ()
    if isinstance(named[0], str) and named[0] in family.architectures:
        return named[0], ()
    return default, (f"architecture {_shown(named[0])} is read as {default}",)


def _dropped(family: type[Family], document: Mapping[str, Any]) -> tuple[str, ...]:
    known = _WITHOUT_EFFECT | {"architectures", "dtype", "torch_dtype", "id2label"}
    for name, field in family.model_fields.items():
        alias = field.validation_alias
        known |= {name} if alias is None else {str(one) for one in getattr(alias, "choices", ())}
    names = [_shown(name) for name in document if name not in known]
    if len(names) <= _MAX_DROPPED:
        return tuple(names)
    return (*names[:_MAX_DROPPED], f"and {len(names) - _MAX_DROPPED} more")


def _shown(value: object) -> str:
    """A stranger's value, cut and printable, for a message."""
    if value is None:
        return "missing"
    if not isinstance(value, str):
        return type(value).__name__
    return value[:_MAX_SHOWN_CHARACTERS] if value.isprintable() else "not printable"
