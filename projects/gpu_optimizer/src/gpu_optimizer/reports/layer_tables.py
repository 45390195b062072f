"""Layers of a model as tables for people."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from rich.table import Table

from gpu_optimizer.layers.views import merge_alike, own_layers
from gpu_optimizer.types import LayerMemory
from shared_utils.units import format_bytes

_N_TREE_ROWS: Final = 40
_MAX_DEPTH: Final = 12
_N_FLAT_ROWS: Final = 25
_NO_LIMIT: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[LayerMemory], float | None]
    write: Callable[[LayerMemory], str]


def _columns(layers: LayerMemory) -> list[_Column]:
    """Columns that hold anything."""
    columns = (
        _Column("parameters", *_of_bytes(lambda layer: layer.parameter_bytes)),
        _Column("activations", *_of_bytes(lambda layer: layer.activation_bytes)),
        _Column("gradients", *_of_bytes(lambda layer: layer.gradient_bytes)),
        _Column("peak", *_of_bytes(lambda layer: layer.peak_bytes)),
        _Column(
            "GFLOP",
            lambda layer: layer.flops,
            lambda layer: f"{layer.flops / 1e9:,.2f}" if layer.flops else "",
        ),
        _Column(
            "ms",
            lambda layer: layer.time_s,
            lambda layer: f"{layer.time_s * 1e3:,.2f}" if layer.time_s is not None else "",
        ),
    )
    return [column for column in columns if column.value(layers)]


def _of_bytes(
    of: Callable[[LayerMemory], int],
) -> tuple[Callable[[LayerMemory], float], Callable[[LayerMemory], str]]:
    return of, lambda layer: format_bytes(of(layer)) if of(layer) else ""


def tree_table(layers: LayerMemory, depth: int | None = None, *, every: bool = False) -> Table:
    """Layers as a tree, equal neighbours as one row.

    Parameters
    ----------
    layers
        The model.
    depth
        Levels that are shown; None: as many as give a table that is not too long.
    every
        All levels, and equal neighbours apart.
    """
    columns = _columns(layers)
    table = _empty_table("layer", columns)
    shown = layers if every else merge_alike(layers)
    levels = _NO_LIMIT if every else depth or _readable_depth(shown)
    for name, layer in _tree_rows(shown, "", levels):
        table.add_row(name, layer.kind, *(column.write(layer) for column in columns))
    return table


def _readable_depth(layers: LayerMemory) -> int:
    depth, n_rows = 1, 1
    while depth < _MAX_DEPTH:
        n_deeper = sum(1 for _ in _tree_rows(layers, "", depth + 1))
        if n_deeper == n_rows or n_deeper > _N_TREE_ROWS:
            break
        depth, n_rows = depth + 1, n_deeper
    return depth


def _tree_rows(layer: LayerMemory, indent: str, depth: int) -> Iterator[tuple[str, LayerMemory]]:
    short = layer.name.rpartition(".")[2]
    yield f"{indent}{short or 'model'}", layer
    if depth > 1:
        for child in layer.children:
            yield from _tree_rows(child, f"{indent}  ", depth - 1)


def flat_table(layers: LayerMemory, *, every: bool = False) -> Table:
    """Each module for itself, those that hold most first."""
    columns = _columns(layers)
    table = _empty_table("module", columns)
    rows = sorted(own_layers(layers), key=_held, reverse=True)
    rows = [row for row in rows if _held(row)]
    shown = rows if every else rows[:_N_FLAT_ROWS]
    for layer in shown:
        table.add_row(
            layer.name or "model", layer.kind, *(column.write(layer) for column in columns)
        )
    rest = rows[len(shown) :]
    if rest:
        others = _sum(rest)
        cells = ("" if column.title == "peak" else column.write(others) for column in columns)
        table.add_row(f"and {len(rest):,} more (--all)", "", *cells)
    return table


def _held(layer: LayerMemory) -> int:
    return layer.parameter_bytes + layer.activation_bytes + layer.gradient_bytes


def _sum(layers: list[LayerMemory]) -> LayerMemory:
    return replace(
        layers[0],
        parameter_bytes=sum(each.parameter_bytes for each in layers),
        activation_bytes=sum(each.activation_bytes for each in layers),
        gradient_bytes=sum(each.gradient_bytes for each in layers),
        flops=sum(each.flops or 0 for each in layers),
        time_s=None,
    )


def _empty_table(first: str, columns: list[_Column]) -> Table:
    table = Table(first, "kind", *(column.title for column in columns))
    for column in table.columns[2:]:
        column.justify = "right"
    return table
