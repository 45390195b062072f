"""Which saved tensors go to the host, and when, so that copying hides under computing.

A training step needs most memory between the forward and the backward pass. A tensor lowers that
peak only if its copy has ended by then, so what one link direction moves *during the forward pass*
bounds what can be gained; the backward pass, twice as long, has time enough to bring it all back.

The points of the program at which something can be begun or waited for are *ticks*: every time a
large tensor is saved or used again, and the end of the forward pass.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Final

# A copy is begun this much earlier than it would have to be: steps do not all take equally long.
_FETCH_MARGIN_RATIO: Final = 0.25
_N_BISECTIONS: Final = 14


@dataclass(frozen=True, slots=True)
class SavedStorage:
    """Memory that the forward pass saves for the backward pass, once for all its views."""

    size_bytes: int
    first_saved: int
    """Tick at which it is complete; it may be copied from here on."""
    last_saved: int
    """Tick from which on only the backward pass needs it."""
    first_used: int
    """Tick of the backward pass at which it must be back."""


@dataclass(frozen=True, slots=True)
class SaveTimeline:
    """One step as it runs with nothing offloaded."""

    time_s: Sequence[float]
    """When the GPU reaches each tick, not decreasing, from the beginning of the forward pass."""
    live_bytes: Sequence[int]
    """Most memory allocated between each tick and the next."""
    forward_end: int
    """The tick at which the forward pass is over."""
    storages: Sequence[SavedStorage]
    """In the order they are saved in."""
    step_s: float
    """The whole step, with the optimizer."""

    @property
    def peak_bytes(self) -> int:
        """Most memory allocated in the step."""
        return max(self.live_bytes, default=0)


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """What the connection between the GPU and the host's memory moves."""

    out_bytes_per_s: float
    in_bytes_per_s: float
    latency_s: float = 20e-6
    """To begin a copy."""

    def out_s(self, size_bytes: int) -> float:
        """Time of a copy to the host."""
        return self.latency_s + size_bytes / self.out_bytes_per_s

    def in_s(self, size_bytes: int) -> float:
        """Time of a copy to the GPU."""
        return self.latency_s + size_bytes / self.in_bytes_per_s

    def slower(self, ratio: float) -> "LinkSpeed":
        """Return a link with a part of the speed."""
        return replace(
            self,
            out_bytes_per_s=self.out_bytes_per_s * ratio,
            in_bytes_per_s=self.in_bytes_per_s * ratio,
        )


@dataclass(frozen=True, slots=True)
class Trip:
    """One storage's way to the host and back."""

    storage: int
    """Number in `SaveTimeline.storages`."""
    release: int
    """Tick at which computing waits for the copy's end, and the memory is free."""
    fetch: int
    """Tick at which memory is taken again and the copy back begins."""


@dataclass(frozen=True, slots=True)
class OffloadSchedule:
    """What is offloaded in each step, and what comes of it."""

    trips: tuple[Trip, ...]
    offloaded_bytes: int
    base_peak_bytes: int
    peak_bytes: int
    """Expected."""
    stall_s: float
    """Expected time that computing waits for copies in a step."""
    bound_bytes: int
    """The most that the link can take out before the forward pass ends."""

    @property
    def gained_bytes(self) -> int:
        """By how much the peak falls."""
        return self.base_peak_bytes - self.peak_bytes


def choose(
    timeline: SaveTimeline,
    link: LinkSpeed,
    max_stall_s: float,
    target_bytes: int | None = None,
) -> OffloadSchedule:
    """Find the schedule with the lowest peak among those that hide.

    Parameters
    ----------
    timeline
        The step, and which of its storages may be offloaded.
    link
        To the host.
    max_stall_s
        How long computing may wait for copies in each step.
    target_bytes
        A peak that is low enough: nothing more is offloaded once it is reached.

    Returns
    -------
    OffloadSchedule
        Without trips where nothing can be gained. Its peak is above the target where the target
        cannot be reached within the stall.
    """
    base = timeline.peak_bytes
    least = base - sum(each.size_bytes for each in timeline.storages)
    best = _nothing(timeline, link, max_stall_s)
    low, high = max(least, target_bytes or 0), base
    if target_bytes is not None and target_bytes >= base:
        return best
    for number in range(_N_BISECTIONS):
        # The target itself, or all that there is, is tried first.
        peak = low if number == 0 else (low + high) // 2
        found = _for_peak(timeline, link, peak, max_stall_s)
        if found is not None and found.stall_s <= max_stall_s:
            best = min(best, found, key=lambda each: each.peak_bytes)
            high = peak
            if number == 0:
                break
        else:
            low = peak
    return best


def schedule_all(
    timeline: SaveTimeline, link: LinkSpeed, numbers: Sequence[int], max_stall_s: float = 0.0
) -> OffloadSchedule:
    """Schedule a given choice, with the lowest peak within the stall, else with the least stall.

    Parameters
    ----------
    timeline, link, max_stall_s
        As for `choose`.
    numbers
        Storages that are offloaded whatever it costs.
    """
    chosen = sorted(numbers)
    size_bytes = sum(timeline.storages[number].size_bytes for number in chosen)
    high, low = timeline.peak_bytes, timeline.peak_bytes - size_bytes
    best = _schedule(timeline, link, chosen, high)
    for _ in range(_N_BISECTIONS):
        peak = (low + high) // 2
        found = _schedule(timeline, link, chosen, peak)
        if found.stall_s <= max(max_stall_s, best.stall_s):
            best = min(best, found, key=lambda each: (each.peak_bytes, each.stall_s))
            high = peak
        else:
            low = peak
    return best


def hidden_bytes(timeline: SaveTimeline, link: LinkSpeed, max_stall_s: float = 0.0) -> int:
    """Return what the link can take out before the forward pass ends, as tensors come to be."""
    now_s = moved = 0.0
    end_s = timeline.time_s[timeline.forward_end] + max_stall_s if timeline.time_s else 0.0
    for each in timeline.storages:
        now_s = max(now_s, timeline.time_s[each.first_saved])
        part_s = min(link.out_s(each.size_bytes), max(end_s - now_s, 0.0))
        moved += part_s / link.out_s(each.size_bytes) * each.size_bytes
        now_s += part_s
    return int(moved)


def _nothing(timeline: SaveTimeline, link: LinkSpeed, max_stall_s: float) -> OffloadSchedule:
    peak, bound = timeline.peak_bytes, hidden_bytes(timeline, link, max_stall_s)
    return OffloadSchedule((), 0, peak, peak, 0.0, bound)


def _for_peak(
    timeline: SaveTimeline, link: LinkSpeed, peak_bytes: int, max_stall_s: float
) -> OffloadSchedule | None:
    """Choose storages until memory stays below a peak; None where there are not enough."""
    chosen: list[int] = []
    while True:
        outward = _Outward(timeline, link, chosen, peak_bytes)
        if outward.excess_at is None:
            return _schedule(timeline, link, chosen, peak_bytes)
        added = _more_storages(timeline, link, chosen, outward, max_stall_s)
        if outward.stall_s > max_stall_s or not added:
            return None
        chosen = sorted([*chosen, *added])


def _more_storages(
    timeline: SaveTimeline,
    link: LinkSpeed,
    chosen: Sequence[int],
    outward: "_Outward",
    max_stall_s: float,
) -> list[int]:
    """Return more storages, to lower memory where it is too much.

    Those that are saved first: their copies can begin at once and they are needed again last. Where
    one alone is enough and its copy ends in time, the smallest such one.
    """
    tick, excess_bytes = outward.excess_at, outward.excess_bytes
    if tick is None:
        return []
    taken, storages = set(chosen), timeline.storages
    candidates = [
        number
        for number, each in enumerate(storages)
        if number not in taken and each.last_saved <= tick < each.first_used
    ]
    deadline_s = timeline.time_s[tick] + max_stall_s
    added: list[int] = []
    link_free_s = outward.link_free_s
    while candidates and excess_bytes > 0:
        enough = [
            (size_bytes, number)
            for number in candidates
            if (size_bytes := storages[number].size_bytes) >= excess_bytes
            and max(timeline.time_s[storages[number].first_saved], link_free_s)
            + link.out_s(size_bytes)
            <= deadline_s
        ]
        number = min(enough)[1] if enough else candidates[0]
        candidates.remove(number)
        added.append(number)
        excess_bytes -= storages[number].size_bytes
        begun_s = max(timeline.time_s[storages[number].first_saved], link_free_s)
        link_free_s = begun_s + link.out_s(storages[number].size_bytes)
    return added


class _Outward:
    """The forward pass with a choice of storages on their way out, kept below a peak.

    Copies run one after the other in the order of saving. Computing waits for the next one to end
    whenever memory would exceed the peak.
    """

    def __init__(
        self, timeline: SaveTimeline, link: LinkSpeed, chosen: Sequence[int], peak_bytes: int
    ) -> None:
        self.releases: dict[int, int] = {}
        """Number of a storage -> tick."""
        self.stall_s = 0.0
        self.excess_at: int | None = None
        """Tick at which most memory is in use above the peak, with nothing left to wait for."""
        self.excess_bytes = 0
        self.link_free_s = 0.0
        self._timeline, self._link, self._chosen = timeline, link, chosen
        self._peak_bytes = peak_bytes
        self._run()

    def _run(self) -> None:
        timeline = self._timeline
        saved: dict[int, list[int]] = defaultdict(list)
        complete: dict[int, list[int]] = defaultdict(list)
        for number in self._chosen:
            saved[timeline.storages[number].first_saved].append(number)
            complete[timeline.storages[number].last_saved].append(number)
        ends_s: dict[int, float] = {}
        waiting: list[tuple[float, int]] = []
        away_bytes = 0
        for tick in range(timeline.forward_end + 1):
            now_s = timeline.time_s[tick] + self.stall_s
            for number in saved[tick]:
                begun_s = max(now_s, self.link_free_s)
                self.link_free_s = begun_s + self._link.out_s(timeline.storages[number].size_bytes)
                ends_s[number] = self.link_free_s
            for number in complete[tick]:
                heappush(waiting, (ends_s[number], number))
            last = tick == timeline.forward_end
            excess = timeline.live_bytes[tick] - away_bytes - self._peak_bytes
            while waiting and (last or excess > 0 or waiting[0][0] <= now_s):
                end_s, number = heappop(waiting)
                self.stall_s += max(end_s - now_s, 0.0)
                now_s = max(now_s, end_s)
                self.releases[number] = tick
                away_bytes += timeline.storages[number].size_bytes
                excess = timeline.live_bytes[tick] - away_bytes - self._peak_bytes
            if excess > self.excess_bytes:
                self.excess_at, self.excess_bytes = tick, excess


def _schedule(
    timeline: SaveTimeline, link: LinkSpeed, chosen: Sequence[int], peak_bytes: int
) -> OffloadSchedule:
    outward = _Outward(timeline, link, chosen, peak_bytes)
    fetches, stall_s = _inward(timeline, link, chosen)
    trips = tuple(Trip(n, outward.releases[n], fetches[n]) for n in chosen)
    total_stall_s = outward.stall_s + stall_s
    return OffloadSchedule(
        trips=trips,
        offloaded_bytes=sum(timeline.storages[number].size_bytes for number in chosen),
        base_peak_bytes=timeline.peak_bytes,
        peak_bytes=_peak(timeline, trips),
        stall_s=total_stall_s,
        bound_bytes=hidden_bytes(timeline, link),
    )


def _inward(
    timeline: SaveTimeline, link: LinkSpeed, chosen: Sequence[int]
) -> tuple[dict[int, int], float]:
    """Begin each copy back as late as possible, one by one; returns ticks and the stall."""
    order = sorted(chosen, key=lambda number: timeline.storages[number].first_used)
    fetches: dict[int, int] = {}
    next_start_s = float("inf")
    for number in reversed(order):
        each = timeline.storages[number]
        end_s = min(timeline.time_s[each.first_used], next_start_s)
        start_s = end_s - link.in_s(each.size_bytes) * (1.0 + _FETCH_MARGIN_RATIO)
        tick = bisect_right(timeline.time_s, start_s) - 1
        fetches[number] = min(max(tick, timeline.forward_end), each.first_used)
        next_start_s = min(start_s, timeline.time_s[fetches[number]])
    stall_s = free_s = 0.0
    for number in order:
        each = timeline.storages[number]
        begun_s = max(timeline.time_s[fetches[number]] + stall_s, free_s)
        free_s = begun_s + link.in_s(each.size_bytes)
        stall_s += max(free_s - timeline.time_s[each.first_used] - stall_s, 0.0)
    return fetches, stall_s


def _peak(timeline: SaveTimeline, trips: Sequence[Trip]) -> int:
    away = [0] * (len(timeline.live_bytes) + 1)
    for trip in trips:
        size_bytes = timeline.storages[trip.storage].size_bytes
        away[trip.release] += size_bytes
        away[trip.fetch] -= size_bytes
    peak = total = 0
    for tick, live_bytes in enumerate(timeline.live_bytes):
        total += away[tick]
        peak = max(peak, live_bytes - total)
    return peak


def without_stalls(reached_s: Sequence[float], left_s: Sequence[float]) -> tuple[float, ...]:
    """Take the waiting at ticks out of the times at which they were reached and left."""
    times_s = [0.0]
    for (_, left), (reached, _) in pairwise(zip(reached_s, left_s, strict=True)):
        times_s.append(times_s[-1] + max(reached - left, 0.0))
    return tuple(times_s)
