"""How a step is run beside its regions: in which precision, in how many parts, with which loss."""

from dataclasses import dataclass, replace

from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plans import Accumulation, ChunkedLoss, OptimizerState, PlanStep, Precision


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a workload; each is recorded for itself."""

    autocast: str | None
    """As in `Workload`; what is changed becomes bf16."""
    n_parts: int = 1
    n_chunks: int = 1
    """Of the loss."""
    state: str = "plain"
    """Kind of `OptimizerState`."""

    def workload(self, base: Workload) -> Workload:
        """Return the workload in this precision and so many parts."""
        return replace(base, autocast=self.autocast, n_micro_batches=self.n_parts)

    def applied_steps(self) -> tuple[PlanStep, ...]:
        """Return the steps that change the model or its optimizer."""
        steps: list[PlanStep] = []
        if self.n_chunks > 1:
            steps.append(ChunkedLoss(self.n_chunks))
        if self.state in {"8bit", "offload"}:
            steps.append(OptimizerState("8bit" if self.state == "8bit" else "offload"))
        return tuple(steps)

    def steps(self, base: Workload) -> tuple[PlanStep, ...]:
        """Return all steps of a plan that it stands for."""
        steps: list[PlanStep] = []
        if self.autocast != base.autocast:
            steps.append(Precision("bf16"))
        if self.n_parts > base.n_micro_batches:
            steps.append(Accumulation(base.batch_size // self.n_parts, self.n_parts))
        return (*steps, *self.applied_steps())


def plain(base: Workload) -> Setting:
    """Return the setting in which nothing is changed."""
    return Setting(base.autocast, base.n_micro_batches)
