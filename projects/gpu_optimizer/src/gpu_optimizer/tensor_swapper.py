"""Saved tensors wait in the host's memory for the backward pass, as many as costs no time.

`TensorSwapper.apply` needs nothing but the model: it learns from the first training steps when each
tensor is saved and used, chooses what hides under computing, and from then on copies beside it.
`TensorSwapper.prepare` does the same with a step it is given, compares gradients and times with
those of the plain step, and enables offloading only if both are as they should be.

Values are copied bit by bit, so gradients are those of the plain step.

How much it can gain: the peak is at the end of the forward pass, so it falls by what the link moves
out until then (55 GB/s for the 37 ms of a ResNet50 forward pass: 2 of 21 GB) and while computing
may wait (5% of the step: another 0.3 GB). Copies that go on in the backward pass free memory after
the peak, and the way in is idle when it would count. Checkpointing does the rest: see `planner`.

The indices of a pooling are held in 16 bits instead of 64 where that is enough for them.

What is inside of a checkpoint region (`checkpoint_manager`) belongs to that region and stays, the
few values that it keeps among it; everything around it may go.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gpu_optimizer.checkpointing.regions import RegionForward
from gpu_optimizer.offload.learned_steps import LearnedStep, StepLearner
from gpu_optimizer.offload.links import Link, link_of
from gpu_optimizer.offload.saved_tensors import Policy, StepSaves
from gpu_optimizer.offload.schedule import OffloadSchedule, choose, schedule_all
from gpu_optimizer.offload.trials import STALL_PART_RATIO, SwapReport, Trial
from gpu_optimizer.plans import InvalidPlanError, Offload

# Of the device's memory, above a schedule's peak.
_UNEXPECTED_RATIO: Final = 0.02
# While the device is filled once.
_N_LOOKS: Final = 32
# Copies are planned for a link slower than measured: nobody else may use it meanwhile.
_LINK_PART_RATIO: Final = 0.95

# Where the gradient goes is saved as a position in the last axes of the input.
_POOLED_AXES: Final[dict[type[nn.Module], int]] = {nn.MaxPool2d: 2, nn.MaxPool3d: 3}


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """What a swapper may do."""

    min_bytes: int = 1 << 20
    """Smaller storages stay."""
    max_slowdown_ratio: float = 0.05
    """Of a step; ignored where a plan says what is offloaded."""
    target_bytes: int | None = None
    """Allocated peak that is low enough; None: as low as it gets within the slowdown."""
    trigger_ratio: float = 0.8
    """Part of the device's memory. As long as less is needed nothing is offloaded, unless a plan or
    a target asks for it; once more is allocated, everything is, whatever was planned."""
    max_host_bytes: int | None = None
    """Page-locked memory that is taken at most; None: half of what is available."""
    window_bytes: int = 512 << 20
    """Copies under way at once while nothing has been learned yet."""


@dataclass(frozen=True, slots=True)
class _Allowance:
    """How far a schedule goes."""

    stall_ratio: float
    """Part of a step that may be spent waiting for copies."""
    link_ratio: float = 1.0
    """Part of the link's speed that is counted on."""


@dataclass(slots=True)
class _Hooks:
    handles: list[RemovableHandle] = field(default_factory=list)
    open_steps: list[tuple[StepSaves, Any] | None] = field(default_factory=list)


class TensorSwapper:
    """Offloads what a model saves for its backward pass.

    Parameters
    ----------
    model
        On the device it is trained on.
    settings
        Bounds.
    link
        To the host; None: that of the model's device, measured now.
    """

    def __init__(
        self, model: nn.Module, settings: SwapSettings | None = None, link: Link | None = None
    ) -> None:
        self.model = model
        self.settings = settings or SwapSettings()
        self.link = link or link_of(next(model.parameters()), self.settings.max_host_bytes)
        self.paused = False
        """Leave the next forward passes alone."""
        self.last_offloaded_bytes = 0
        """In the last forward pass."""
        self._offload: Offload | None = None
        self._wanted = False
        """Whether to offload even if memory is not short."""
        self._hooks = _Hooks()
        self._lasting: list[Tensor] = []
        """Parameters and buffers; looking for them in the modules takes a millisecond."""
        self._learner = StepLearner(self.link)
        self._kept_by_others: frozenset[int] = frozenset()
        """Numbers of storages that offloading does not free."""
        self._learned: LearnedStep | None = None
        self._schedule: OffloadSchedule | None = None
        self._policy: Policy | None = None
        self._allowance = self._first_allowance()

    @property
    def max_slowdown_ratio(self) -> float:
        """Largest slowdown allowed."""
        return self.settings.max_slowdown_ratio

    @property
    def schedule(self) -> OffloadSchedule | None:
        """What is offloaded; None: not known yet."""
        return self._schedule

    @property
    def learned(self) -> LearnedStep | None:
        """The step without offloading; None: not known yet."""
        return self._learned

    def apply(self, offload: Offload | None = None) -> None:
        """Offload from the next forward pass on, until `undo`.

        The first three steps are slower: page-locked memory is taken, and it is recorded when
        tensors are saved and used. They reset PyTorch's statistics of peak memory.

        Parameters
        ----------
        offload
            The modules whose saved tensors go, from the first step on; None: what hides, and only
            if memory is short (`SwapSettings.trigger_ratio`) or there is a target.

        Raises
        ------
        InvalidPlanError
            The model has no such module, or it is inside of a checkpoint region; if the region is
            applied later, the next forward pass raises it.
        """
        self.undo()
        if offload is not None:
            self._check(offload)
        self._offload = offload
        self._wanted = offload is not None or self.settings.target_bytes is not None
        if offload is not None:
            self._watch_modules(offload)
        self._watch_pooling()
        self._lasting = [*self.model.parameters(), *self.model.buffers()]
        self._hooks.handles += [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]

    def undo(self) -> None:
        """Leave the model as it was; steps under way are not disturbed."""
        for handle in self._hooks.handles:
            handle.remove()
        self._hooks = _Hooks()
        self._learner = StepLearner(self.link)
        self._kept_by_others = frozenset()
        self._learned = self._schedule = self._policy = None
        self._allowance = self._first_allowance()

    def prepare(self, backward: Callable[[], object], n_pairs: int = 5) -> SwapReport:
        """Choose, test and time offloading on a given step; leave it enabled if it is worth it.

        Gradients, buffers and random state are afterwards as they were before; peak statistics are
        reset.

        Parameters
        ----------
        backward
            Forward and backward pass of one typical batch, without the optimizer.
        n_pairs
            How many plain and offloading steps are compared.

        Returns
        -------
        SwapReport
            What was found, and in words why not more.
        """
        self.apply(self._offload)
        self._wanted = True
        report = Trial(self, backward, n_pairs).run()
        if not report.enabled:
            self.undo()
        return report

    def allow(self, stall_ratio: float, link_ratio: float = 1.0) -> OffloadSchedule | None:
        """Choose again with another bound.

        Parameters
        ----------
        stall_ratio
            Part of a step that may be spent waiting for copies.
        link_ratio
            Part of the link's speed that is counted on.
        """
        self._allowance = _Allowance(stall_ratio, link_ratio)
        self._choose()
        return self._schedule

    def _check(self, offload: Offload) -> None:
        modules = dict(self.model.named_modules())
        regions = {
            name for name, each in modules.items() if isinstance(each.forward, RegionForward)
        }
        for name in offload.modules:
            if name not in modules:
                raise InvalidPlanError("offload", f"the model has no module {name!r}")
            parts = name.split(".") if name else []
            around = {".".join(parts[:depth]) for depth in range(len(parts) + 1)}
            if around & regions:
                reason = f"{name!r} is inside of a checkpoint region, which keeps what it saves."
                raise InvalidPlanError("offload", reason)

    def _watch_modules(self, offload: Offload) -> None:
        modules = dict(self.model.named_modules())

        def enter(*_: object) -> None:
            if self._hooks.open_steps and (step := self._hooks.open_steps[-1]) is not None:
                step[0].in_region += 1

        def leave(*_: object) -> None:
            if self._hooks.open_steps and (step := self._hooks.open_steps[-1]) is not None:
                step[0].in_region -= 1

        for name in offload.modules:
            if name:
                self._hooks.handles += [
                    modules[name].register_forward_pre_hook(enter),
                    modules[name].register_forward_hook(leave, always_call=True),
                ]

    def _watch_pooling(self) -> None:
        """Say how large the indices of a pooling can be: 64 bits are mostly too many for them."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            step = self._hooks.open_steps[-1] if self._hooks.open_steps else None
            chosen = step is not None and (self._offload is None or step[0].in_region > 0)
            if step is not None and chosen and self._wanted and len(args) == 1:
                n_axes = _POOLED_AXES[type(module)]
                step[0].index_bound = math.prod(args[0].shape[-n_axes:])

        def leave(*_: object) -> None:
            if self._hooks.open_steps and (step := self._hooks.open_steps[-1]) is not None:
                step[0].index_bound = 0

        for module in self.model.modules():
            if type(module) in _POOLED_AXES and not module.return_indices:
                self._hooks.handles += [
                    module.register_forward_pre_hook(enter),
                    module.register_forward_hook(leave, always_call=True),
                ]

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward pass."""
        if self.paused or not torch.is_grad_enabled():
            self._hooks.open_steps.append(None)
            return
        record = self._learner.begin_step()
        if record is not None and self._offload is not None:
            self._check(self._offload)
        if self._learner.ready and self._learned is None:
            self._choose()
        step = StepSaves(
            self.link,
            self._policy or self._unscheduled(),
            self._staying((args, kwargs)),
            self._offload.min_bytes if self._offload is not None else self.settings.min_bytes,
            record,
        )
        step.in_region += self._offload is not None and "" in self._offload.modules
        hooks = torch.autograd.graph.saved_tensors_hooks(step.pack, step.unpack)
        hooks.__enter__()
        self._hooks.open_steps.append((step, hooks))

    def _end(self, *_: object) -> None:
        """After the model's forward pass."""
        opened = self._hooks.open_steps.pop() if self._hooks.open_steps else None
        if opened is None:
            return
        step, hooks = opened
        hooks.__exit__(None, None, None)
        step.end_forward()
        self.last_offloaded_bytes = step.offloaded_bytes
        if not step.not_freed <= self._kept_by_others:
            self._kept_by_others |= step.not_freed
            self._choose()

    def _staying(self, inputs: object) -> set[int]:
        tensors = chain(self._lasting, tree_leaves(inputs))
        return {
            each.untyped_storage()._cdata  # noqa: SLF001 -- the storage's identity
            for each in tensors
            if isinstance(each, Tensor) and each.layout is torch.strided
        }

    def _unscheduled(self) -> Policy:
        """Offload the chosen modules as well as it goes while their step is not known."""
        chosen = self._learner.in_regions - self._kept_by_others

        def offloads(number: int, in_region: bool) -> bool:
            return in_region or number in chosen

        # Where copies take no time there is nothing to wait for.
        window_bytes = self.settings.window_bytes if self.link.speed is not None else 0
        return Policy(
            offloads, None, window_bytes, self.settings.trigger_ratio, self._look_each_bytes()
        )

    def _choose(self) -> None:
        """Make the schedule."""
        learned = self._learner.step(self._may_go)
        if learned is None or self.link.speed is None:
            return
        timeline, speed = (
            learned.timeline,
            self.link.speed.slower(self._allowance.link_ratio * _LINK_PART_RATIO),
        )
        max_stall_s = self._allowance.stall_ratio * timeline.step_s
        if self._offload is not None:
            schedule = schedule_all(timeline, speed, range(len(learned.numbers)), max_stall_s)
        else:
            schedule = choose(timeline, speed, max_stall_s, self._target_bytes())
        chosen = {learned.numbers[trip.storage] for trip in schedule.trips}
        self._learned, self._schedule = learned, schedule
        self._policy = Policy(
            offloads=lambda number, _: number in chosen,
            actions=learned.actions(schedule),
            window_bytes=self.settings.window_bytes,
            valve_ratio=self._valve_ratio(schedule),
            look_each_bytes=self._look_each_bytes(),
        )

    def _valve_ratio(self, schedule: OffloadSchedule) -> float:
        """Return what is more than the schedule lets expect: a tight fit is no emergency."""
        expected = schedule.peak_bytes / (self.link.total_bytes() or schedule.peak_bytes or 1)
        return max(self.settings.trigger_ratio, expected + _UNEXPECTED_RATIO)

    def _look_each_bytes(self) -> int:
        return max((self.link.total_bytes() or 0) // _N_LOOKS, 1 << 20)

    def _may_go(self, number: int) -> bool:
        chosen = self._offload is None or number in self._learner.in_regions
        return chosen and number not in self._kept_by_others

    def _first_allowance(self) -> _Allowance:
        return _Allowance(self.settings.max_slowdown_ratio * STALL_PART_RATIO)

    def _target_bytes(self) -> int | None:
        """Return the peak that is low enough."""
        if self._wanted:
            return self.settings.target_bytes
        total_bytes = self.link.total_bytes()
        return None if total_bytes is None else int(total_bytes * self.settings.trigger_ratio)
