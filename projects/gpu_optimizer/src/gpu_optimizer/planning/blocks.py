"""Lives of the tensors that a forward pass makes: until when is each needed, and by whom.

Moments count what happens in a step: two before each operation, then its allocations and frees. At
the first of the two, what earlier operations let go of is gone; between them things may be computed
again, which the second one sees.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from gpu_optimizer.steps.graphs import StepGraph
from gpu_optimizer.types import PHASES, Phase

WEIGHT_CAST = "aten._to_copy"
_ALIGNMENT_BYTES = 512
_FORWARD = PHASES.index(Phase.FORWARD)
_BACKWARD = PHASES.index(Phase.BACKWARD)


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """Moments of a step's operations and events."""

    before: Int64[np.ndarray, "operations"]
    """First moment of each operation."""
    after: Int64[np.ndarray, "operations"]
    """First moment of the next one."""
    of_row: Int64[np.ndarray, "rows"]
    """Moment of each event of the step."""
    n_moments: int


@dataclass(frozen=True, slots=True, eq=False)
class Saves:
    """What autograd keeps: a block, for a node, made by a forward operation."""

    block: Int64[np.ndarray, "saves"]
    """Index into `ForwardBlocks`; -1: a parameter or an input."""
    operation: Int64[np.ndarray, "saves"]
    operations_before: Int64[np.ndarray, "saves"]
    """How many operations have been run when it is kept."""
    asked: Int64[np.ndarray, "saves"]
    """Moment at which the backward pass wants it."""
    released: Int64[np.ndarray, "saves"]
    """Moment at which the node has let go of it."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBlocks:
    """Everything that forward operations allocate, in the order of its birth."""

    size_bytes: Int64[np.ndarray, "blocks"]
    """As the allocator rounds it."""
    operation: Int64[np.ndarray, "blocks"]
    """That allocates it."""
    born: Int64[np.ndarray, "blocks"]
    freed: Int64[np.ndarray, "blocks"]
    """Moments in the recording; the number of moments: never freed."""
    unsaved: Int64[np.ndarray, "blocks"]
    """When it would be freed if autograd did not keep it."""
    is_scratch: Bool[np.ndarray, "blocks"]
    """Whether it is freed by the operation that allocates it."""
    use_block: Int64[np.ndarray, "uses"]
    use_operation: Int64[np.ndarray, "uses"]
    write_block: Int64[np.ndarray, "writes"]
    """-1: a block from before the forward pass."""
    write_operation: Int64[np.ndarray, "writes"]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.size_bytes)


def step_clock(graph: StepGraph) -> Clock:
    """Number the moments of a step."""
    starts = graph.operations.first_row - graph.first_row
    n_rows = len(graph.recording.timeline) - graph.first_row
    n_moments = n_rows + 2 * len(starts)
    before = starts + 2 * np.arange(len(starts))
    rows = np.arange(n_rows)
    return Clock(
        before=before,
        after=np.append(before[1:], n_moments)[: len(before)],
        of_row=rows + 2 * np.searchsorted(starts, rows, side="right"),
        n_moments=n_moments,
    )


def step_curve(graph: StepGraph, clock: Clock) -> Int64[np.ndarray, "moments"]:
    """Return what the recorded step has allocated at each moment."""
    sizes = graph.recording.timeline.size_bytes
    rounded = np.sign(sizes) * rounded_bytes(np.abs(sizes))
    changes = np.zeros(clock.n_moments, np.int64)
    changes[clock.of_row] = rounded[graph.first_row :]
    curve: np.ndarray = np.cumsum(changes) + rounded[: graph.first_row].sum()
    return curve


def rounded_bytes(size_bytes: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Round up to the allocator's smallest block."""
    rounded: np.ndarray = -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return rounded


def forward_lives(graph: StepGraph, clock: Clock) -> tuple[ForwardBlocks, Saves]:
    """Work out the lives of what the forward pass allocates, and for whom it is kept."""
    timeline, first = graph.recording.timeline, graph.first_row
    size, block = timeline.size_bytes[first:], timeline.block[first:]
    births = np.flatnonzero((size > 0) & (timeline.phase[first:] == _FORWARD))
    index = np.full(int(timeline.block.max(initial=-1)) + 1, -1, np.int64)
    index[block[births]] = np.arange(len(births))
    freed_row = np.full(len(births), len(size), np.int64)
    frees = np.flatnonzero((size < 0) & (index[block] >= 0))
    freed_row[index[block[frees]]] = frees
    starts = graph.operations.first_row - first
    operation = np.searchsorted(starts, births, side="right") - 1

    saves = _saves(graph, clock, index)
    used = index[graph.use_block] >= 0
    freed = np.append(clock.of_row, clock.n_moments)[freed_row]
    blocks = ForwardBlocks(
        size_bytes=rounded_bytes(size[births]),
        operation=operation,
        born=clock.of_row[births],
        freed=freed,
        unsaved=freed,
        is_scratch=freed_row < graph.operations.last_row[operation] - first,
        use_block=index[graph.use_block[used]],
        use_operation=graph.use_operation[used],
        write_block=index[graph.write_block],
        write_operation=graph.write_operation,
    )
    return _without_saves(graph, clock, blocks, saves), saves


def _saves(graph: StepGraph, clock: Clock, index: Int64[np.ndarray, "numbers"]) -> Saves:
    """Find when the backward pass runs each node for which something is saved."""
    operations = graph.operations
    backward = np.flatnonzero(operations.phase == _BACKWARD)
    # A node that never runs keeps its tensors until the backward pass is over.
    never = int(clock.after[backward[-1]]) if len(backward) else clock.n_moments
    backward = backward[operations.node[backward] >= 0]
    n_nodes = int(max(operations.node.max(initial=-1), graph.save_node.max(initial=-1))) + 1
    asked = np.full(n_nodes, never, np.int64)
    released = np.full(n_nodes, -1, np.int64)
    nodes = operations.node[backward]
    np.minimum.at(asked, nodes, clock.before[backward])
    np.maximum.at(released, nodes, clock.after[backward])
    released[released < 0] = never
    return Saves(
        block=index[graph.save_block],
        operation=graph.save_operation,
        operations_before=graph.save_operation + graph.save_is_result,
        asked=asked[graph.save_node],
        released=released[graph.save_node],
    )


def _without_saves(
    graph: StepGraph, clock: Clock, blocks: ForwardBlocks, saves: Saves
) -> ForwardBlocks:
    """Work out when blocks would be freed if autograd did not keep them."""
    unsaved = clock.after[blocks.operation]
    np.maximum.at(unsaved, blocks.use_block, clock.after[blocks.use_operation])
    casts, ends = _weight_casts(graph, clock, blocks)
    unsaved[casts] = ends
    own = saves.block >= 0
    released = np.full(len(blocks), -1, np.int64)
    np.maximum.at(released, saves.block[own], saves.released[own])
    # What outlives its nodes is held by the program, as the model's output is.
    held = (released < 0) | (blocks.freed > released)
    return replace(blocks, unsaved=np.where(held, blocks.freed, np.minimum(unsaved, blocks.freed)))


def _weight_casts(
    graph: StepGraph, clock: Clock, blocks: ForwardBlocks
) -> tuple[Int64[np.ndarray, "casts"], Int64[np.ndarray, "casts"]]:
    """Find autocast's copies of weights, which it keeps until the forward pass is over."""
    names = np.asarray(graph.operations.name)
    reads_activations = np.zeros(len(names), np.bool_)
    reads_activations[blocks.use_operation] = True
    is_cast = (names[blocks.operation] == WEIGHT_CAST) & ~reads_activations[blocks.operation]
    casts = np.flatnonzero(is_cast)
    backward = np.flatnonzero(graph.operations.phase == _BACKWARD)
    if not len(backward):
        return casts[:0], casts[:0]
    following = np.searchsorted(backward, blocks.operation[casts])
    return casts, clock.before[backward[np.minimum(following, len(backward) - 1)]]
