"""How long the operations of a step take on a card, estimated from what they compute and move.

A roofline: an operation takes as long as its arithmetic or its memory traffic, whichever is more.
The parts of the maker's figures that are reached were fitted to whole steps measured on an H200
(ResNet50 at batch 256: 116 ms in fp32, 105 ms under bf16 autocast); measured times of layers
correct them where there are any (`calibrated`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from gpu_optimizer.machines.speeds import GpuSpeed
from gpu_optimizer.steps.graphs import Operations, StepGraph
from gpu_optimizer.types import PHASES, Phase

_MEMORY_RATIO: Final = 0.8
_PRODUCT_RATIO: Final = 0.7
_ATTENTION_RATIO: Final = 0.4
_CONVOLUTION_RATIOS: Final = {4: 0.3, 2: 0.1}
"""By size of values. With channels first, which tensor cores do not read, half precision gains
little: the same ResNet50 step runs at 54 TFLOP/s in fp32 and 59 in bf16."""
_PASSES: Final = {"aten.native_batch_norm": 1.5, "aten.native_batch_norm_backward": 1.6}
"""Memory passes beyond reading arguments and writing results once: batch statistics take one."""
_LAUNCH_S: Final = 3e-6
"""Shortest time of a kernel."""
_DISPATCH_S: Final = 9e-6
"""Of an operation in Python, views beside it included."""
_REPEAT_DISPATCH_S: Final = 60e-6
"""Of writing an operation down and repeating it."""


@dataclass(frozen=True, slots=True, eq=False)
class StepTimes:
    """Estimated times of one step."""

    operation_s: Float64[np.ndarray, "operations"]
    """On the GPU."""
    n_dispatched: int

    @property
    def step_s(self) -> float:
        """The whole step: the GPU's time, or Python's where the GPU waits for it."""
        return self.longer_s(0.0, 0)

    def longer_s(self, repeated_s: float, n_repeated: int) -> float:
        """Return the time of the step with some operations run again."""
        python_s = self.n_dispatched * _DISPATCH_S + n_repeated * _REPEAT_DISPATCH_S
        return max(float(self.operation_s.sum()) + repeated_s, python_s)


def step_times(graph: StepGraph, speed: GpuSpeed, n_parts_ratio: float = 1.0) -> StepTimes:
    """Estimate the times of a step.

    Parameters
    ----------
    graph
        The recorded step.
    speed
        The card.
    n_parts_ratio
        How many parts the batch is run in, as a multiple of those in the recording.
    """
    operations = graph.operations
    moved = operations.moved_bytes * _passes(operations)
    memory_s = moved / (speed.memory_bytes_per_s * _MEMORY_RATIO)
    compute_s = operations.flops / _flops_per_s(operations, speed)
    # A convolution copies into the layout its kernel wants and then computes.
    kernel_s = np.where(
        _is_convolution(operations), memory_s + compute_s, np.maximum(memory_s, compute_s)
    )
    operation_s = np.maximum(kernel_s, _LAUNCH_S)
    in_parts = operations.phase != PHASES.index(Phase.OPTIMIZER)
    operation_s = np.where(in_parts, operation_s * n_parts_ratio, operation_s)
    n_dispatched = round(in_parts.sum() * n_parts_ratio + (~in_parts).sum())
    return StepTimes(operation_s, n_dispatched)


def measured_ratios(
    graph: StepGraph, times: StepTimes, layer_s: Mapping[str, float]
) -> dict[str, float]:
    """Return how much longer modules take than estimated.

    Parameters
    ----------
    graph
        The step that was measured, recorded.
    times
        Its estimates.
    layer_s
        Measured time of each module's own work in a step, as `layers.times.time_layers` gives it.
    """
    names = graph.recording.timeline.modules
    estimated = np.bincount(graph.operations.module, times.operation_s, minlength=len(names))
    return {
        name: layer_s[name] / float(seconds)
        for name, seconds in zip(names, estimated, strict=True)
        if seconds > 0 and layer_s.get(name, 0.0) > 0
    }


def calibrated(graph: StepGraph, times: StepTimes, ratios: Mapping[str, float]) -> StepTimes:
    """Scale estimated times by what was measured; modules of which nothing is known stay."""
    by_module = np.array([ratios.get(name, 1.0) for name in graph.recording.timeline.modules])
    return StepTimes(times.operation_s * by_module[graph.operations.module], times.n_dispatched)


def _passes(operations: Operations) -> Float64[np.ndarray, "operations"]:
    return np.array([_PASSES.get(name, 1.0) for name in operations.name])


def _is_convolution(operations: Operations) -> np.ndarray:
    return np.array(["convolution" in name for name in operations.name], np.bool_)


def _flops_per_s(operations: Operations, speed: GpuSpeed) -> Float64[np.ndarray, "operations"]:
    rates = []
    for name, size in zip(operations.name, operations.itemsize_bytes.tolist(), strict=True):
        half = size == 2
        if "convolution" in name:
            peak = speed.half_flops_per_s if half else speed.tf32_flops_per_s
            rates.append(peak * _CONVOLUTION_RATIOS[2 if half else 4])
            continue
        # PyTorch multiplies fp32 matrices without tensor cores unless it is told to.
        peak = speed.half_flops_per_s if half else speed.fp32_flops_per_s
        rates.append(peak * (_ATTENTION_RATIO if "attention" in name else _PRODUCT_RATIO))
    return np.array(rates)
