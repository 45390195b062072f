"""What the operations of one call of a module read and make, as `checkpointing` would see it.

A value is the content of a storage between two writes. Values from outside of the call, parameters
among them, are there anyway.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gpu_optimizer.planning.blocks import WEIGHT_CAST, ForwardBlocks, Saves
from gpu_optimizer.steps.graphs import StepGraph


@dataclass(slots=True)
class Value:
    """Content of one block."""

    block: int
    operation: int
    """That makes it."""
    saves: list[int] = field(default_factory=list)
    """What autograd keeps it for, indices into `Saves`."""
    readers: list[int] = field(default_factory=list)
    """Operations."""
    overwritten: bool = False
    returned: bool = False
    """Whether operations after the call use it."""


@dataclass(frozen=True, slots=True)
class OperationValues:
    """One operation of a call."""

    number: int
    """Among all operations of the step."""
    reads: tuple[int, ...]
    """Values of the call."""
    outside: tuple[int, ...]
    """Blocks of the forward pass from before the call."""
    makes: tuple[int, ...]
    overwrites: tuple[tuple[int, int], ...]
    """Values whose storage it changes, each with the one that comes of it."""
    changes_outside: bool
    is_weight_cast: bool


@dataclass(frozen=True, slots=True)
class CallValues:
    """Values and operations of one call, in order."""

    values: tuple[Value, ...]
    operations: tuple[OperationValues, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ForwardAccess:
    """Who reads, writes and makes which block, by operation."""

    blocks: ForwardBlocks
    saves: Saves
    reads: Mapping[int, list[int]]
    writes: Mapping[int, list[int]]
    """-1: a block from before the forward pass."""
    makes: Mapping[int, list[int]]
    saves_before: Mapping[int, list[int]]
    """Indices into `Saves` by the number of operations run before."""
    scratch_bytes: Mapping[int, int]
    """Most that an operation takes beside its results."""
    last_use: np.ndarray
    """Last operation that uses each block, or for which autograd keeps it."""
    names: tuple[str, ...]


def forward_access(graph: StepGraph, blocks: ForwardBlocks, saves: Saves) -> ForwardAccess:
    """Sort what a graph says by operation."""
    makes: dict[int, list[int]] = defaultdict(list)
    for block in np.flatnonzero(~blocks.is_scratch).tolist():
        makes[int(blocks.operation[block])].append(block)
    last_use = blocks.operation.copy()
    np.maximum.at(last_use, blocks.use_block, blocks.use_operation)
    own = np.flatnonzero(saves.block >= 0)
    np.maximum.at(last_use, saves.block[own], saves.operation[own])
    saves_before: dict[int, list[int]] = defaultdict(list)
    for save in own.tolist():
        saves_before[int(saves.operations_before[save])].append(save)
    return ForwardAccess(
        blocks=blocks,
        saves=saves,
        reads=_grouped(blocks.use_operation, blocks.use_block),
        writes=_grouped(blocks.write_operation, blocks.write_block),
        makes=makes,
        saves_before=saves_before,
        scratch_bytes=_scratch_bytes(blocks),
        last_use=last_use,
        names=graph.operations.name,
    )


def call_values(access: ForwardAccess, first: int, last: int) -> CallValues:
    """Follow the operations from the first up to the last, exclusive."""
    values: list[Value] = []
    current: dict[int, int] = {}
    operations = []
    for number in range(first, last):
        _note_saves(access, number, values, current)
        read = access.reads.get(number, [])
        written = access.writes.get(number, [])
        reads = tuple(current[block] for block in read if block in current)
        for value in reads:
            values[value].readers.append(number)
        overwrites = []
        for block in written:
            if block in current:
                values[current[block]].overwritten = True
                overwrites.append((current[block], len(values)))
                current[block] = len(values)
                values.append(Value(block, number))
        makes = []
        for block in access.makes.get(number, []):
            current[block] = len(values)
            makes.append(len(values))
            values.append(Value(block, number))
        operations.append(
            OperationValues(
                number=number,
                reads=reads,
                outside=tuple(block for block in read if block not in current),
                makes=(*(after for _, after in overwrites), *makes),
                overwrites=tuple(overwrites),
                changes_outside=len(written) > len(overwrites),
                is_weight_cast=access.names[number] == WEIGHT_CAST and not reads,
            )
        )
    _note_saves(access, last, values, current, only_own=True)
    for block, value in current.items():
        values[value].returned = bool(access.last_use[block] >= last)
    return CallValues(tuple(values), tuple(operations))


def _note_saves(
    access: ForwardAccess,
    number: int,
    values: list[Value],
    current: Mapping[int, int],
    *,
    only_own: bool = False,
) -> None:
    """Give values the saves made before an operation; at the end of a call only the call's own."""
    for save in access.saves_before.get(number, []):
        value = current.get(int(access.saves.block[save]))
        if value is not None and not (only_own and access.saves.operation[save] >= number):
            values[value].saves.append(save)


def _grouped(keys: np.ndarray, values: np.ndarray) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        groups[key].append(value)
    return groups


def _scratch_bytes(blocks: ForwardBlocks) -> dict[int, int]:
    by_operation: dict[int, list[int]] = defaultdict(list)
    for block in np.flatnonzero(blocks.is_scratch).tolist():
        by_operation[int(blocks.operation[block])].append(block)
    peaks = {}
    for operation, members in by_operation.items():
        moments = np.concatenate([blocks.born[members], blocks.freed[members]])
        changes = np.concatenate([blocks.size_bytes[members], -blocks.size_bytes[members]])
        peaks[operation] = int(np.cumsum(changes[np.argsort(moments, kind="stable")]).max())
    return peaks
