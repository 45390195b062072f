"""One recorded setting of a workload: what regions and offloading make of it, and how long."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from gpu_optimizer.machines.speeds import GpuSpeed
from gpu_optimizer.offload.schedule import LinkSpeed
from gpu_optimizer.planning.offloading import OffloadChoice, choose_offload
from gpu_optimizer.planning.peak_model import PeakModel
from gpu_optimizer.planning.regions import RegionFinder
from gpu_optimizer.planning.search import Choice, RegionSearch
from gpu_optimizer.planning.settings import Setting
from gpu_optimizer.planning.times import calibrated, step_times
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.types import PHASES, Phase

Chooser = Callable[[RegionSearch, int], Choice]

_OPTIMIZER = PHASES.index(Phase.OPTIMIZER)
_RELAXED_RATIOS = (1.1, 1.25, 1.5, np.inf)
"""Levels, as multiples of the asked one, down to which regions go where the rest is offloaded."""
RECORDED_PARTS = 2
"""Of a batch that is run in more, two are recorded."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What estimates rest on."""

    speed: GpuSpeed
    """Of the card."""
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    """How much longer modules take than estimated; see `times.measured_ratios`."""
    choose: Chooser = RegionSearch.greedy
    """Chooses regions for a peak."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One way to run a workload."""

    setting: Setting
    choice: Choice
    step_s: float
    """Estimated."""
    offload: OffloadChoice | None = None

    @property
    def peak_bytes(self) -> int:
        """Allocated peak by the model."""
        return self.choice.peak_bytes if self.offload is None else self.offload.peak_bytes


class SettingModel:
    """Answers for one setting.

    Parameters
    ----------
    setting
        What was recorded.
    graph
        Its step.
    basis
        Of estimates.
    state_bytes
        Optimizer state that travels to the host and back in each step.
    """

    def __init__(
        self,
        setting: Setting,
        graph: StepGraph,
        basis: Basis,
        state_bytes: int = 0,
    ) -> None:
        self.setting = setting
        self.graph = graph
        self.model = PeakModel(graph)
        self._basis = basis
        speed = basis.speed
        times = step_times(graph, speed, max(setting.n_parts / RECORDED_PARTS, 1.0))
        self.times = calibrated(graph, times, basis.layer_ratios)
        self._link = LinkSpeed(speed.link_bytes_per_s, speed.link_bytes_per_s)
        self._travel_s = self._waiting_s(state_bytes, speed)
        self._known: dict[int, Proposal] = {}

    def plain(self) -> Proposal:
        """Return the setting without regions."""
        return self._proposal(Choice((), self.model.base_bytes, 0.0, 0))

    def at(self, level_bytes: int, techniques: frozenset[str]) -> Proposal:
        """Return the fastest way to keep below a level, else the lowest one.

        Parameters
        ----------
        level_bytes
            Allocated peak.
        techniques
            Those of ``checkpoint`` and ``offload`` that may be used.
        """
        proposals = [self._repeating(level_bytes)] if "checkpoint" in techniques else [self.plain()]
        if "offload" in techniques:
            steps = _RELAXED_RATIOS if "checkpoint" in techniques else (np.inf,)
            for ratio in steps:
                relaxed = (
                    self.plain() if ratio == np.inf else self._repeating(int(level_bytes * ratio))
                )
                proposals.append(self._offloading(relaxed, level_bytes))
        return min(proposals, key=lambda each: (max(each.peak_bytes, level_bytes), each.step_s))

    def _repeating(self, level_bytes: int) -> Proposal:
        if level_bytes >= self.model.base_bytes:
            return self.plain()
        if level_bytes not in self._known:
            self._known[level_bytes] = self._proposal(self._basis.choose(self.search, level_bytes))
        return self._known[level_bytes]

    def _offloading(self, proposal: Proposal, level_bytes: int) -> Proposal:
        """Offload what lies between a proposal and a level."""
        if proposal.peak_bytes <= level_bytes:
            return proposal
        chosen = proposal.choice.chosen
        offload = choose_offload(self.model, chosen, self.times, self._link, level_bytes)
        if offload is None:
            return proposal
        return replace(proposal, offload=offload, step_s=proposal.step_s + offload.stall_s)

    @cached_property
    def search(self) -> RegionSearch:
        """Regions to choose from."""
        finder = RegionFinder(self.graph, self.model.access, self.times.operation_s)
        return RegionSearch(self.model, list(finder.all()))

    @property
    def has_batch_norm(self) -> bool:
        """Whether parts of a batch would be normalised each for itself."""
        return any("batch_norm" in name for name in self.graph.operations.name)

    def _proposal(self, choice: Choice) -> Proposal:
        step_s = self.times.longer_s(choice.repeated_s, choice.n_repeated) + self._travel_s
        return Proposal(self.setting, choice, step_s)

    def _waiting_s(self, state_bytes: int, speed: GpuSpeed) -> float:
        """Time of the states' way beyond the time the optimizer computes."""
        in_optimizer = self.graph.operations.phase == _OPTIMIZER
        computing_s = float(np.sum(self.times.operation_s[in_optimizer]))
        return max(state_bytes / speed.link_bytes_per_s - computing_s, 0.0)
