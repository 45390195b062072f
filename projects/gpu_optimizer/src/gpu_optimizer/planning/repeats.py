"""What a checkpointed call keeps, what it computes again and when, and what that takes.

Follows `checkpointing.tape`: saved tensors that are not kept are computed when the backward pass
asks for them, from what is kept, each operation once; results that others still need stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
from jaxtyping import Int64

from gpu_optimizer.checkpointing.cuts import Cut, ForwardOperation, cheapest_cut
from gpu_optimizer.planning.values import CallValues, ForwardAccess, Value, call_values
from gpu_optimizer.steps.graphs import StepGraph

NEVER: Final = 1 << 62
CutFinder = Callable[[Sequence[ForwardOperation], Sequence[int | None], Sequence[int]], Cut]


@dataclass(frozen=True, slots=True, eq=False)
class Repeats:
    """One checkpointed call, as changes to the recorded step."""

    dropped_saves: Int64[np.ndarray, "dropped"]
    """Indices into `Saves` of what is not held any more."""
    held_block: Int64[np.ndarray, "held"]
    """Blocks that are held to compute others, until a moment."""
    held_until: Int64[np.ndarray, "held"]
    change_moment: Int64[np.ndarray, "changes"]
    change_bytes: Int64[np.ndarray, "changes"]
    """What is computed again and stays for a while comes and goes."""
    burst_moment: Int64[np.ndarray, "bursts"]
    burst_bytes: Int64[np.ndarray, "bursts"]
    """Most that computing takes on top of what there is at a moment."""
    operations: Int64[np.ndarray, "repeated"]
    """That are run again."""
    first_call_operation: int
    first_call_bytes: int
    """What the very first call keeps until its end, by which operation, without need."""


@dataclass(frozen=True, slots=True)
class _Schedule:
    """When what is run again."""

    access: ForwardAccess
    call: CallValues
    cut: Cut
    first: int
    moment_of: dict[int, int]
    """Operation -> moment before which it is repeated; those that nobody needs are left out."""

    def value(self, number: int) -> Value:
        """Return a value."""
        return self.call.values[number]

    def is_made_again(self, number: int) -> bool:
        """Whether a value is not kept but computed."""
        return number not in self.cut.kept and self.value(number).operation in self.moment_of

    def needed_until(self, number: int) -> int:
        """Return the moment from which nobody needs a value that is held."""
        value = self.value(number)
        until = [int(self.access.saves.released[save]) for save in value.saves]
        again = self.moment_of
        until += [again[reader] + 1 for reader in value.readers if reader in again]
        return max(until, default=-1)


def repeats(
    graph: StepGraph,
    access: ForwardAccess,
    span: tuple[int, int],
    may_repeat: np.ndarray,
    find_cut: CutFinder = cheapest_cut,
) -> Repeats | None:
    """Work out what checkpointing a call would do.

    Parameters
    ----------
    graph
        The recorded step.
    access
        The same by operation.
    span
        First and last operation of the call, the last exclusive.
    may_repeat
        For each operation of the step, whether it may be run again.
    find_cut
        Chooses what to keep.

    Returns
    -------
    Repeats or None
        None if nothing would be dropped, or something can neither be kept nor repeated.
    """
    call = call_values(access, *span)
    try:
        cut = _cut(graph, access, call, may_repeat, find_cut)
    except nx.NetworkXUnbounded:
        return None
    schedule = _Schedule(access, call, cut, span[0], _moments(access, call, cut))
    dropped = [
        save
        for number, value in enumerate(call.values)
        for save in value.saves
        if number not in cut.kept
    ]
    if not dropped:
        return None
    changes, bursts = _again(schedule)
    held = _held(schedule)
    gone = {value.block for value in call.values} - {call.values[each].block for each in cut.kept}
    staying = {value.block for value in call.values if value.returned}
    return Repeats(
        dropped_saves=np.array(dropped, np.int64),
        held_block=np.array([block for block, _ in held], np.int64),
        held_until=np.array([until for _, until in held], np.int64),
        change_moment=np.array([moment for moment, _ in changes], np.int64),
        change_bytes=np.array([size for _, size in changes], np.int64),
        burst_moment=np.array([moment for moment, _ in bursts], np.int64),
        burst_bytes=np.array([size for _, size in bursts], np.int64),
        operations=np.array(sorted(schedule.moment_of), np.int64),
        first_call_operation=span[1] - 1,
        first_call_bytes=int(access.blocks.size_bytes[sorted(gone - staying)].sum()),
    )


def _cut(
    graph: StepGraph,
    access: ForwardAccess,
    call: CallValues,
    may_repeat: np.ndarray,
    find_cut: CutFinder,
) -> Cut:
    """Ask for the cheapest cut; casts of weights are left out of it and always repeated."""
    casts = [each for each in call.operations if each.is_weight_cast]
    free = {value for each in casts for value in each.makes}
    noted = [each for each in call.operations if not each.is_weight_cast]
    numbers = [value for value in range(len(call.values)) if value not in free]
    place = {value: position for position, value in enumerate(numbers)}
    moved = graph.operations.moved_bytes
    operations = [
        ForwardOperation(
            reads=tuple(place[value] for value in each.reads if value in place),
            makes=tuple(place[value] for value in each.makes),
            moved_bytes=int(moved[each.number]),
            repeatable=bool(may_repeat[each.number]) and not each.changes_outside,
        )
        for each in noted
    ]
    sizes = [_kept_bytes(access, call.values[value]) for value in numbers]
    needed = [place[value] for value in numbers if call.values[value].saves]
    found = find_cut(operations, sizes, needed)
    repeated = {noted[position].number for position in found.repeated}
    return Cut(
        kept=frozenset(numbers[position] for position in found.kept),
        repeated=frozenset(repeated | {each.number for each in casts}),
    )


def _kept_bytes(access: ForwardAccess, value: Value) -> int | None:
    if value.overwritten:
        return None
    return 0 if value.returned else int(access.blocks.size_bytes[value.block])


def _moments(access: ForwardAccess, call: CallValues, cut: Cut) -> dict[int, int]:
    """Find when each repeated operation is first needed, directly or by another."""
    moment_of: dict[int, int] = {}
    for operation in reversed(call.operations):
        if operation.number not in cut.repeated:
            continue
        moment = NEVER
        for number in operation.makes:
            if number not in cut.kept:
                value = call.values[number]
                asked = [int(access.saves.asked[save]) for save in value.saves]
                read = [moment_of.get(reader, NEVER) for reader in value.readers]
                moment = min([moment, *asked, *read])
        if moment != NEVER:
            moment_of[operation.number] = moment
    return moment_of


def _held(schedule: _Schedule) -> list[tuple[int, int]]:
    """List blocks of the forward pass that repeated operations read, and until when."""
    held = [
        (schedule.value(number).block, schedule.needed_until(number))
        for number in schedule.cut.kept
    ]
    for operation in schedule.call.operations:
        moment = schedule.moment_of.get(operation.number)
        if moment is not None:
            held += [(block, moment + 1) for block in operation.outside]
    return held


def _again(schedule: _Schedule) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Play the repeated operations: changes of what stays, and bursts of what does not."""
    at_moment: dict[int, list[int]] = {}
    for number, moment in sorted(schedule.moment_of.items()):
        at_moment.setdefault(moment, []).append(number)
    changes: list[tuple[int, int]] = []
    bursts = []
    for moment, numbers in at_moment.items():
        peak, stays = _burst(schedule, moment, numbers)
        bursts.append((moment, peak))
        for value in stays:
            size = int(schedule.access.blocks.size_bytes[schedule.value(value).block])
            changes += [(moment + 1, size), (schedule.needed_until(value), -size)]
    return changes, bursts


def _burst(schedule: _Schedule, moment: int, numbers: list[int]) -> tuple[int, list[int]]:
    """Run some operations at one moment; returns the most they take, and the values that stay."""
    sizes = schedule.access.blocks.size_bytes
    among = set(numbers)
    live: dict[int, int] = {}
    used = peak = 0
    for number in numbers:
        operation = schedule.call.operations[number - schedule.first]
        taken = {}
        for before, after in operation.overwrites:
            if (
                before in live
                and _last_reader(schedule, before, among) <= number
                and (schedule.needed_until(before) <= moment + 1)
            ):
                used -= live.pop(before)
            taken[after] = int(sizes[schedule.value(after).block])
        for value in operation.makes:
            taken[value] = int(sizes[schedule.value(value).block])
        live.update(taken)
        used += sum(taken.values())
        peak = max(peak, used + schedule.access.scratch_bytes.get(number, 0))
        for value in {*operation.reads, *taken}:
            done = _last_reader(schedule, value, among) <= number
            wanted = schedule.needed_until(value) > moment + 1 and schedule.is_made_again(value)
            if value in live and done and not wanted:
                used -= live.pop(value)
    return peak, list(live)


def _last_reader(schedule: _Schedule, value: int, among: set[int]) -> int:
    readers = [reader for reader in schedule.value(value).readers if reader in among]
    return max(readers, default=-1)
