"""Tries offloading on a given step: whether gradients are the same, and what it costs."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from torch import nn

from gpu_optimizer.gradient_parity import Parity, compare_steps, restored
from gpu_optimizer.offload.learned_steps import LearnedStep
from gpu_optimizer.offload.links import Link
from gpu_optimizer.offload.schedule import OffloadSchedule

_N_LEARNING_STEPS: Final = 4
_MAX_ROUNDS: Final = 6
_LESS_RATIO: Final = 0.7
_LEAST_LINK_RATIO: Final = 0.02
# Part of the time that may be lost given to waiting; the rest is what copies cost computing.
STALL_PART_RATIO: Final = 0.6
_N_TIMED_STEPS: Final = 2
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What offloading does to a step."""

    enabled: bool
    """Whether it is worth it and left enabled."""
    reason: str
    """Why not more, or why not at all."""
    base_peak_bytes: int
    """Most memory allocated in a plain step; of models on the host what is saved."""
    peak_bytes: int
    """With offloading."""
    base_s: float
    """Median time of the plain step."""
    slowdown_ratio: float
    """Median of the pairs; 0.05: takes 5% longer."""
    offloaded_bytes: int
    n_storages: int
    bound_bytes: int
    """The most that this link takes out before the forward pass is over."""
    parity: Parity | None
    """Gradients and buffers against the plain step's; None: it did not come to that."""
    rounds: tuple[tuple[int, float], ...] = ()
    """What was tried: bytes offloaded and slowdown of each schedule."""


@runtime_checkable
class Swapper(Protocol):
    """What a trial needs of a swapper."""

    model: nn.Module
    link: Link
    paused: bool
    last_offloaded_bytes: int

    @property
    def max_slowdown_ratio(self) -> float:
        """Return the largest slowdown allowed."""

    @property
    def schedule(self) -> OffloadSchedule | None:
        """Return what is offloaded."""

    @property
    def learned(self) -> LearnedStep | None:
        """Return the step without offloading."""

    def allow(self, stall_ratio: float, link_ratio: float = 1.0) -> OffloadSchedule | None:
        """Choose again within another bound."""


@dataclass(frozen=True, slots=True)
class _Round:
    """One schedule, tried."""

    stall_ratio: float
    link_ratio: float
    schedule: OffloadSchedule
    slowdown_ratio: float


class Trial:
    """Runs a step plainly and with offloading.

    Parameters
    ----------
    swapper
        Applied, and knows nothing yet.
    backward
        Forward and backward pass of one batch.
    n_pairs
        How many pairs of steps are timed.
    """

    def __init__(self, swapper: Swapper, backward: Callable[[], object], n_pairs: int) -> None:
        self._swapper = swapper
        self._backward = backward
        self._n_pairs = n_pairs
        self._parameters = [each for each in swapper.model.parameters() if each.requires_grad]
        self._base_s = self._base_peak_bytes = 0.0

    def run(self) -> SwapReport:
        """Find the schedule with the lowest peak within the slowdown, and test it."""
        swapper = self._swapper
        with restored(swapper.model) as restart:
            self._restart = restart
            for _ in range(_N_LEARNING_STEPS):
                self._step()
            if swapper.learned is None or swapper.schedule is None:
                return self._nothing("The steps differ too much from each other to be learned.")
            if not swapper.schedule.trips:
                return self._nothing(self._why_nothing(swapper.learned, swapper.schedule))
            return self._report(self._rounds(swapper.schedule))

    def _parity(self) -> Parity:
        def change() -> None:
            self._swapper.paused = False

        self._swapper.paused = True
        try:
            return compare_steps(self._swapper.model, self._backward, change)
        finally:
            change()

    def _rounds(self, schedule: OffloadSchedule) -> list[_Round]:
        """Go further while there is time left, back while there is too little."""
        limit = self._swapper.max_slowdown_ratio
        stall_ratio, link_ratio = limit * STALL_PART_RATIO, 1.0
        rounds: list[_Round] = []
        while len(rounds) < _MAX_ROUNDS:
            slowdown = self._slowdown()
            rounds.append(_Round(stall_ratio, link_ratio, schedule, slowdown))
            settled = any(each.slowdown_ratio <= limit for each in rounds)
            if slowdown > limit and not settled:
                found = schedule
                while found.trips == schedule.trips and link_ratio > _LEAST_LINK_RATIO:
                    # First without waiting, then without trusting the link that far.
                    link_ratio *= 1.0 if stall_ratio else _LESS_RATIO
                    stall_ratio = 0.0
                    found = self._swapper.allow(stall_ratio, link_ratio) or found
            elif slowdown < limit * 0.8 and rounds[0].slowdown_ratio <= limit:
                stall_ratio += (limit - slowdown) * 0.7
                found = self._swapper.allow(stall_ratio, link_ratio) or schedule
            else:
                break
            if not found.trips or found.trips == schedule.trips:
                break
            schedule = found
        return rounds

    def _report(self, rounds: list[_Round]) -> SwapReport:
        swapper, limit = self._swapper, self._swapper.max_slowdown_ratio
        good = [each for each in rounds if each.slowdown_ratio <= limit]
        tried = tuple((each.schedule.offloaded_bytes, each.slowdown_ratio) for each in rounds)
        least = min(rounds, key=lambda each: each.slowdown_ratio)
        best = min(good, key=lambda each: each.schedule.peak_bytes, default=least)
        swapper.allow(best.stall_ratio, best.link_ratio)
        parity = self._parity()
        if not parity.agrees:
            return self._nothing(_why_not_equal(parity), parity)
        peak_bytes = self._peak_bytes() or best.schedule.peak_bytes
        reason = _why_not_more(swapper.learned, best.schedule)
        if not good:
            reason = (
                f"Offloading {least.schedule.offloaded_bytes / _GIB:.2f} GiB costs "
                f"{least.slowdown_ratio:.1%} of the time, more than allowed."
            )
        return SwapReport(
            enabled=bool(good),
            reason=reason,
            base_peak_bytes=int(self._base_peak_bytes) or best.schedule.base_peak_bytes,
            peak_bytes=peak_bytes,
            base_s=self._base_s,
            slowdown_ratio=best.slowdown_ratio,
            offloaded_bytes=swapper.last_offloaded_bytes,
            n_storages=len(best.schedule.trips),
            bound_bytes=best.schedule.bound_bytes,
            parity=parity,
            rounds=tried,
        )

    def _nothing(self, reason: str, parity: Parity | None = None) -> SwapReport:
        schedule = self._swapper.schedule
        peak = int(self._base_peak_bytes) or (schedule.base_peak_bytes if schedule else 0)
        bound = schedule.bound_bytes if schedule else 0
        return SwapReport(
            enabled=False,
            reason=reason,
            base_peak_bytes=peak,
            peak_bytes=peak,
            base_s=self._base_s,
            slowdown_ratio=0.0,
            offloaded_bytes=0,
            n_storages=0,
            bound_bytes=bound,
            parity=parity,
        )

    def _why_nothing(self, learned: LearnedStep, schedule: OffloadSchedule) -> str:
        if not learned.numbers:
            return "The model saves nothing large for its backward pass."
        return (
            f"Nothing hides: the link takes {schedule.bound_bytes / _GIB:.2f} GiB out during the "
            f"forward pass, which does not lower the peak."
        )

    def _step(self) -> None:
        self._restart()
        self._backward()

    def _slowdown(self) -> float:
        for _ in range(2):
            self._timed_s(paused=False)
        pairs = []
        for number in range(self._n_pairs):
            if number % 2:
                with_s, plain_s = self._timed_s(paused=False), self._timed_s(paused=True)
            else:
                plain_s, with_s = self._timed_s(paused=True), self._timed_s(paused=False)
            pairs.append((plain_s, with_s))
        self._base_s = statistics.median(plain_s for plain_s, _ in pairs)
        self._swapper.paused = True
        self._base_peak_bytes = float(self._peak_bytes() or 0)
        self._swapper.paused = False
        return statistics.median(with_s / plain_s - 1.0 for plain_s, with_s in pairs)

    def _timed_s(self, *, paused: bool) -> float:
        self._swapper.paused = paused
        self._restart()
        _wait(self._parameters)
        began_s = time.perf_counter()
        for _ in range(_N_TIMED_STEPS):
            for parameter in self._parameters:
                parameter.grad = None
            self._backward()
        _wait(self._parameters)
        self._swapper.paused = False
        return (time.perf_counter() - began_s) / _N_TIMED_STEPS

    def _peak_bytes(self) -> int | None:
        self._swapper.link.memory_peak_bytes()
        self._step()
        return self._swapper.link.memory_peak_bytes()


def _why_not_more(learned: LearnedStep | None, schedule: OffloadSchedule) -> str:
    if learned is None:
        return ""
    timeline = learned.timeline
    forward_s = timeline.time_s[timeline.forward_end]
    saved_bytes = sum(each.size_bytes for each in timeline.storages)
    return (
        f"{schedule.offloaded_bytes / _GIB:.2f} of {saved_bytes / _GIB:.2f} GiB go: only what has "
        f"left by the end of the forward pass ({forward_s * 1e3:.1f} ms) lowers the peak, and the "
        f"link takes {schedule.bound_bytes / _GIB:.2f} GiB out by then."
    )


def _why_not_equal(parity: Parity) -> str:
    if parity.gradient_difference <= parity.allowed_difference:
        return "Buffers differ from the plain step's."
    return (
        f"Gradients differ from the plain step's by {parity.gradient_difference:.1e} of the "
        f"largest; plain steps differ from each other by {parity.noise_difference:.1e}."
    )


def _wait(parameters: list[nn.Parameter]) -> None:
    if parameters and parameters[0].is_cuda:
        torch.cuda.synchronize(parameters[0].device)
