"""The operations of one recorded step, as columns: what a planner needs to know; no PyTorch.

Rows are positions in the recording's timeline: an operation covers the events from its first row up
to its last row, exclusive. Blocks are those of the timeline.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64

from gpu_optimizer.steps.recordings import Recording


@dataclass(frozen=True, slots=True, eq=False)
class Operations:
    """Every operation that was run, in order, but mere views of tensors."""

    name: tuple[str, ...]
    """As PyTorch's dispatcher calls it: ``aten.convolution``."""
    phase: Int8[np.ndarray, "operations"]
    """Index into `types.PHASES`."""
    module: Int32[np.ndarray, "operations"]
    """Number of the module that runs, or whose backward pass runs."""
    first_row: Int64[np.ndarray, "operations"]
    last_row: Int64[np.ndarray, "operations"]
    node: Int64[np.ndarray, "operations"]
    """Number of the autograd node: forward the latest one made, backward the one that runs."""
    flops: Int64[np.ndarray, "operations"]
    moved_bytes: Int64[np.ndarray, "operations"]
    """Read and written, scratch memory included."""
    itemsize_bytes: Int8[np.ndarray, "operations"]
    """Of the values it computes."""
    is_product: Bool[np.ndarray, "operations"]
    """Matrix products, convolutions, attention: what is dear to run again."""
    is_repeatable: Bool[np.ndarray, "operations"]

    def __len__(self) -> int:
        """Return how many operations there are."""
        return len(self.name)


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Every call of a module in the forward pass, in the order in which they began."""

    module: Int32[np.ndarray, "calls"]
    first_operation: Int64[np.ndarray, "calls"]
    last_operation: Int64[np.ndarray, "calls"]
    """Exclusive."""


@dataclass(frozen=True, slots=True, eq=False)
class StepGraph:
    """One step of a training, in its steady state."""

    recording: Recording
    """Of the whole run, the step is its last one."""
    first_row: int
    """Where the step begins in the timeline."""
    operations: Operations
    calls: Calls
    use_block: Int64[np.ndarray, "uses"]
    """Blocks that forward operations read, with the operation that does."""
    use_operation: Int64[np.ndarray, "uses"]
    write_block: Int64[np.ndarray, "writes"]
    """Blocks that forward operations change in place, with the operation that does."""
    write_operation: Int64[np.ndarray, "writes"]
    save_block: Int64[np.ndarray, "saves"]
    """Blocks that autograd keeps, with the forward operation and the node it keeps them for."""
    save_operation: Int64[np.ndarray, "saves"]
    save_node: Int64[np.ndarray, "saves"]
    save_is_result: Bool[np.ndarray, "saves"]
    """Whether it is kept after the operation; else before it runs."""
