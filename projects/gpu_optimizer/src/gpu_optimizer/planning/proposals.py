"""For each level of memory the fastest way to stay below it, over all that may be changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.planning.setting_models import Basis, Proposal, SettingModel
from gpu_optimizer.planning.settings import Setting, plain
from gpu_optimizer.plans import STEP_TYPES, Exactness, PlanStep, least_exact, step_exactness
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import CATEGORIES, Category

_N_CHUNKS: Final = 8
_LONG_RATIO: Final = 0.01
"""Slowdown below which nothing else is looked at: recording another setting takes seconds."""
_LONGEST_RATIO: Final = 2.5
_LARGE_STATE_RATIO: Final = 0.05

Recorder = Callable[[Setting], StepGraph]


@dataclass(frozen=True, slots=True)
class Recorders:
    """How steps are recorded: a workload with some steps of a plan applied to its model."""

    step: Callable[[Workload, tuple[PlanStep, ...]], Recording]
    graph: Callable[[Workload, tuple[PlanStep, ...]], StepGraph]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be changed."""

    techniques: frozenset[str] = frozenset(STEP_TYPES)
    """Names as in `plans.STEP_TYPES`."""
    exactness: Exactness = Exactness.NUMERIC
    """How far results may move, at most."""

    def permits(self, technique: str, exactness: Exactness) -> bool:
        """Whether a technique may be used."""
        within = least_exact(exactness, self.exactness) is self.exactness
        return technique in self.techniques and within


class Proposals:
    """Finds proposals for levels of memory; records settings as they are needed.

    Parameters
    ----------
    workload
        As it is run now.
    record
        Records a setting's step.
    basis
        Of estimates.
    allowed
        What may be changed.
    """

    def __init__(
        self, workload: Workload, record: Recorder, basis: Basis, allowed: Allowed
    ) -> None:
        self.workload = workload
        self._record = record
        self._basis = basis
        self._allowed = allowed
        self._models: dict[Setting, SettingModel | None] = {}
        base = SettingModel(plain(workload), record(plain(workload)), basis)
        self._models[base.setting] = base
        self.base = base

    def at(self, level_bytes: int) -> Proposal:
        """Return the fastest way to keep below a level, else the lowest one.

        Precision first, which costs no time; then one change after the other, as long as one makes
        it faster or brings it closer to the level.
        """
        best = min(
            (self._at(setting, level_bytes) for setting in self._precisions()),
            key=lambda each: self._badness(each, level_bytes),
        )
        while not self._is_good(best, level_bytes):
            tried = [self._at(each, level_bytes) for each in self._changes(best.setting)]
            better = min(tried, key=lambda each: self._badness(each, level_bytes), default=best)
            if self._badness(better, level_bytes) >= self._badness(best, level_bytes):
                break
            best = better
        return best

    def model(self, setting: Setting) -> SettingModel | None:
        """Return a setting's model; None if the model cannot be run so."""
        if setting not in self._models:
            try:
                graph = self._record(setting)
            except InvalidModelError:
                self._models[setting] = None
            else:
                travelling = self._state_bytes if setting.state == "offload" else 0
                self._models[setting] = SettingModel(setting, graph, self._basis, travelling)
        return self._models[setting]

    def _at(self, setting: Setting, level_bytes: int) -> Proposal:
        model = self.model(setting)
        if model is None:
            return replace(self.base.plain(), step_s=float("inf"))
        return model.at(level_bytes, self._allowed.techniques)

    def _is_good(self, proposal: Proposal, level_bytes: int) -> bool:
        longest_s = self.base.plain().step_s * (1 + _LONG_RATIO)
        return proposal.peak_bytes <= level_bytes and proposal.step_s <= longest_s

    def _badness(self, proposal: Proposal, level_bytes: int) -> tuple[bool, int, float]:
        """Order proposals: nobody waits much longer, then the level counts, then the time."""
        too_long = proposal.step_s > _LONGEST_RATIO * self.base.plain().step_s
        missing = max(proposal.peak_bytes - level_bytes, 0)
        return (too_long, missing, proposal.step_s)

    def _precisions(self) -> Iterator[Setting]:
        yield self.base.setting
        if (
            self.workload.dtype == "fp32"
            and self.workload.autocast in {None, "fp32"}
            and self._allowed.permits("precision", Exactness.APPROXIMATE)
        ):
            yield replace(self.base.setting, autocast="bf16")

    def _changes(self, setting: Setting) -> Iterator[Setting]:
        """List settings that differ in one more thing."""
        if setting.n_chunks == 1 and self._allowed.permits("chunked_loss", Exactness.NUMERIC):
            yield replace(setting, n_chunks=_N_CHUNKS)
        if setting.state == "plain" and self._has_large_state:
            if self._allowed.permits("optimizer_state", Exactness.APPROXIMATE):
                yield replace(setting, state="8bit")
            if self._allowed.permits("optimizer_state", Exactness.BIT_EQUAL):
                yield replace(setting, state="offload")
        n_parts = setting.n_parts * 2
        # Batch norms would see other batches.
        exactness = Exactness.APPROXIMATE if self.base.has_batch_norm else Exactness.NUMERIC
        if self.workload.batch_size % n_parts == 0 and self._allowed.permits(
            "accumulation", exactness
        ):
            yield replace(setting, n_parts=n_parts)

    @property
    def _state_bytes(self) -> int:
        timeline = self.base.graph.recording.timeline
        state = timeline.category == CATEGORIES.index(Category.OPTIMIZER_STATE)
        return int(timeline.size_bytes[state].sum())

    @property
    def _has_large_state(self) -> bool:
        return self._state_bytes > _LARGE_STATE_RATIO * self.base.model.base_bytes


def exactness_of(proposal: Proposal, base: SettingModel, workload: Workload) -> Exactness:
    """Say how far a proposal moves the results."""
    steps = proposal.setting.steps(workload)
    each = [step_exactness(step) for step in steps]
    if proposal.setting.n_parts > workload.n_micro_batches and base.has_batch_norm:
        each.append(Exactness.APPROXIMATE)
    return least_exact(*each)
