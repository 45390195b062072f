"""What has to be known of an operation before it may be run a second time."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch._ops import OpOverload

_ATEN = torch.ops.aten
_PRODUCTS: Final = frozenset(
    {
        "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "convolution", "mm", "mv",
        "_convolution", "_cslt_sparse_mm", "_grouped_mm", "_int_mm", "_scaled_mm",
        "_cudnn_attention_forward", "_efficient_attention_forward", "_flash_attention_forward",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable", "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell", "_cudnn_rnn", "cudnn_convolution", "linear", "mkldnn_rnn_layer",
    }
)  # fmt: skip
_CHEAP_LIBRARIES: Final = frozenset({"aten", "prims", "prim"})
"""Operations of other libraries are taken to be products: nobody knows what they cost."""
_COLLECTIVES: Final = frozenset({"c10d", "c10d_functional", "_c10d_functional", "_dtensor"})
# These return their argument's own storage without saying so in their schema.
_SILENT_VIEWS: Final = frozenset({_ATEN._unsafe_view.default})  # noqa: SLF001
_STATISTICS: Final = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class OperationFacts:
    """Of one overload of an operation."""

    is_view: bool
    """Returns other looks at the storages it was given."""
    writes: tuple[int, ...]
    """Positions of the arguments it changes."""
    writes_by_name: tuple[str, ...]
    """The same, of arguments that can only be named."""
    statistics: tuple[int, ...]
    """Positions of running statistics, which a batch norm in training updates but does not use."""
    training: int | None
    """Position of the argument that says whether it trains; None: it does."""
    is_product: bool
    is_random: bool
    is_repeatable: bool


@cache
def operation_facts(func: OpOverload) -> OperationFacts:
    """Read an operation's schema."""
    schema = func._schema  # noqa: SLF001
    library, name = func.namespace, schema.name.split("::")[1]
    names = [argument.name for argument in schema.arguments]
    written = [
        number
        for number, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    statistics = tuple(names.index(each) for each in _STATISTICS if each in names)
    flags = [names.index(each) for each in ("training", "train") if each in names]
    aliased = [each for each in schema.returns if each.alias_info is not None]
    return OperationFacts(
        is_view=(bool(aliased) and not written) or func in _SILENT_VIEWS,
        writes=tuple(
            number
            for number in written
            if not schema.arguments[number].kwarg_only and number not in statistics
        ),
        writes_by_name=tuple(
            names[number] for number in written if schema.arguments[number].kwarg_only
        ),
        statistics=statistics,
        training=flags[0] if flags else None,
        is_product=(library not in _CHEAP_LIBRARIES and library != "torchvision")
        or (library == "aten" and name in _PRODUCTS),
        is_random=torch.Tag.nondeterministic_seeded in func.tags,
        is_repeatable=library not in _COLLECTIVES,
    )


def updates_statistics(facts: OperationFacts, args: tuple[Any, ...]) -> bool:
    """Whether this call changes running statistics and gives the same result whatever they are."""
    if not facts.statistics or any(number >= len(args) for number in facts.statistics):
        return False
    return facts.training is None or bool(args[facts.training])
