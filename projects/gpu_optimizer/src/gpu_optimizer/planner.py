"""How to keep a run within a memory budget at the least loss of time, worked out without a GPU.

A search on the recorded operations of a step proposes what to change (`planning`); each proposal
is then applied to the model on fake tensors and recorded as a whole, and that recording is what
the plan states. Proposals stand in one order for all budgets of a workload, and a plan is the first
one that keeps within its budget: so a lower budget never gives a higher peak, and doing nothing
always comes first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.machines.speeds import gpu_speed
from gpu_optimizer.memory_predictor import device_constants, predict_from
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.planning.explanations import explain, proposal_steps
from gpu_optimizer.planning.integer_program import optimal_or_greedy
from gpu_optimizer.planning.proposals import Allowed, Proposals, Recorders, exactness_of
from gpu_optimizer.planning.search import RegionSearch
from gpu_optimizer.planning.setting_models import Basis, Proposal
from gpu_optimizer.planning.settings import Setting
from gpu_optimizer.plans import (
    Accumulation,
    Allocator,
    Budgeted,
    Exactness,
    PeakBytes,
    Plan,
    PlanFailure,
    PlanStep,
    Precision,
    StepEffect,
)
from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import CATEGORIES, Category, Mode
from shared_utils.units import format_bytes

LEVEL_RATIO: Final = 0.02
"""Distance of neighbouring proposals, as part of the plain run's peak."""
_MAX_CHECKED: Final = 12
"""Proposals that are recorded for one budget at most; each takes seconds."""
_IN_WORKLOAD: Final = (Precision, Accumulation)
"""Steps that the recorded workload stands for."""
_EXPANDABLE: Final = Allocator("expandable_segments:True")


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan is to keep to."""

    gpu: str = "H200"
    """Name of the card."""
    budget_of: Budgeted = Budgeted.TOTAL
    allowed: Allowed = field(default_factory=Allowed)
    integer_program: bool = False
    """Whether regions are also chosen by SciPy's solver: up to a tenth less time is lost."""
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    """Measured times of modules over estimated ones; see `planning.times.measured_ratios`."""
    max_slowdown_ratio: float | None = None
    """0.1: a step may take 10% longer; None: as long as it takes."""


@dataclass(frozen=True, slots=True)
class Trade:
    """One point between memory and time, as the search sees it."""

    peak_bytes: int
    """Allocated."""
    slowdown_ratio: float
    exactness: Exactness
    steps: tuple[PlanStep, ...]


class Planner:
    """Plans for one workload; what has been worked out for one budget serves the next.

    Parameters
    ----------
    workload
        A training step as it is run now.
    options
        What plans are to keep to.
    recorders
        None: steps are recorded on fake tensors, of registered models.

    Raises
    ------
    UnknownNameError
        If the card, the model or another name is not known.
    InvalidModelError
        If the model cannot be run as asked, or is not trained.
    """

    def __init__(
        self,
        workload: Workload,
        options: PlanOptions | None = None,
        recorders: Recorders | None = None,
    ) -> None:
        if workload.mode is not Mode.TRAIN:
            raise InvalidModelError(workload.family, "plans are made for steps of training.")
        self.workload = replace(workload, checkpointing=False)
        self.options = options or PlanOptions()
        self._constants = device_constants(self.options.gpu)
        if recorders is None:
            from gpu_optimizer.fake_recorders import fake_recorders  # noqa: PLC0415 -- PyTorch

            recorders = fake_recorders(self._constants.target)
        self._recorders = recorders
        basis = Basis(
            speed=gpu_speed(self.options.gpu),
            layer_ratios=self.options.layer_ratios,
            choose=optimal_or_greedy if self.options.integer_program else RegionSearch.greedy,
        )
        self._proposals = Proposals(self.workload, self._graph, basis, self.options.allowed)
        self._by_level: dict[int, Proposal] = {0: self._proposals.base.plain()}
        base_recording = self._proposals.base.graph.recording
        self._recordings: dict[tuple[PlanStep, ...], Recording] = {(): base_recording}

    @property
    def base(self) -> Plan:
        """The run without any change."""
        return next(self._plans(0, 0))

    def plan(self, budget_bytes: int) -> Plan | PlanFailure:
        """Find the fastest way to keep within a budget.

        Parameters
        ----------
        budget_bytes
            Of the peak that `PlanOptions.budget_of` names.
        """
        lowest = replace(self.base, budget_bytes=budget_bytes)
        for plan in self._in_order(budget_bytes):
            if self._is_too_slow(plan.slowdown_ratio):
                reason = (
                    f"a step would take {plan.slowdown_ratio:.0%} longer, and at most "
                    f"{self.options.max_slowdown_ratio:.0%} is allowed"
                )
                return PlanFailure(
                    self.workload, budget_bytes, self.options.budget_of, reason, lowest
                )
            if plan.fits:
                return plan
            lowest = min(lowest, plan, key=self._peak)
        for plan in self._lowest(budget_bytes):
            if plan.fits:
                return plan
            lowest = min(lowest, plan, key=self._peak)
        reason = self._what_remains(lowest)
        return PlanFailure(self.workload, budget_bytes, self.options.budget_of, reason, lowest)

    def trades(self) -> tuple[Trade, ...]:
        """List what memory can be had for how much time, highest peak first.

        By the search's model, none of them recorded; takes up to a minute.
        """
        found: list[Trade] = []
        base_s = self._proposals.base.plain().step_s
        for level in range(len(self._levels)):
            proposal = self._proposal(level)
            trade = Trade(
                peak_bytes=proposal.peak_bytes,
                slowdown_ratio=proposal.step_s / base_s - 1,
                exactness=exactness_of(proposal, self._proposals.base, self.workload),
                steps=proposal_steps(proposal, self._proposals),
            )
            while found and found[-1].slowdown_ratio >= trade.slowdown_ratio:
                found.pop()
            found.append(trade)
            if not self._is_reached(level):
                break
        return tuple(found)

    @property
    def _levels(self) -> range:
        """Allocated peaks for which there are proposals, the plain run's first."""
        base = self._proposals.base.model.base_bytes
        return range(base, 0, -max(round(base * LEVEL_RATIO), 1))

    def _proposal(self, level: int) -> Proposal:
        if level not in self._by_level:
            self._by_level[level] = self._proposals.at(self._levels[level])
        return self._by_level[level]

    def _is_reached(self, level: int) -> bool:
        return self._proposal(level).peak_bytes <= self._levels[level]

    def _in_order(self, budget_bytes: int) -> Iterator[Plan]:
        """Go through what may keep within a budget, in the order common to all budgets."""
        # What the allocator's holes and CUDA take on top of the allocated peak, at least.
        extra_bytes = self._peak(self.base) - self.base.predicted_peak.allocated
        n_checked = 0
        for level, level_bytes in enumerate(self._levels):
            if level and level_bytes + extra_bytes > budget_bytes:
                continue
            if n_checked > _MAX_CHECKED or not self._is_reached(level):
                return
            n_checked += 1
            for plan in self._plans(level, budget_bytes):
                extra_bytes = min(extra_bytes, self._peak(plan) - plan.predicted_peak.allocated)
                yield plan

    def _lowest(self, budget_bytes: int) -> Iterator[Plan]:
        """Plan for levels that cannot be reached: as low as it gets."""
        low, high = 0, len(self._levels)
        while high - low > 1:
            middle = (low + high) // 2
            within = self._is_reached(middle) and not self._takes_too_long(middle)
            low, high = (middle, high) if within else (low, middle)
        for level in (low, high, (high + len(self._levels)) // 2):
            if level < len(self._levels) and not self._takes_too_long(level):
                yield from self._plans(level, budget_bytes)

    def _plans(self, level: int, budget_bytes: int) -> Iterator[Plan]:
        """Plan a level, without and with another setting of the allocator."""
        proposal = self._proposal(level)
        steps = proposal_steps(proposal, self._proposals)
        effects = explain(proposal, self._proposals)
        plain = self._peaks(proposal, steps, None)
        yield self._stated(proposal, budget_bytes, (steps, effects), plain)
        permitted = self.options.allowed.permits("allocator", Exactness.BIT_EQUAL)
        if permitted and self.options.budget_of is not Budgeted.ALLOCATED:
            peaks = self._peaks(proposal, steps, AllocatorConfig.parse(_EXPANDABLE.config))
            text = "Segments grow, so that fewer holes are reserved."
            effect = StepEffect(plain.reserved - peaks.reserved, 0.0, Exactness.BIT_EQUAL, text)
            stated = ((*steps, _EXPANDABLE), (*effects, effect))
            yield self._stated(proposal, budget_bytes, stated, peaks)

    def _stated(
        self,
        proposal: Proposal,
        budget_bytes: int,
        stated: tuple[tuple[PlanStep, ...], tuple[StepEffect, ...]],
        peaks: PeakBytes,
    ) -> Plan:
        base = self._proposals.base
        steps, effects = stated
        return Plan(
            workload=self.workload,
            budget_bytes=budget_bytes,
            budget_of=self.options.budget_of,
            steps=steps,
            base_peak=self._peaks(base.plain(), (), None),
            predicted_peak=peaks,
            base_s=base.plain().step_s,
            slowdown_ratio=self._slowdown_ratio(proposal),
            exactness=exactness_of(proposal, base, self.workload),
            explanation=effects,
        )

    def _peaks(
        self, proposal: Proposal, steps: tuple[PlanStep, ...], config: AllocatorConfig | None
    ) -> PeakBytes:
        """Apply steps, record them and replay what was recorded."""
        if steps not in self._recordings:
            workload = proposal.setting.workload(self.workload)
            applied = tuple(each for each in steps if not isinstance(each, _IN_WORKLOAD))
            self._recordings[steps] = self._recorders.step(workload, applied)
        predicted = predict_from(self._recordings[steps], self._constants, config)
        allocated = predicted.allocated_peak_bytes
        # Copies to the host take no time in a recording; the search counts what is under way.
        offload = proposal.offload
        under_way = max(offload.peak_bytes - allocated, 0) if offload else 0
        return PeakBytes(
            allocated=allocated + under_way,
            reserved=predicted.reserved_peak_bytes + under_way,
            total=predicted.total_bytes + under_way,
        )

    def _graph(self, setting: Setting) -> StepGraph:
        return self._recorders.graph(setting.workload(self.workload), setting.applied_steps())

    def _peak(self, plan: Plan) -> int:
        return plan.predicted_peak.of(self.options.budget_of)

    def _slowdown_ratio(self, proposal: Proposal) -> float:
        return proposal.step_s / self._proposals.base.plain().step_s - 1

    def _is_too_slow(self, slowdown_ratio: float) -> bool:
        limit = self.options.max_slowdown_ratio
        return limit is not None and slowdown_ratio > limit

    def _takes_too_long(self, level: int) -> bool:
        return self._is_too_slow(self._slowdown_ratio(self._proposal(level)))

    def _what_remains(self, lowest: Plan) -> str:
        """Say what takes the memory that is left."""
        recording = self._proposals.base.graph.recording
        timeline = recording.timeline
        sums = {
            category: int(timeline.size_bytes[timeline.category == number].sum())
            for number, category in enumerate(CATEGORIES)
        }
        fixed = (Category.PARAMETER, Category.OPTIMIZER_STATE)
        said = [f"{format_bytes(sums[each])} of {each.value}s" for each in fixed if sums[each]]
        limit = self.options.max_slowdown_ratio
        within = "" if limit is None else f" in a step that takes at most {limit:.0%} longer"
        return (
            f"at least {format_bytes(self._peak(lowest))} is needed with everything that is "
            f"allowed{within}; {' and '.join(said)} stay for the whole run"
        )
