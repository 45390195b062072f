"""Which layer of a model holds how much: a timeline summed up along the tree of modules."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int64

from gpu_optimizer.types import CATEGORIES, PHASES, Category, LayerMemory, MemoryTimeline, Phase


def layer_tree(
    timeline: MemoryTimeline, flops: Int64[np.ndarray, "modules"], last_step_row: int
) -> LayerMemory:
    """Return a model's memory, layer by layer.

    Parameters
    ----------
    timeline
        From the building of the model on.
    flops
        Of each module's own operations in one forward pass.
    last_step_row
        Where the last step begins; gradients, activations and peaks are of that step.
    """
    last = np.arange(len(timeline)) >= last_step_row
    forward = timeline.phase == PHASES.index(Phase.FORWARD)
    parameters = _own_bytes(timeline, Category.PARAMETER, np.ones_like(last))
    gradients = _own_bytes(timeline, Category.GRADIENT, last)
    activations = _own_bytes(timeline, Category.ACTIVATION, last & forward)
    peaks = _own_peaks(timeline, last)
    children = _children(timeline.modules)

    def layer(number: int) -> LayerMemory:
        below = tuple(layer(child) for child in children[number])

        def total(own: Int64[np.ndarray, "modules"], of: Callable[[LayerMemory], int]) -> int:
            return int(own[number]) + sum(of(child) for child in below)

        return LayerMemory(
            name=timeline.modules[number],
            kind=timeline.module_types[number],
            parameter_bytes=total(parameters, lambda child: child.parameter_bytes),
            gradient_bytes=total(gradients, lambda child: child.gradient_bytes),
            activation_bytes=total(activations, lambda child: child.activation_bytes),
            peak_bytes=max(int(peaks[number]), *(child.peak_bytes for child in below), 0),
            flops=total(flops, lambda child: child.flops or 0),
            children=below,
        )

    return layer(0)


def _own_bytes(
    timeline: MemoryTimeline, category: Category, rows: Bool[np.ndarray, "events"]
) -> Int64[np.ndarray, "modules"]:
    chosen = rows & (timeline.size_bytes > 0) & (timeline.category == CATEGORIES.index(category))
    sums = np.zeros(len(timeline.modules), np.int64)
    np.add.at(sums, timeline.module[chosen], timeline.size_bytes[chosen])
    return sums


def _own_peaks(
    timeline: MemoryTimeline, rows: Bool[np.ndarray, "events"]
) -> Int64[np.ndarray, "modules"]:
    """Return the most that was allocated in all whenever a module itself was the one running."""
    allocated = np.cumsum(timeline.size_bytes)
    peaks = np.zeros(len(timeline.modules), np.int64)
    np.maximum.at(peaks, timeline.module[rows], allocated[rows])
    return peaks


def _children(names: tuple[str, ...]) -> list[list[int]]:
    numbers = {name: number for number, name in enumerate(names)}
    children: list[list[int]] = [[] for _ in names]
    for number, name in enumerate(names[1:], start=1):
        parent = name.rpartition(".")[0]
        while parent not in numbers:
            parent = parent.rpartition(".")[0]
        children[numbers[parent]].append(number)
    return children
