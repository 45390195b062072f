"""Which regions keep a step under a peak at the least loss of time.

What counts is how much of the curve of allocated memory is above the target, at every moment of the
step, not how many bytes a region saves: a region whose memory is free again before the peak comes
gives nothing. Greedy by what is gained per second, then the choice is improved locally.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64

from gpu_optimizer.planning.peak_model import PeakModel
from gpu_optimizer.planning.regions import Candidate

_LEAST_S: Final = 1e-7
_MIN_GAIN_RATIO: Final = 1e-4
_MAX_PASSES: Final = 3
_MAX_EXCHANGES: Final = 100
_N_TRIED: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Some regions, none within another."""

    chosen: tuple[Candidate, ...]
    peak_bytes: int
    repeated_s: float
    n_repeated: int


class RegionSearch:
    """Chooses regions of one recorded step.

    Parameters
    ----------
    model
        Says what comes of a choice.
    candidates
        Regions to choose from.
    """

    def __init__(self, model: PeakModel, candidates: Sequence[Candidate]) -> None:
        self.model = model
        self.candidates = _worthwhile(model, candidates)
        self._overlaps = _overlaps(self.candidates)
        self._containers = _containers(self.candidates)
        self.freed_bytes = _freed_bytes(model, self.candidates)
        floor_bytes = int(model.curve(()).min(initial=0))
        self._least_bytes = [floor_bytes + each.most_bytes for each in self.candidates]

    def choice(self, numbers: frozenset[int]) -> Choice:
        """Describe a choice of candidates by number."""
        chosen = [self.candidates[number] for number in sorted(numbers)]
        return Choice(
            chosen=tuple(chosen),
            peak_bytes=self.model.peak_bytes(chosen),
            repeated_s=sum((each.recompute_s for each in chosen), 0.0),
            n_repeated=sum(each.n_repeated for each in chosen),
        )

    def conflicts(self) -> Bool[np.ndarray, "spans candidates"]:
        """Return sets of candidates of which at most one can be chosen."""
        shared = [sorted(each) for each in self._overlaps]
        rows = np.zeros((0, len(self.candidates)), np.bool_)
        found = []
        for number, others in enumerate(shared):
            for other in others:
                if other > number:
                    row = np.zeros(len(self.candidates), np.bool_)
                    row[[number, other]] = True
                    found.append(row)
        return np.stack(found) if found else rows

    def greedy(self, target_bytes: int) -> Choice:
        """Choose for a peak: greedy, then without what turned out not to be needed.

        Once among all regions and once without the containers of others, in which it is easily
        caught: to leave one, several parts have to be exchanged for it at once.
        """
        everything = frozenset(range(len(self.candidates)))
        found = [self._greedy(target_bytes, everything)]
        if self._containers:
            found.append(self._greedy(target_bytes, everything - self._containers))
        return min(found, key=lambda each: (max(each.peak_bytes, target_bytes), each.repeated_s))

    def _greedy(self, target_bytes: int, allowed: frozenset[int]) -> Choice:
        numbers = frozenset[int]()
        for _ in range(_MAX_PASSES):
            before = numbers
            numbers = self._add(numbers, target_bytes, allowed)
            if self._peak(numbers) <= target_bytes or numbers == before:
                break
        numbers = self._lower(numbers, target_bytes, allowed)
        return self.choice(self._lighten(numbers, target_bytes))

    def _add(
        self, numbers: frozenset[int], target_bytes: int, allowed: frozenset[int]
    ) -> frozenset[int]:
        """Add what takes most off the curve above the target per second, until nothing is above."""
        excess = self._excess(numbers, target_bytes)
        least = excess * _MIN_GAIN_RATIO
        # Gains fall as more is chosen: only the best of the old estimates is worked out anew.
        usable = [each for each in allowed if self._least_bytes[each] <= target_bytes]
        queue = [(-np.inf, number) for number in sorted(usable) if number not in numbers]
        fresh: set[int] = set()
        while excess > 0 and queue:
            _, number = heapq.heappop(queue)
            tried = (numbers - self._overlaps[number]) | {number}
            left = self._excess(tried, target_bytes)
            if number not in fresh:
                fresh.add(number)
                if excess - left > least:
                    heapq.heappush(queue, (-self._rate(numbers, tried, excess - left), number))
                continue
            if excess - left <= least:
                continue
            numbers, excess = tried, left
            fresh.clear()
        return numbers

    def _lower(
        self, numbers: frozenset[int], target_bytes: int, allowed: frozenset[int]
    ) -> frozenset[int]:
        """Exchange regions one by one, as long as that lowers the peak and it is too high."""
        peak = self._peak(numbers)
        for _ in range(_MAX_EXCHANGES):
            if peak <= target_bytes:
                break
            moves = [
                (numbers - self._overlaps[number]) | {number}
                for number in sorted(allowed - numbers)
            ]
            moves += [numbers - {number} for number in sorted(numbers)]
            # What regions free adds up but for what they share: good enough to choose a few.
            curve = self._curve(numbers).astype(np.float32)
            guessed = [
                (self._guess(curve, numbers, tried), place) for place, tried in enumerate(moves)
            ]
            tried = [moves[place] for _, place in heapq.nsmallest(_N_TRIED, guessed)]
            peaks = [self._peak(each) for each in tried]
            best = int(np.argmin(peaks)) if peaks else -1
            if best < 0 or peaks[best] >= peak * (1 - _MIN_GAIN_RATIO):
                break
            numbers, peak = tried[best], peaks[best]
        return numbers

    def _guess(self, curve: np.ndarray, numbers: frozenset[int], tried: frozenset[int]) -> float:
        """Estimate the peak after an exchange."""
        changed = curve
        for number in tried - numbers:
            changed = changed - self.freed_bytes[number]
        for number in numbers - tried:
            changed = changed + self.freed_bytes[number]
        return float(changed.max())

    def _rate(self, numbers: frozenset[int], tried: frozenset[int], gain: float) -> float:
        added_s = sum(self.candidates[each].recompute_s for each in tried - numbers)
        added_s -= sum(self.candidates[each].recompute_s for each in numbers - tried)
        return gain / max(added_s, _LEAST_S)

    def _lighten(self, numbers: frozenset[int], target_bytes: int) -> frozenset[int]:
        """Leave out, or replace by a faster variant, whatever the peak does not need."""
        limit = max(target_bytes, self._peak(numbers))
        order = sorted(numbers, key=lambda each: -self.candidates[each].recompute_s)
        for number in order:
            rest = numbers - {number}
            faster = sorted(
                (each for each in self._alternatives(number) if not self._overlaps[each] & rest),
                key=lambda each: self.candidates[each].recompute_s,
            )
            for tried in (rest, *(rest | {each} for each in faster)):
                if self._peak(tried) <= limit:
                    numbers = tried
                    break
        return numbers

    def _alternatives(self, number: int) -> list[int]:
        time_s = self.candidates[number].recompute_s
        return [
            each
            for each in self._overlaps[number]
            if each != number and self.candidates[each].recompute_s < time_s
        ]

    def _peak(self, numbers: frozenset[int]) -> int:
        return int(self._curve(numbers).max(initial=0))

    def _curve(self, numbers: frozenset[int]) -> Int64[np.ndarray, "moments"]:
        return self.model.curve([self.candidates[each] for each in sorted(numbers)])

    def _excess(self, numbers: frozenset[int], target_bytes: int) -> float:
        above = np.maximum(self._curve(numbers) - target_bytes, 0) / max(self.model.base_bytes, 1)
        # Squares, so that a narrow peak counts too.
        return float(np.square(above).sum())


def _worthwhile(model: PeakModel, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out variants of a module that free no more than a faster one of the same module."""
    base = model.curve(())
    freed: dict[int, float] = {}
    for number, each in enumerate(candidates):
        freed[number] = float(np.maximum(base - model.curve([each]), 0).sum())
    found = []
    modules: dict[str, list[int]] = {}
    for number, each in enumerate(candidates):
        modules.setdefault(each.region.module, []).append(number)
    for numbers in modules.values():
        best = 0.0
        for number in sorted(
            numbers, key=lambda each: (candidates[each].recompute_s, -freed[each])
        ):
            if freed[number] > best * (1 + _MIN_GAIN_RATIO):
                best = freed[number]
                found.append(candidates[number])
    return found


def _freed_bytes(
    model: PeakModel, candidates: Sequence[Candidate]
) -> Float32[np.ndarray, "candidates moments"]:
    """Return what each alone takes off the curve; negative where it needs more."""
    base = model.curve(())
    freed = np.zeros((len(candidates), len(base)), np.float32)
    for number, each in enumerate(candidates):
        freed[number] = base - model.curve([each])
    return freed


def _containers(candidates: Sequence[Candidate]) -> frozenset[int]:
    """Regions of which several numbered parts, as layers are, are regions themselves."""
    n_parts: dict[str, set[str]] = {}
    for each in candidates:
        parent, _, part = each.region.module.rpartition(".")
        if part[-1:].isdigit():
            n_parts.setdefault(parent, set()).add(part)
    several = {parent for parent, parts in n_parts.items() if len(parts) > 1}
    return frozenset(
        number
        for number, each in enumerate(candidates)
        if any(f"{parent}.".startswith(f"{each.region.module}.") for parent in several if parent)
    )


def _overlaps(candidates: Sequence[Candidate]) -> list[frozenset[int]]:
    """For each candidate, those of which an operation is also its own, itself included."""
    spans = [
        (first, last, number)
        for number, each in enumerate(candidates)
        for first, last in each.spans
    ]
    spans.sort()
    shared: list[set[int]] = [{number} for number in range(len(candidates))]
    open_spans: list[tuple[int, int]] = []
    for first, last, number in spans:
        open_spans = [(end, other) for end, other in open_spans if end > first]
        for _, other in open_spans:
            shared[other].add(number)
            shared[number].add(other)
        open_spans.append((last, number))
    return [frozenset(each) for each in shared]
