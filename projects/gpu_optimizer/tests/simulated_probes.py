"""What a process that tries batch sizes is given in the tests: real steps on the CPU of a real
model, and a device whose memory is simulated.
"""

from typing import Any

import torch
from torch import nn

from gpu_optimizer.batch_probing.cases import build_case, unpack
from gpu_optimizer.batch_probing.child import Try
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.batch_probing.trials import try_batch_size
from gpu_optimizer.steps.builder import Step


class SimulatedMeter:
    """A device on which each item takes as much, and a first step takes all there is to take."""

    def __init__(self, payload: dict[str, Any]) -> None:
        self.limit_bytes = payload["limit_bytes"]
        self._payload = payload
        self._used_bytes = 0
        self._peak_bytes = 0
        self._taken_bytes = 0

    def use(self, batch_size: int) -> None:
        used_bytes = self._payload["fixed_bytes"] + batch_size * self._payload["item_bytes"]
        if used_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a simulation.")
        self._taken_bytes += max(used_bytes - self._used_bytes, 0)
        self._used_bytes = used_bytes
        self._peak_bytes = max(self._peak_bytes, used_bytes)

    def take(self, n_bytes: int) -> None:
        """As where memory was given back and has to be asked for again."""
        self._taken_bytes += n_bytes

    def begin(self) -> None:
        self._peak_bytes = 0

    def wait(self) -> None:
        pass

    def taken_bytes(self) -> int:
        return self._taken_bytes

    def peaks(self) -> tuple[int, int]:
        return self._peak_bytes, self._peak_bytes

    def is_overfull(self) -> bool:
        return False

    def release(self) -> int:
        self._used_bytes = 0
        return 0


def make_try(payload: dict[str, Any]) -> Try:
    """Trials of a packed case on the simulated device."""
    case = unpack(payload["case"])
    meter = SimulatedMeter(payload)

    def build(batch_size: int) -> Step:
        step = build_case(case, batch_size, torch.device("cpu"))

        def run() -> None:
            meter.use(batch_size)
            step.run()

        return Step(step.model, step.inputs, step.optimizer, run)

    def try_size(request: ProbeRequest) -> ProbeResult:
        return try_batch_size(build, request, meter)

    return try_size


class Squares(nn.Module):
    """Has a large weight, a table of indices that must stay what it is, and shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(256, 256)
        self.shared = nn.Linear(256, 256, bias=False)
        self.shared.weight = self.large.weight
        self.register_buffer("order", torch.arange(255, -1, -1))
        self.norm = nn.BatchNorm1d(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.shared(self.large(x)[:, self.order]))


def ask_for_three_at_least(outputs: torch.Tensor) -> torch.Tensor:
    if len(outputs) < 3:
        raise IndexError("three at least")
    return outputs.square().mean()
