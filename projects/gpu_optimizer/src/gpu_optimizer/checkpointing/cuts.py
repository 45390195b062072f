"""Which results of a forward pass to keep, and which to compute again, as a minimum cut.

Every value that the backward pass needs must be kept, or computed again from values of which the
same holds. Keeping costs bytes, computing costs time; the cheapest choice is the minimum cut of a
graph with one node per operation and one per value (the "project selection" form; the compiler's
min-cut rematerialisation of `torch.compile` prices bytes only).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import networkx as nx  # type: ignore[import-untyped]

MOVED_PER_KEPT_BYTE: Final = 64
"""How much memory traffic is accepted to save one byte: at 4 TB/s, a GiB costs 17 ms at most."""


@dataclass(frozen=True, slots=True)
class ForwardOperation:
    """One operation of a forward pass."""

    reads: tuple[int, ...]
    """Numbers of the values it needs; what exists anyway, such as parameters, is left out."""
    makes: tuple[int, ...]
    """Numbers of the values it results in."""
    moved_bytes: int
    """Read and written."""
    repeatable: bool
    """Whether it may be run a second time."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is done about each value."""

    kept: frozenset[int]
    repeated: frozenset[int]
    """Numbers of the operations to run again."""


def cheapest_cut(
    operations: Sequence[ForwardOperation],
    kept_bytes: Sequence[int | None],
    needed: Collection[int],
) -> Cut:
    """Find what to keep so that every needed value can be had.

    Parameters
    ----------
    operations
        In the order they ran.
    kept_bytes
        What keeping each value costs; None: it cannot be kept.
    needed
        Values the backward pass asks for.

    Raises
    ------
    networkx.NetworkXUnbounded
        If a needed value can neither be kept nor computed.
    """
    graph = nx.DiGraph()
    graph.add_node("kept")
    graph.add_node("needed")
    for number, operation in enumerate(operations):
        run = ("run", number)
        _edge(graph, "kept", run, operation.moved_bytes if operation.repeatable else None)
        for value in operation.reads:
            _edge(graph, ("have", value), run, None)
        for value in operation.makes:
            size = kept_bytes[value]
            price = None if size is None else size * MOVED_PER_KEPT_BYTE
            _edge(graph, run, ("have", value), price)
    for value in needed:
        _edge(graph, ("have", value), "needed", None)
    _, (kept_side, _) = nx.minimum_cut(graph, "kept", "needed")
    return Cut(
        kept=frozenset(
            value
            for number, operation in enumerate(operations)
            for value in operation.makes
            if ("run", number) in kept_side and ("have", value) not in kept_side
        ),
        repeated=frozenset(
            number for number in range(len(operations)) if ("run", number) not in kept_side
        ),
    )


def _edge(graph: "nx.DiGraph", one: object, two: object, capacity: int | None) -> None:
    # An edge without a capacity cannot be cut.
    if capacity is None:
        graph.add_edge(one, two)
    else:
        graph.add_edge(one, two, capacity=capacity)
