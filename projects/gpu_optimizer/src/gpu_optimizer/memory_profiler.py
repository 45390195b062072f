"""How much memory each layer of any model takes: measured on a GPU, or estimated without one.

Both ways end in the same place, a timeline of allocations with a module, a phase and a category
each, so that the columns of the two tables mean the same. The estimate runs on a copy of the model
without values; the measurement runs the model itself.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from gpu_optimizer.errors import NoGpuError, UnknownNameError
from gpu_optimizer.layers.times import time_layers, with_times
from gpu_optimizer.memory_tracer import MemoryTracer, TraceMode, cuda_index
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import OPTIMIZERS, Workload
from gpu_optimizer.steps.fakes import fake_copy, fake_like
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.types import (
    CATEGORIES,
    PHASES,
    Category,
    LayerMemory,
    MemoryTimeline,
    Mode,
    Phase,
)

Loss = Callable[[Any], Tensor]
ChoiceT = TypeVar("ChoiceT", bound=StrEnum)
# Libraries take their workspaces and optimizers their state in the first step.
_N_WARM_UPS: Final = 2


class How(StrEnum):
    """Where the numbers come from."""

    AUTO = "auto"
    """Measured if the model is on a GPU, else estimated."""
    MEASURE = "measure"
    ESTIMATE = "estimate"


@dataclass(frozen=True, slots=True)
class ProfileTotals:
    """Most that was live at once of each kind, from the timeline and not from sums over layers."""

    parameter_bytes: int
    """With buffers."""
    gradient_bytes: int
    activation_bytes: int
    """Kept by the forward pass for the backward pass."""
    optimizer_state_bytes: int
    peak_bytes: int
    """Of all kinds together, before rounding."""
    time_s: float | None
    """Of one step on the GPU, the optimizer left out; None: not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A model's memory by layer."""

    layers: LayerMemory
    totals: ProfileTotals
    how: How
    """`MEASURE` or `ESTIMATE`."""
    timeline: MemoryTimeline
    assumptions: tuple[str, ...] = ()
    """What an estimate supposes, in words."""

    def to_json(self) -> str:
        """Write layers and totals as JSON."""
        facts = {"how": self.how, "totals": asdict(self.totals), "assumptions": self.assumptions}
        return json.dumps({**facts, "layers": asdict(self.layers)})


def profile(
    model: nn.Module,
    inputs: Any,  # noqa: ANN401 -- whatever the model takes
    mode: Mode | str = Mode.TRAIN,
    how: How | str = How.AUTO,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Profile:
    """Tell what each layer of a model holds.

    Parameters
    ----------
    model
        Any module. An estimate leaves it as it is. A measurement runs it: statistics of
        normalisation and random numbers move on, gradients are dropped, and with an optimizer the
        weights change as in any training step.
    inputs
        One batch: a tensor, a tuple of positional or a dict of keyword arguments. A measurement
        takes them to the model's device.
    mode
        ``train`` or ``infer``.
    how
        ``auto``, ``measure`` or ``estimate``.
    loss
        From what the model returns to a single value; None: its ``loss`` if it has one, else the
        sum of all its floating-point results, which needs least memory. In an estimate, tensors
        that it brings along must be on the CPU.
    optimizer
        Steps after the backward pass; None: no step. An estimate knows SGD, Adam and AdamW.

    Raises
    ------
    NoGpuError
        A measurement was asked for, and there is no GPU or the model is not on it.
    InvalidModelError
        An estimate cannot copy the model.
    UnknownNameError
        An estimate does not know the optimizer, or a choice is misspelt.
    """
    request = _Request(model, inputs, _choice(Mode, mode), loss or _default_loss, optimizer)
    chosen = _choice(How, how)
    on_gpu = torch.cuda.is_available() and cuda_index(model) is not None
    if chosen is How.AUTO:
        chosen = How.MEASURE if on_gpu else How.ESTIMATE
    if chosen is How.ESTIMATE:
        return _estimate(request)
    if not on_gpu:
        raise NoGpuError("Measuring a model's memory")
    return _measure(request)


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    model: nn.Module
    inputs: Any
    mode: Mode
    loss: Loss
    optimizer: torch.optim.Optimizer | None

    def call(self, model: nn.Module, inputs: Any) -> Any:  # noqa: ANN401
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def _choice(kind: type[ChoiceT], value: str) -> ChoiceT:
    if value not in list(kind):
        raise UnknownNameError(kind.__name__.lower(), value, tuple(kind))
    return kind(value)


def _default_loss(outputs: Any) -> Tensor:  # noqa: ANN401
    given = getattr(outputs, "loss", None)
    if isinstance(given, Tensor):
        return given
    found = [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]
    sums = [each.sum() for each in found if each.is_floating_point() and each.requires_grad]
    return torch.stack([each.float() for each in sums]).sum()


def _estimate(request: _Request) -> Profile:
    leaves, spec = tree_flatten(request.inputs)
    name = type(request.model).__name__

    def rebuild(batch: dict[str, Tensor]) -> Any:  # noqa: ANN401
        values = [batch.get(str(number), leaf) for number, leaf in enumerate(leaves)]
        return tree_unflatten(values, spec)

    def make_batch(_: Workload) -> dict[str, Tensor]:
        fakes = enumerate(fake_like(leaves))
        return {str(number): fake for number, fake in fakes if isinstance(fake, Tensor)}

    family = Family(
        name=name,
        build=lambda _: fake_copy(request.model),
        inputs=make_batch,
        loss=lambda model, batch: request.loss(request.call(model, rebuild(batch))),
        blocks=lambda _: (),
        predict=lambda model, batch: request.call(model, rebuild(batch)),
    )
    optimizer, foreach = _optimizer_name(request.optimizer)
    workload = Workload(
        name, request.mode, optimizer=optimizer, foreach=foreach, autocast=_ambient_autocast()
    )
    recording = record_step(workload, family=family)
    return Profile(
        layers=recording.layers,
        totals=_totals(recording.timeline, None),
        how=How.ESTIMATE,
        timeline=recording.timeline,
        assumptions=recording.assumptions,
    )


def _optimizer_name(optimizer: torch.optim.Optimizer | None) -> tuple[str, bool]:
    """Name of an optimizer in `Workload`, and whether it works on all parameters at once."""
    if optimizer is None:
        # Keeps nothing and needs no temporaries, just like no step at all.
        return "sgd", False
    # PyTorch's default on a GPU is to work on all at once.
    foreach = optimizer.defaults.get("foreach") is not False
    if type(optimizer) is torch.optim.SGD:
        return "sgd-momentum" if optimizer.defaults["momentum"] else "sgd", foreach
    name = type(optimizer).__name__.lower()
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    return name, foreach


def _ambient_autocast() -> str | None:
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return names.get(torch.get_autocast_dtype(device))
    return None


def _measure(request: _Request) -> Profile:
    model, optimizer = request.model, request.optimizer
    inputs = tree_map_only(Tensor, partial(_to, next(_on_gpu(model)).device), request.inputs)
    results: list[object] = []

    def step() -> None:
        results.clear()
        if request.mode is Mode.INFER:
            with torch.no_grad():
                results.append(request.call(model, inputs))
            return
        model.zero_grad(set_to_none=True)
        request.loss(request.call(model, inputs)).backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()

    was_training = model.training
    model.train(request.mode is Mode.TRAIN)
    try:
        for _ in range(_N_WARM_UPS):
            step()
        results.clear()
        with MemoryTracer(model, optimizer, TraceMode.EXACT) as tracer:
            step()
        own_s = time_layers(model, step)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    timeline = tracer.trace.timeline
    layers = with_times(tracer.trace.layers, own_s)
    return Profile(layers, _totals(timeline, layers.time_s), How.MEASURE, timeline)


def _on_gpu(model: nn.Module) -> Iterator[Tensor]:
    return (each for each in model.parameters() if each.is_cuda)


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device)


def _totals(timeline: MemoryTimeline, time_s: float | None) -> ProfileTotals:
    in_forward = timeline.phase == PHASES.index(Phase.FORWARD)
    born_in_forward = np.isin(
        timeline.block, timeline.block[in_forward & (timeline.size_bytes > 0)]
    )

    def most(category: Category, among: Bool[np.ndarray, "events"] | None = None) -> int:
        chosen = timeline.category == CATEGORIES.index(category)
        chosen = chosen if among is None else chosen & among
        return int(np.cumsum(np.where(chosen, timeline.size_bytes, 0)).max(initial=0))

    return ProfileTotals(
        parameter_bytes=most(Category.PARAMETER),
        gradient_bytes=most(Category.GRADIENT),
        activation_bytes=most(Category.ACTIVATION, born_in_forward),
        optimizer_state_bytes=most(Category.OPTIMIZER_STATE),
        peak_bytes=int(np.cumsum(timeline.size_bytes).max(initial=0)),
        time_s=time_s,
    )
