"""What helps against running out of memory, and how much of it each measure gives back.

All gains are upper bounds from what was recorded; they overlap and do not add up. Letters in the
formulas: A bytes of activations, P parameters, S optimizer state, I inputs, U reserved by the
allocator and not allocated, T the largest single activation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gpu_optimizer.types import Category, LayerMemory

_OWN_CONTEXT_BYTES: Final = 1 << 30
"""What this process's own CUDA context and libraries take at most (771 MiB on an H200)."""


class FixKind(StrEnum):
    """Measures, those that cost least first."""

    NO_GRAD = "no_grad"
    EXPANDABLE_SEGMENTS = "expandable_segments"
    OTHER_PROCESSES = "other_processes"
    AUTOCAST = "autocast"
    HALF_WEIGHTS = "half_weights"
    OPTIMIZER_8BIT = "optimizer_8bit"
    SMALLER_BATCH = "smaller_batch"
    CHECKPOINTING = "checkpointing"
    SGD = "sgd"
    OFFLOAD = "offload"


@dataclass(frozen=True, slots=True)
class Fix:
    """One measure."""

    kind: FixKind
    gain_bytes: int
    """At most."""
    enough: bool
    """Whether the request that failed would have been served."""
    how: str
    """What to do, in words."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when memory has run out."""

    by_category_bytes: Mapping[Category, int]
    layers: LayerMemory
    """Activations by layer."""
    largest_activation_bytes: int
    unallocated_bytes: int
    """Reserved by the allocator and not allocated."""
    outside_bytes: int
    """On the card and not of this process's allocator."""
    missing_bytes: int
    """How much the request was short of."""
    training: bool
    """Whether the model is in training mode."""
    full_precision: bool
    """Whether the parameters are fp32 and nothing is cast."""
    expandable_segments: bool
    """Whether they are in use already."""

    def of(self, category: Category) -> int:
        """Bytes of a category."""
        return self.by_category_bytes.get(category, 0)


def rank_fixes(situation: Situation) -> tuple[Fix, ...]:
    """Measures that give anything: those that are enough by cost, then the others by gain."""
    fixes = []
    for kind, (gain, how) in _FIXES.items():
        gain_bytes = gain(situation)
        if gain_bytes > 0:
            fixes.append(Fix(kind, gain_bytes, gain_bytes >= situation.missing_bytes, how))
    cost = list(FixKind)
    return tuple(
        sorted(
            fixes,
            key=lambda fix: (
                not fix.enough,
                cost.index(fix.kind) if fix.enough else -fix.gain_bytes,
            ),
        )
    )


def no_grad_bytes(situation: Situation) -> int:
    """A, where the model is not even in training mode."""
    return 0 if situation.training else situation.of(Category.ACTIVATION)


def expandable_bytes(situation: Situation) -> int:
    """U: expandable segments can use what is free in any segment."""
    return 0 if situation.expandable_segments else situation.unallocated_bytes


def other_process_bytes(situation: Situation) -> int:
    """What is outside of the allocator, less what this process's CUDA context takes itself."""
    return max(situation.outside_bytes - _OWN_CONTEXT_BYTES, 0)


def autocast_bytes(situation: Situation) -> int:
    """A / 2 - P / 2: activations of half the size, but casts of the weights are kept with them.

    ResNet50 at batch 256: 21,445 to 11,260 MiB measured.
    """
    if not (situation.training and situation.full_precision):
        return 0
    return max(situation.of(Category.ACTIVATION) - situation.of(Category.PARAMETER), 0) // 2


def half_weights_bytes(situation: Situation) -> int:
    """P / 2, for inference in half precision."""
    if situation.training or not situation.full_precision:
        return 0
    return situation.of(Category.PARAMETER) // 2


def optimizer_8bit_bytes(situation: Situation) -> int:
    """3 S / 4: one byte in the place of four; scales of blocks are below one percent."""
    return situation.of(Category.OPTIMIZER_STATE) * 3 // 4


def sgd_bytes(situation: Situation) -> int:
    """S: plain SGD keeps no state."""
    return situation.of(Category.OPTIMIZER_STATE)


def smaller_batch_bytes(situation: Situation) -> int:
    """(A + I) / 2: what is proportional to the batch, at half of it."""
    return (situation.of(Category.ACTIVATION) + situation.of(Category.INPUT)) // 2


def offload_bytes(situation: Situation) -> int:
    """A - T: all kept tensors go to the host, one at a time.

    ResNet50 at batch 256: 21,445 to 4,043 MiB measured, at 11.7 times the time.
    """
    if not situation.training:
        return 0
    return max(situation.of(Category.ACTIVATION) - situation.largest_activation_bytes, 0)


def checkpointing_bytes(situation: Situation) -> int:
    """Sum over the repeated blocks of their activations, less the largest one's and their inputs.

    While one block is recomputed its activations are there; of every other block only its input is
    kept, for which the sum takes T at most and the block's activations over four, the usual part of
    a residual block, at least one of them.
    """
    if not situation.training:
        return 0
    blocks = [block.activation_bytes for block in repeated_blocks(situation.layers)]
    inputs = sum(min(situation.largest_activation_bytes, size // 4) for size in blocks)
    return max(sum(blocks) - max(blocks, default=0) - inputs, 0)


def repeated_blocks(layers: LayerMemory) -> tuple[LayerMemory, ...]:
    """Outermost siblings of one class that have submodules and keep something."""
    kinds = [child.kind for child in layers.children if child.children]
    found: list[LayerMemory] = []
    for child in layers.children:
        if child.children and kinds.count(child.kind) > 1 and child.kind not in _CONTAINERS:
            found += [child] if child.activation_bytes else []
        else:
            found += repeated_blocks(child)
    return tuple(found)


_CONTAINERS: Final = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_FIXES: Final[Mapping[FixKind, tuple[Callable[[Situation], int], str]]] = {
    FixKind.NO_GRAD: (no_grad_bytes, "run inference under torch.no_grad()"),
    FixKind.EXPANDABLE_SEGMENTS: (
        expandable_bytes,
        "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True before the program starts",
    ),
    FixKind.OTHER_PROCESSES: (
        other_process_bytes,
        "end other processes on this GPU (nvidia-smi names them)",
    ),
    FixKind.AUTOCAST: (
        autocast_bytes,
        'run the forward pass under torch.autocast("cuda", torch.bfloat16)',
    ),
    FixKind.HALF_WEIGHTS: (half_weights_bytes, "load the weights as torch.bfloat16"),
    FixKind.OPTIMIZER_8BIT: (
        optimizer_8bit_bytes,
        "keep the optimizer's state in 8 bits (bitsandbytes AdamW8bit, torchao AdamW8bit)",
    ),
    FixKind.SMALLER_BATCH: (
        smaller_batch_bytes,
        "halve the batch; accumulate the gradients of two batches for the same step",
    ),
    FixKind.CHECKPOINTING: (
        checkpointing_bytes,
        "recompute the repeated blocks: torch.utils.checkpoint, about 30% more time",
    ),
    FixKind.SGD: (sgd_bytes, "train with plain SGD, which keeps no state"),
    FixKind.OFFLOAD: (
        offload_bytes,
        "keep activations on the host: torch.autograd.graph.save_on_cpu(pin_memory=True), slow",
    ),
}
