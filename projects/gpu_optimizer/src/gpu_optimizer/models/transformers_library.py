"""The transformers library, imported whole or as far as it builds models."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

_NOT_FOR_BUILDING: Final = ("accelerate", "scipy", "torchao", "torchvision")
"""For placing weights, losses of object detectors, quantizing, reading pictures."""
_builds_only: ContextVar[bool] = ContextVar("_builds_only", default=False)


@contextmanager
def building_only() -> Iterator[None]:
    """Have `import_transformers` leave out what transformers does not need to build a model.

    It imports all of that where it is installed, which takes two seconds, and asks once per process
    what is. So this is for processes that build models, and end; the models are the same.
    """
    token = _builds_only.set(True)
    try:
        yield
    finally:
        _builds_only.reset(token)


def import_transformers() -> Any:  # noqa: ANN401 -- its names are imported when they are read
    """Return the module ``transformers``; takes seconds the first time."""
    if _builds_only.get() and "transformers" not in sys.modules:
        with _hidden(_NOT_FOR_BUILDING):
            # What asks for the libraries, and keeps the answers.
            importlib.import_module("transformers.modeling_utils")
    return importlib.import_module("transformers")


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Let packages not be found, as None in `sys.modules` does (Python's reference, 5.3.1)."""
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
