"""Learns from the first training steps when each tensor is saved, freed and used again."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from gpu_optimizer.offload.links import Clock, Link
from gpu_optimizer.offload.saved_tensors import StepRecord, TickActions
from gpu_optimizer.offload.schedule import (
    OffloadSchedule,
    SavedStorage,
    SaveTimeline,
    without_stalls,
)

# Steps that differ from each other are recorded again; a model whose steps always do cannot be
# learned.
_MAX_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class LearnedStep:
    """A step as it is without offloading."""

    timeline: SaveTimeline
    numbers: tuple[int, ...]
    """Of the timeline's storages, as they are counted when the step runs."""

    def actions(self, schedule: OffloadSchedule) -> dict[int, TickActions]:
        """Return what a schedule does at each tick."""
        due: dict[int, TickActions] = {}
        for trip in schedule.trips:
            number = (self.numbers[trip.storage],)
            at = due.get(trip.release, TickActions())
            due[trip.release] = TickActions(at.release + number, at.fetch)
            at = due.get(trip.fetch, TickActions())
            due[trip.fetch] = TickActions(at.release, at.fetch + number)
        return due


class StepLearner:
    """Records three steps: one to warm up, one for memory and one for times.

    Parameters
    ----------
    link
        Knows the device's memory and clock.
    """

    def __init__(self, link: Link) -> None:
        self.ready = False
        """Whether a timeline can be made."""
        self.in_regions: frozenset[int] = frozenset()
        """Numbers of the storages saved while a chosen module was running."""
        self._link = link
        self._record: StepRecord | None = None
        self._memory: StepRecord | None = None
        self._last_peak_bytes: int | None = None
        self._step_clock: Clock | None = None
        self._step_s = 0.0
        self._n_tries = 0

    def begin_step(self) -> StepRecord | None:
        """Return what the step that begins is recorded in; None: nothing has to be."""
        last = self._record
        if last is not None and last.clock is None:
            self.in_regions = last.in_regions
        if self._n_tries > _MAX_TRIES or self.ready:
            return None
        if last is None:
            self._record = StepRecord()
        elif self._memory is None:
            self._memory = StepRecord()
            self._record = self._memory
        elif last.clock is None:
            self._last_peak_bytes = self._link.memory_peak_bytes()
            self._record = StepRecord(clock=self._link.clock())
            self._step_clock = self._link.clock()
            self._step_clock.mark()
        else:
            self._compare(last, self._memory)
        return None if self.ready else self._record

    def step(self, usable: Callable[[int], bool]) -> LearnedStep | None:
        """Return the step as it is without offloading; None: not known.

        Parameters
        ----------
        usable
            Whether the storage of a number may be offloaded.
        """
        times, memory = self._record, self._memory
        if not self.ready or times is None or memory is None or times.clock is None:
            return None
        marks_s = times.clock.seconds()
        numbers = tuple(number for number in sorted(times.used) if usable(number))
        storages = tuple(
            SavedStorage(times.size_bytes[number], *times.saved[number], times.used[number])
            for number in numbers
        )
        timeline = SaveTimeline(
            time_s=without_stalls(marks_s[0::2], marks_s[1::2]),
            live_bytes=_live_bytes(memory, self._last_peak_bytes),
            forward_end=times.forward_end,
            storages=storages,
            step_s=self._step_s,
        )
        return LearnedStep(timeline, numbers)

    def _compare(self, times: StepRecord, memory: StepRecord) -> None:
        if times.same_as(memory) and self._step_clock is not None:
            self._step_clock.mark()
            self._step_s = self._step_clock.seconds()[-1]
            self.ready = True
            return
        self._n_tries += 1
        self._memory = StepRecord()
        self._record = self._memory


def _live_bytes(record: StepRecord, last_peak_bytes: int | None) -> tuple[int, ...]:
    if last_peak_bytes is None:
        return _saved_bytes(record)
    after = (*record.memory_peaks[1:], last_peak_bytes)
    return tuple(live + away for live, away in zip(after, record.away_bytes, strict=True))


def _saved_bytes(record: StepRecord) -> tuple[int, ...]:
    """Return how much is saved after each tick, if each storage goes when it is first used."""
    changes = [0] * record.n_ticks
    for number, size_bytes in enumerate(record.size_bytes):
        changes[record.saved[number][0]] += size_bytes
        if number in record.used:
            changes[record.used[number]] -= size_bytes
    return tuple(accumulate(changes))
