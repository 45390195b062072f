"""How long each layer of a model takes on the GPU, forward and backward."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from gpu_optimizer.layers.module_spans import ModuleSpans, Span
from gpu_optimizer.types import LayerMemory, Phase

_MODEL_PHASES: Final = frozenset({Phase.FORWARD, Phase.BACKWARD})
_N_REPEATS: Final = 3


def time_layers(
    model: nn.Module, step: Callable[[], object], n_repeats: int = _N_REPEATS
) -> dict[str, float]:
    """Mean time of each module's own work in a step, seconds, by qualified name.

    A CUDA event is recorded whenever the running module changes; the time to the next one is the
    module's. Where the GPU waits for the program, the waiting counts. What is outside of all
    modules, such as the loss, counts for the model itself.

    Parameters
    ----------
    model
        On the current GPU.
    step
        Runs the model once.
    n_repeats
        How many steps the mean is taken over.
    """
    total: Counter[str] = Counter()
    for _ in range(n_repeats):
        labels: list[str] = []
        events: list[torch.cuda.Event] = []

        def mark(
            label: str, labels: list[str] = labels, events: list[torch.cuda.Event] = events
        ) -> None:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()  # type: ignore[no-untyped-call]
            labels.append(label)
            events.append(event)

        torch.cuda.synchronize()
        with ModuleSpans(model, mark, every_node=True) as spans:
            step()
        # Leaving the block sets a last mark.
        torch.cuda.synchronize()
        known = [spans.span(label) for label in labels[:-1]]
        gaps_s = [_between_s(one, two) for one, two in pairwise(events)]
        total.update(sum_up(known, gaps_s, spans.modules))
    return {name: seconds / n_repeats for name, seconds in total.items()}


def _between_s(one: torch.cuda.Event, two: torch.cuda.Event) -> float:
    elapsed_ms: float = one.elapsed_time(two)  # type: ignore[no-untyped-call]
    return elapsed_ms / 1e3


def sum_up(
    spans: Sequence[Span], gaps_s: Sequence[float], modules: Sequence[str]
) -> dict[str, float]:
    """Add up times between marks by module, the optimizer's and pauses between steps left out."""
    total = dict.fromkeys(modules, 0.0)
    for span, gap_s in zip(spans, gaps_s, strict=True):
        if span.phase in _MODEL_PHASES:
            total[modules[span.module]] += gap_s
    return total


def with_times(layer: LayerMemory, own_s: Mapping[str, float]) -> LayerMemory:
    """Put times into a tree of layers; each has its submodules' times added, and no FLOPs."""
    below = tuple(with_times(child, own_s) for child in layer.children)
    time_s = own_s.get(layer.name, 0.0) + sum(child.time_s or 0.0 for child in below)
    return replace(layer, time_s=time_s, flops=None, children=below)
