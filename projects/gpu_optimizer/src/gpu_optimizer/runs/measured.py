"""Runs a workload on the GPU that is here, and tells what each layer of its model holds."""

import torch

from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.layers.times import time_layers, with_times
from gpu_optimizer.memory_tracer import MemoryTracer, TraceMode
from gpu_optimizer.models.described import described_family
from gpu_optimizer.runs.fitting import ModelRun
from gpu_optimizer.steps.builder import build_step
from gpu_optimizer.types import LayerMemory

# Libraries take their workspaces and optimizers their state in the first step.
_N_WARM_UPS = 2


def measure_run(run: ModelRun) -> LayerMemory:
    """Measure the layers of a run; the model's weights are random.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    UnknownNameError, InvalidModelError
        As `build_step`.
    """
    if not torch.cuda.is_available():
        raise NoGpuError("Measuring a model's memory")
    family = None if run.described is None else described_family(run.described)
    step = build_step(run.workload, torch.device("cuda"), family)
    for _ in range(_N_WARM_UPS):
        step.run()
    with MemoryTracer(step.model, step.optimizer, TraceMode.EXACT) as tracer:
        step.run()
    return with_times(tracer.trace.layers, time_layers(step.model, step.run))
