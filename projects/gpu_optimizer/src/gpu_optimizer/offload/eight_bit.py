"""Optimizers that keep their state in 8 bits: a quarter of Adam's memory, and no longer exact."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, cast

import torch

from gpu_optimizer.errors import InvalidModelError

Library = Literal["bitsandbytes", "torchao"]
# Options that mean the same for both; what decides only how PyTorch runs the step is left behind.
_OPTIONS: Final[Mapping[type[torch.optim.Optimizer], tuple[str, ...]]] = MappingProxyType(
    {
        torch.optim.AdamW: ("lr", "betas", "eps", "weight_decay", "amsgrad"),
        torch.optim.Adam: ("lr", "betas", "eps", "weight_decay", "amsgrad"),
        torch.optim.SGD: ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    }
)
_CLASSES: Final[Mapping[Library, tuple[str, Mapping[type[torch.optim.Optimizer], str]]]] = {
    "bitsandbytes": (
        "bitsandbytes.optim",
        {
            torch.optim.AdamW: "AdamW8bit",
            torch.optim.Adam: "Adam8bit",
            torch.optim.SGD: "SGD8bit",
        },
    ),
    "torchao": (
        "torchao.optim",
        {torch.optim.AdamW: "AdamW8bit", torch.optim.Adam: "Adam8bit"},
    ),
}


def eight_bit_optimizer(
    optimizer: torch.optim.Optimizer, library: Library = "bitsandbytes"
) -> torch.optim.Optimizer:
    """Return an 8-bit optimizer for the same parameters, groups and options.

    Parameters
    ----------
    optimizer
        Of PyTorch: AdamW, Adam, or SGD with momentum (bitsandbytes only); it must not have made a
        step yet, because its state is not taken over.
    library
        Where the other one comes from. torchao compiles its step at the first call.

    Raises
    ------
    InvalidModelError
        There is no such optimizer, or it has a state already, or the library is not installed.
    """
    kind = type(optimizer)
    module, classes = _CLASSES[library]
    if kind not in classes:
        raise InvalidModelError(kind.__name__, f"{library} has no 8-bit optimizer of this kind")
    if optimizer.state:
        raise InvalidModelError(
            kind.__name__, "has a state already; choose 8 bits before the first step"
        )
    options = _OPTIONS[kind]
    groups = [
        {"params": group["params"]} | {name: group[name] for name in options}
        for group in optimizer.param_groups
    ]
    if any(group.get("momentum") == 0.0 for group in groups):
        raise InvalidModelError(
            kind.__name__, "has no state without momentum, so 8 bits gain nothing"
        )
    make = cast(
        "Callable[..., torch.optim.Optimizer]", getattr(_imported(library, module), classes[kind])
    )
    return make(groups, **{name: groups[0][name] for name in options})


def _imported(library: str, module: str) -> Any:  # noqa: ANN401 -- a module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidModelError(
            library, "is not installed: install gpu-optimizer[quantize]"
        ) from error
