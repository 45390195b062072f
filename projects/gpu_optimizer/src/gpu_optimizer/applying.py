"""A plan put into effect in a user's own script.

    applied = gpu_optimizer.apply(plan, model, optimizer)
    for batch in batches:
        loss = applied.train_step(batch, lambda part: model(**part).loss)

or, where the loop stays as it is, `autocast`, `backward` and `step` in their usual places.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.checkpoint_manager import CheckpointManager
from gpu_optimizer.chunked_loss import chunk_causal_lm_loss
from gpu_optimizer.fragmentation_solver import apply_settings
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.offload.eight_bit import eight_bit_optimizer
from gpu_optimizer.offload.optimizer_states import OptimizerStateOffload
from gpu_optimizer.plan_files import read_plan
from gpu_optimizer.plans import (
    Accumulation,
    Allocator,
    CheckpointRegion,
    ChunkedLoss,
    InvalidPlanError,
    Offload,
    OptimizerState,
    Plan,
    PlanStep,
    Precision,
    Quantization,
)
from gpu_optimizer.precision import MicroBatches, MixedPrecision, accumulate
from gpu_optimizer.quantizer import plan_cache, plan_choices, quantize
from gpu_optimizer.tensor_swapper import SwapSettings, TensorSwapper
from gpu_optimizer.types import Mode

_StepT = TypeVar("_StepT", bound=PlanStep)


class Applied:
    """A plan in effect.

    Attributes
    ----------
    plan
        The plan.
    model
        The model it was applied to, in place.
    optimizer
        To be used from now on: another object than the one given where the plan says 8 bits.
    precision
        Autocast and, for fp16, the gradient scaler, whose state belongs into a training checkpoint.
    cache
        Key-value cache to hand to a transformers model for generation; None: its usual one.
    """

    def __init__(
        self, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> None:
        self.plan = plan
        self.model = model
        self.optimizer = optimizer
        self.precision = _precision(plan.workload, plan.steps, model)
        self.cache: object | None = None
        self.micro_batch: int | None = None
        self._undo = ExitStack()
        with ExitStack() as undo:
            _Steps(self, undo).apply()
            self._undo = undo.pop_all()

    def undo(self) -> None:
        """Leave the model as it was.

        Settings of the allocator and an 8-bit optimizer stay: memory and states exist already.

        Raises
        ------
        ValueError
            If layers were quantized: what their weights were is not known any more.
        """
        if any(isinstance(step, Quantization) and step.scheme for step in self.plan.steps):
            raise ValueError("Quantized layers cannot be put back; load the model again.")
        self.close()

    def close(self) -> None:
        """Take away what can be taken away; layers in fewer bits stay."""
        self._undo.close()

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the forward pass and the loss."""
        return self.precision.autocast()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass; with fp16 the loss is scaled."""
        self.precision.backward(loss)

    def step(self, max_norm: float | None = None) -> None:
        """Step the optimizer and set gradients to None.

        Parameters
        ----------
        max_norm
            Length to which gradients are shortened; None: they are not.
        """
        if self.optimizer is None:
            raise InvalidPlanError("apply", "no optimizer was given, so there is none to step.")
        self.precision.step(self.optimizer, max_norm)
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate(
        self,
        batch: Any,  # noqa: ANN401 -- whatever the model takes
        loss_of: Callable[[Any], Tensor],
        weight: Callable[[Any], float] | None = None,
    ) -> Tensor:
        """Run a batch forward and backward, in the parts that the plan says.

        Parameters
        ----------
        batch
            Nested lists, tuples and dicts of tensors.
        loss_of
            Runs the model on a part of the batch and returns the mean loss.
        weight
            What that is a mean over; None: items. See `precision.MicroBatches`.

        Returns
        -------
        Tensor
            Loss of the whole batch, without a graph.
        """
        if self.micro_batch is None:
            with self.autocast():
                loss = loss_of(batch)
            self.backward(loss)
            return loss.detach()
        return accumulate(loss_of, batch, MicroBatches(self.micro_batch, weight), self.precision)

    def train_step(
        self,
        batch: Any,  # noqa: ANN401 -- whatever the model takes
        loss_of: Callable[[Any], Tensor],
        weight: Callable[[Any], float] | None = None,
    ) -> Tensor:
        """Do one step of training; parameters and result as for `accumulate`."""
        loss = self.accumulate(batch, loss_of, weight)
        self.step()
        return loss


def apply(
    plan: Plan | Path | str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> Applied:
    """Put a plan into effect on a model, in place.

    Parameters
    ----------
    plan
        Or the path of a plan file.
    model
        On its device, before its first step. Of a model in `DistributedDataParallel` its
        ``module``.
    optimizer
        Needed where the plan is about its state, and for `Applied.step`.

    Raises
    ------
    InvalidPlanError
        If the plan does not suit the model; the model is then as it was, but for layers that were
        quantized.
    """
    return Applied(plan if isinstance(plan, Plan) else read_plan(Path(plan)), model, optimizer)


class _Steps:
    """Applies the steps of a plan in the order in which they build on each other."""

    def __init__(self, applied: Applied, undo: ExitStack) -> None:
        self._applied = applied
        self._undo = undo

    def apply(self) -> None:
        applied, model = self._applied, self._applied.model
        for allocator in self._of(Allocator):
            apply_settings(AllocatorConfig.parse(allocator.config))
        for quantization in self._of(Quantization):
            quantize(model, plan_choices(model, quantization))
            applied.cache = plan_cache(model, quantization) or applied.cache
        for loss in self._of(ChunkedLoss):
            self._undo.callback(chunk_causal_lm_loss(model, loss.n_chunks))
        regions = self._of(CheckpointRegion)
        if regions:
            manager = CheckpointManager(model)
            manager.apply(regions)
            self._undo.callback(manager.undo)
        for offload in self._of(Offload):
            swapper = TensorSwapper(model, SwapSettings(min_bytes=offload.min_bytes))
            swapper.apply(offload)
            self._undo.callback(swapper.undo)
        for accumulation in self._of(Accumulation):
            applied.micro_batch = accumulation.micro_batch
        for state in self._of(OptimizerState):
            self._keep_state(state)

    def _of(self, kind: type[_StepT]) -> list[_StepT]:
        return [step for step in self._applied.plan.steps if isinstance(step, kind)]

    def _keep_state(self, state: OptimizerState) -> None:
        optimizer = self._applied.optimizer
        if state.kind == "plain":
            return
        if optimizer is None:
            raise InvalidPlanError("optimizer_state", "the plan needs the optimizer: pass it on.")
        if state.kind == "8bit":
            self._applied.optimizer = eight_bit_optimizer(optimizer)
        else:
            offload = OptimizerStateOffload(optimizer)
            offload.apply()
            self._undo.callback(offload.undo)


def _precision(workload: Workload, steps: tuple[PlanStep, ...], model: nn.Module) -> MixedPrecision:
    device_type = next((each.device.type for each in model.parameters()), "cpu")
    for step in steps:
        if isinstance(step, Precision):
            return MixedPrecision(step.autocast, device_type, grad_scaler=step.grad_scaler)
    autocast = None if workload.autocast == "fp32" else workload.autocast
    # A run without gradients has none to scale.
    scales = None if workload.mode is Mode.TRAIN else False
    return MixedPrecision(autocast, device_type, grad_scaler=scales)
