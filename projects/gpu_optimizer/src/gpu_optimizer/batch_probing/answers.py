"""Batch sizes that were found before, kept on disk by all that decides about them."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import platformdirs
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gpu_optimizer.batch_probing.cases import ModuleCase, ProbeCase
from gpu_optimizer.batch_probing.on_gpu import backends

_PACKAGES: Final = ("gpu-optimizer", "torch", "torchvision", "transformers", "ultralytics")
_ALLOCATOR_VARIABLES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def default_folder() -> Path:
    """Where answers are kept."""
    return Path(platformdirs.user_cache_dir("gpu-optimizer")) / "batch_sizes"


def fingerprint(case: ProbeCase, settings: dict[str, Any]) -> str | None:
    """Text that differs wherever the answer may; None: the case cannot be told from others.

    Parameters
    ----------
    case
        Model, input and use: for modules their classes' code, their structure and shapes.
    settings
        GPU, cap and rules.
    """
    described = _module_facts(case) if isinstance(case, ModuleCase) else asdict(case)
    if described is None:
        return None
    facts = {
        "case": described,
        "settings": settings,
        "versions": {name: _version(name) for name in _PACKAGES},
        "backends": backends(),
        "allocator": [os.environ.get(name) for name in _ALLOCATOR_VARIABLES],
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_answer(folder: Path, key: str) -> dict[str, Any] | None:
    """Look an answer up; None: there is none that can be read."""
    try:
        answer: dict[str, Any] = json.loads((folder / f"{key}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return answer


def write_answer(folder: Path, key: str, answer: dict[str, Any]) -> None:
    """Keep an answer; a disk that is full or read-only is no reason to fail."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{key}.{os.getpid()}.partial"
        part.write_text(json.dumps(answer, indent=1), "utf-8")
        part.replace(folder / f"{key}.json")


def _module_facts(case: ModuleCase) -> list[object] | None:
    model, use = case.model, case.use
    callables = [_code(each) for each in (case.make_inputs, use.loss, use.make_optimizer)]
    if None in callables:
        return None
    classes = {type(module) for module in model.modules()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        repr(model),
        sorted(f"{kind.__module__}.{kind.__qualname__} {_source(kind)}" for kind in classes),
        [_shape(tensor) for _, tensor in tensors],
        [use.mode, use.autocast],
        callables,
    ]


def _code(function: Callable[..., Any] | None) -> str | None:
    """Code of a function and what it is bound to; None: it has none that can be read."""
    if function is None:
        return "none"
    if isinstance(function, partial):
        inner = _code(function.func)
        return inner and f"{inner} {_plain(function.args)} {_plain(function.keywords)}"
    if inspect.isfunction(function) or inspect.isclass(function):
        source = _source(function)
        return source and f"{function.__module__}.{function.__qualname__} {source}"
    source = _source(type(function))
    slots = getattr(type(function), "__slots__", ())
    state = {name: getattr(function, name) for name in slots} or dict(vars(function))
    return source and f"{source} {_plain(state)}"


def _plain(value: object) -> str:
    return repr(tree_map_only(Tensor, _shape, value))


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}"


def _source(kind: Any) -> str | None:  # noqa: ANN401 - class or function
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
