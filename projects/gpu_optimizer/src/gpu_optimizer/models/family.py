"""What it takes to build, feed and score a kind of model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from gpu_optimizer.models.workloads import Workload


@dataclass(frozen=True, slots=True)
class Family:
    """How a kind of model is built, fed and scored."""

    name: str
    build: Callable[[Workload], nn.Module]
    """Builds it on PyTorch's default device and in its default dtype, with random weights."""
    inputs: Callable[[Workload], dict[str, Tensor]]
    """Makes one batch on PyTorch's default device."""
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    """Runs the model on a batch."""
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    """What is checkpointed."""
    predict: Callable[[nn.Module, dict[str, Tensor]], object]
    """Runs the model without a loss; what it returns is kept until the run ends."""
