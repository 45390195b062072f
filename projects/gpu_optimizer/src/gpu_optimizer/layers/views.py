"""Ways to look at a model's layers: each for itself, repeated ones as one, tensors of a file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from gpu_optimizer.types import LayerMemory

NumberT = TypeVar("NumberT", int, float)


def own_layers(layer: LayerMemory) -> Iterator[LayerMemory]:
    """Each module with what it holds itself, its submodules left out; the sums give the total."""
    below = layer.children

    def own(of: Callable[[LayerMemory], NumberT]) -> NumberT:
        return of(layer) - sum(of(child) for child in below)

    yield replace(
        layer,
        parameter_bytes=own(lambda each: each.parameter_bytes),
        gradient_bytes=own(lambda each: each.gradient_bytes),
        activation_bytes=own(lambda each: each.activation_bytes),
        flops=own(lambda each: each.flops or 0) if layer.flops is not None else None,
        time_s=own(lambda each: each.time_s or 0.0) if layer.time_s is not None else None,
        children=(),
    )
    for child in below:
        yield from own_layers(child)


def merge_alike(layer: LayerMemory) -> LayerMemory:
    """Put neighbours of the same shape together, so that 32 equal blocks become one row.

    Sizes and operations of such a row are those of all its members; its name says how many.
    """
    merged = []
    for _, group in groupby(layer.children, key=_shape):
        members = list(group)
        merged.append(merge_alike(members[0] if len(members) == 1 else _together(members)))
    return replace(layer, children=tuple(merged))


def tensor_layers(bytes_by_module: Mapping[str, int], kind: str) -> LayerMemory:
    """Layers of a file that lists tensors: parameters only.

    Parameters
    ----------
    bytes_by_module
        From `TensorTable` or `ExportedGraph`: submodules included, parents first.
    kind
        Of the root; the modules' classes are not known.
    """
    below: dict[str, list[str]] = {name: [] for name in bytes_by_module}
    for name in bytes_by_module:
        if name:
            below[name.rpartition(".")[0]].append(name)

    def layer(name: str) -> LayerMemory:
        return LayerMemory(
            name=name,
            kind="" if name else kind,
            parameter_bytes=bytes_by_module[name],
            gradient_bytes=0,
            activation_bytes=0,
            peak_bytes=0,
            children=tuple(layer(child) for child in below[name]),
        )

    return layer("")


def _shape(layer: LayerMemory) -> tuple[object, ...]:
    """What two modules must have in common to be shown as one."""
    return (
        layer.kind,
        layer.parameter_bytes,
        layer.gradient_bytes,
        layer.activation_bytes,
        layer.flops,
        tuple(_shape(child) for child in layer.children),
    )


def _together(members: Sequence[LayerMemory]) -> LayerMemory:
    first, last = members[0].name, members[-1].name
    return _sum_up(members, f"{first}–{last.rpartition('.')[2]} ({len(members)} alike)")


def _sum_up(members: Sequence[LayerMemory], name: str) -> LayerMemory:
    times = [each.time_s for each in members]
    return replace(
        members[0],
        name=name,
        parameter_bytes=sum(each.parameter_bytes for each in members),
        gradient_bytes=sum(each.gradient_bytes for each in members),
        activation_bytes=sum(each.activation_bytes for each in members),
        peak_bytes=max(each.peak_bytes for each in members),
        flops=None if members[0].flops is None else sum(each.flops or 0 for each in members),
        time_s=None if None in times else sum(filter(None, times)),
        children=tuple(
            _sum_up(same, f"{name}.{same[0].name.rpartition('.')[2]}")
            for same in zip(*(each.children for each in members), strict=True)
        ),
    )
