"""Tables of a model's layers for terminals and notebooks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from rich.table import Table

from gpu_optimizer.layer_views import merge_alike, own_layers
from gpu_optimizer.memory_profiler import Profile
from gpu_optimizer.types import LayerMemory

_MIB: Final = 1 << 20
_ALL_LEVELS: Final = 1 << 20


def tree_table(profile: Profile, depth: int = 3) -> Table:
    """Layers inside of layers, neighbours of the same shape in one row.

    Parameters
    ----------
    profile
        Of any model.
    depth
        Levels below the model itself.
    """
    table = _empty_table(profile)
    for level, layer in _walk(merge_alike(profile.layers), depth):
        name = layer.name.rpartition(".")[2] if "–" not in layer.name else layer.name
        _add(table, "  " * level + (name or "model"), layer)
    return table


def flat_table(profile: Profile, n_rows: int = 25) -> Table:
    """Each module with what it holds itself, most first; all rows together are the model.

    Parameters
    ----------
    profile
        Of any model.
    n_rows
        How many at most.
    """
    table = _empty_table(profile)
    own_s = {layer.name: _own_s(layer) for _, layer in _walk(profile.layers, _ALL_LEVELS)}
    layers = sorted(own_layers(profile.layers), key=lambda layer: -_held_bytes(layer))
    for layer in layers[:n_rows]:
        row = replace(layer, time_s=own_s[layer.name])
        _add(table, layer.name or "outside of the layers", row)
    return table


def _own_s(layer: LayerMemory) -> float | None:
    if layer.time_s is None:
        return None
    return layer.time_s - sum(child.time_s or 0.0 for child in layer.children)


def _held_bytes(layer: LayerMemory) -> int:
    return layer.parameter_bytes + layer.activation_bytes + layer.gradient_bytes


def _walk(layer: LayerMemory, depth: int, level: int = 0) -> Iterator[tuple[int, LayerMemory]]:
    yield level, layer
    if level < depth:
        for child in layer.children:
            yield from _walk(child, depth, level + 1)


def _empty_table(profile: Profile) -> Table:
    table = Table(title=f"Memory by layer, MiB, {profile.how}d")
    table.add_column("layer", no_wrap=True)
    table.add_column("class")
    for title in ("parameters", "activations", "gradients", "peak", "ms"):
        table.add_column(title, justify="right")
    return table


def _add(table: Table, name: str, layer: LayerMemory) -> None:
    sizes = (
        layer.parameter_bytes,
        layer.activation_bytes,
        layer.gradient_bytes,
        layer.peak_bytes,
    )
    time = "" if layer.time_s is None else f"{layer.time_s * 1e3:,.2f}"
    table.add_row(name, layer.kind, *(f"{n / _MIB:,.2f}" if n else "" for n in sizes), time)
