"""Memory that the allocator holds of the device, and what lies where in it."""

from dataclasses import dataclass
from enum import StrEnum

from gpu_optimizer.types import Category, Phase


class Pool(StrEnum):
    """Which of the allocator's two pools a segment serves."""

    SMALL = "small"
    """Blocks up to 1 MiB."""
    LARGE = "large"


class BlockState(StrEnum):
    """Whether a block may be handed out."""

    ALLOCATED = "allocated"
    PENDING = "pending"
    """Freed, but another stream may still be using it."""
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asked for a block."""

    module: str = ""
    """Qualified name; empty: no module, or not known."""
    phase: Phase = Phase.SETUP
    category: Category = Category.OTHER
    frames: tuple[str, ...] = ()
    """Call stack, innermost first, as ``file:line:function``; empty: not recorded."""


@dataclass(frozen=True, slots=True)
class SegmentBlock:
    """Consecutive bytes of a segment with one state."""

    address: int
    size_bytes: int
    requested_bytes: int
    """0 where the block is free."""
    state: BlockState
    owner: Owner | None = None
    """None where the block is free."""
    number: int = -1
    """Number of the allocation in the timeline; -1: free, or not in it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of device memory: from one cudaMalloc, or mapped without a gap."""

    address: int
    size_bytes: int
    stream: int
    pool: Pool
    is_expandable: bool
    private_pool: int
    """0: none, the pool that everyone uses."""
    blocks: tuple[SegmentBlock, ...]
    """By address, without gaps."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes of blocks that tensors use."""
        return sum(block.size_bytes for block in self.blocks if block.state == BlockState.ALLOCATED)
