"""Where to begin: the largest batch that part three's predictions promise, if they can be made."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.batch_probing.cases import ModuleCase, ProbeCase, call, default_loss
from gpu_optimizer.batch_probing.prediction import predicted_batch
from gpu_optimizer.batch_probing.trials import MemoryCap
from gpu_optimizer.memory_predictor import DeviceConstants, predict_from
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import OPTIMIZERS, Workload
from gpu_optimizer.runs.fitting import ModelRun, card_constants, record_on
from gpu_optimizer.steps.fakes import fake_copy, fake_like
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import Machine, Prediction
from shared_utils.errors import ProjectError

# What a model's own code may raise when it sees tensors without values.
_NOT_PREDICTABLE: Final = (
    AssertionError,
    AttributeError,
    LookupError,
    ProjectError,
    RuntimeError,
    TypeError,
    ValueError,
)


def hint_for(
    case: ProbeCase, machine: Machine, cap: MemoryCap, largest: int, go_on: Callable[[], bool]
) -> int | None:
    """Predict the largest batch of a case; None: it cannot be predicted.

    Parameters
    ----------
    case
        What is run.
    machine
        With the GPU; `reserved_bytes` is what is in use already.
    cap
        How much of it may be used.
    largest
        Never answers more.
    go_on
        Asked before each prediction but the first.
    """
    limit_bytes = limit_of(machine, cap)

    def peak_bytes(batch_size: int) -> int:
        return capped_bytes(predict_case(case, machine, batch_size), cap)

    try:
        return predicted_batch(peak_bytes, limit_bytes, largest, go_on)
    except _NOT_PREDICTABLE:
        return None


def limit_of(machine: Machine, cap: MemoryCap) -> int:
    """What `capped_bytes` may be."""
    if cap.bytes is not None:
        return int(cap.max_ratio * cap.bytes)
    return int(cap.max_ratio * machine.total_bytes) - machine.reserved_bytes


def capped_bytes(prediction: Prediction, cap: MemoryCap) -> int:
    """Of what is predicted, that which a cap limits: a bare number of bytes is the allocator's."""
    return prediction.total_bytes if cap.bytes is None else prediction.reserved_peak_bytes


def predict_case(case: ProbeCase, machine: Machine, batch_size: int) -> Prediction:
    """Predict the memory of one batch size.

    Raises
    ------
    UnknownNameError, InvalidModelError
        As `record_step`; a module of the caller's may raise anything.
    """
    constants = card_constants(machine)
    recording = _record(case, machine, constants, batch_size)
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    return predict_from(recording, constants, AllocatorConfig.parse(text or ""))


def _record(
    case: ProbeCase, machine: Machine, constants: DeviceConstants, batch_size: int
) -> Recording:
    if isinstance(case, ModuleCase):
        family = _family(case, batch_size)
        return record_step(module_workload(case, batch_size), constants.target, family)
    workload = case.sized(batch_size)
    return record_on(ModelRun(workload, case.described), machine)


def module_workload(case: ModuleCase, batch_size: int) -> Workload:
    """Describe how a module of the caller's is run, as far as memory depends on it."""
    use = case.use
    optimizer: Any = use.make_optimizer
    settings: dict[str, Any] = {}
    if isinstance(optimizer, partial):
        optimizer, settings = optimizer.func, optimizer.keywords
    name = getattr(optimizer, "__name__", "").lower()
    if optimizer is None:
        name = "sgd"
    elif name == "sgd" and settings.get("momentum"):
        name = "sgd-momentum"
    return Workload(
        family=type(case.model).__name__,
        mode=use.mode,
        batch_size=batch_size,
        # An optimizer that is not known has two states per parameter, as most do.
        optimizer=name if name in OPTIMIZERS else "adamw",
        foreach=settings.get("foreach") is not False,
        autocast=use.autocast,
    )


def _family(case: ModuleCase, batch_size: int) -> Family:
    leaves, spec = tree_flatten(case.make_inputs(batch_size))
    loss = case.use.loss or default_loss

    def inputs(_: Workload) -> dict[str, Tensor]:
        fakes = enumerate(fake_like(leaves))
        return {str(number): fake for number, fake in fakes if isinstance(fake, Tensor)}

    def run(model: nn.Module, batch: dict[str, Tensor]) -> Any:  # noqa: ANN401
        values = [batch.get(str(number), leaf) for number, leaf in enumerate(leaves)]
        return call(model, tree_unflatten(values, spec))

    return Family(
        name=type(case.model).__name__,
        build=lambda _: fake_copy(case.model),
        inputs=inputs,
        loss=lambda model, batch: loss(run(model, batch)),
        blocks=lambda _: (),
        predict=run,
    )
