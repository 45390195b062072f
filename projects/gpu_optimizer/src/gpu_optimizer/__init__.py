"""Where a model's GPU memory goes, before and after running it."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gpu_optimizer.applying import apply
    from gpu_optimizer.batch_optimizer import auto_batch_size
    from gpu_optimizer.optimizing import optimize

# Name -> module it comes from when it is first asked for: most of them import PyTorch.
_HOMES: Final = {
    "apply": "gpu_optimizer.applying",
    "auto_batch_size": "gpu_optimizer.batch_optimizer",
    "optimize": "gpu_optimizer.optimizing",
}

__all__ = ["apply", "auto_batch_size", "optimize"]


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
