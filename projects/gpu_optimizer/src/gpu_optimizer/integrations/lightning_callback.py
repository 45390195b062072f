"""A plan applied by a trainer of PyTorch Lightning.

    trainer = Trainer(callbacks=[PlanCallback(plan)], **trainer_options(plan))

The data loader's batch is one micro-batch of the plan. Needs ``gpu-optimizer[lightning]``.
"""

from pathlib import Path

from gpu_optimizer.applying import Applied
from gpu_optimizer.applying import apply as apply_plan
from gpu_optimizer.integrations.trainer_steps import for_model, only, require
from gpu_optimizer.offload.optimizer_states import OptimizerStateOffload
from gpu_optimizer.plan_files import read_plan
from gpu_optimizer.plans import Accumulation, InvalidPlanError, OptimizerState, Plan, Precision

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise InvalidPlanError(
        "lightning", "is not installed: install gpu-optimizer[lightning]."
    ) from error


def trainer_options(plan: Plan) -> dict[str, object]:
    """Return what to pass to `Trainer`, so that it does its part of a plan."""
    options: dict[str, object] = {}
    precision, accumulation = only(plan, Precision), only(plan, Accumulation)
    if precision and precision.autocast:
        options["precision"] = f"{'16' if precision.autocast == 'fp16' else 'bf16'}-mixed"
    if accumulation:
        options["accumulate_grad_batches"] = accumulation.n_micro_batches
    return options


class PlanCallback(Callback):
    """Applies a plan before training and takes it away afterwards.

    Parameters
    ----------
    plan
        Or the path of a plan file.

    Raises
    ------
    InvalidPlanError
        When training starts: if the plan does not suit the model, or the trainer is not set as
        `trainer_options` says.
    """

    def __init__(self, plan: Plan | Path | str) -> None:
        self.plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
        self.applied: Applied | None = None
        self._states: list[OptimizerStateOffload] = []

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Apply what is about the model."""
        if stage != "fit" or self.applied is not None:
            return
        for setting, wanted in trainer_options(self.plan).items():
            require("lightning", setting, getattr(trainer, setting), wanted)
        self.applied = apply_plan(for_model(self.plan), pl_module)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Apply what is about the optimizers."""
        del pl_module
        state = only(self.plan, OptimizerState)
        if state is None or state.kind == "plain":
            return
        if state.kind == "8bit":
            kinds = {type(each).__module__.split(".")[0] for each in trainer.optimizers}
            if "torch" in kinds:
                problem = "return an 8-bit optimizer from configure_optimizers: eight_bit_optimizer"
                raise InvalidPlanError("lightning", f"{problem} of gpu_optimizer.offload.")
            return
        for optimizer in trainer.optimizers:
            offload = OptimizerStateOffload(optimizer)
            offload.apply()
            self._states.append(offload)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Leave the model as it was, but for layers in fewer bits, which stay."""
        del trainer, pl_module
        if stage == "fit" and self.applied is not None:
            for offload in self._states:
                offload.undo()
            self.applied.close()
            self.applied, self._states = None, []
