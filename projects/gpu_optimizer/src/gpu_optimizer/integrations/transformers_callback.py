"""A plan applied by the `Trainer` of transformers.

arguments = TrainingArguments(..., **training_options(plan))
trainer = Trainer(model, arguments, ..., callbacks=[PlanTrainerCallback(plan)])
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpu_optimizer.applying import Applied
from gpu_optimizer.applying import apply as apply_plan
from gpu_optimizer.integrations.trainer_steps import for_model, only, require
from gpu_optimizer.offload.optimizer_states import OptimizerStateOffload
from gpu_optimizer.plan_files import read_plan
from gpu_optimizer.plans import Accumulation, OptimizerState, Plan, Precision


def training_options(plan: Plan) -> dict[str, object]:
    """Return what to pass to `TrainingArguments`, so that the trainer does its part of a plan."""
    options: dict[str, object] = {}
    precision, accumulation = only(plan, Precision), only(plan, Accumulation)
    state = only(plan, OptimizerState)
    if precision and precision.autocast:
        options[precision.autocast] = True
    if accumulation:
        options["per_device_train_batch_size"] = accumulation.micro_batch
        options["gradient_accumulation_steps"] = accumulation.n_micro_batches
    if state and state.kind == "8bit":
        options["optim"] = "adamw_bnb_8bit"
    return options


class PlanTrainerCallback(TrainerCallback):
    """Applies a plan when training begins and takes it away at its end.

    Parameters
    ----------
    plan
        Or the path of a plan file.

    Raises
    ------
    InvalidPlanError
        When training begins: if the plan does not suit the model, or the trainer is not set as
        `training_options` says.
    """

    def __init__(self, plan: Plan | Path | str) -> None:
        self.plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
        self.applied: Applied | None = None
        self._state: OptimizerStateOffload | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401 -- as transformers calls it
    ) -> None:
        """Apply the plan."""
        del state, control
        for setting, wanted in training_options(self.plan).items():
            require("transformers", setting, getattr(args, setting), wanted)
        model: nn.Module = kwargs["model"]
        self.applied = apply_plan(for_model(self.plan), model)
        kept = only(self.plan, OptimizerState)
        optimizer = kwargs.get("optimizer")
        if kept and kept.kind == "offload" and optimizer is not None:
            # accelerate wraps the optimizer.
            self._state = OptimizerStateOffload(getattr(optimizer, "optimizer", optimizer))
            self._state.apply()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401 -- as transformers calls it
    ) -> None:
        """Leave the model as it was, but for layers in fewer bits, which stay."""
        del args, state, control, kwargs
        if self._state is not None:
            self._state.undo()
        if self.applied is not None:
            self.applied.close()
        self.applied, self._state = None, None
