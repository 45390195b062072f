"""Blocks of the simulated allocator, and the pools that keep the free ones in order."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class ExpandableRange:
    """Addresses of which pages are mapped as they are needed."""

    address: int
    size_bytes: int
    page_bytes: int


@dataclass(slots=True, eq=False)
class Block:
    """Consecutive bytes of one segment; `prev` and `next` are its neighbours there."""

    address: int
    size_bytes: int
    stream: int
    pool: "BlockPool"
    requested_bytes: int = 0
    is_allocated: bool = False
    is_mapped: bool = True
    """Whether memory lies behind it; always true outside of expandable segments."""
    prev: "Block | None" = None
    next: "Block | None" = None
    expandable: ExpandableRange | None = None
    age_base: int = 0
    """`BlockPool.n_searches` when it became free."""

    @property
    def is_split(self) -> bool:
        """Whether it shares its segment with other blocks."""
        return self.prev is not None or self.next is not None

    @property
    def grown_bytes(self) -> int:
        """Its size once what lies unmapped behind it is mapped."""
        following = self.next
        if following is None or following.is_mapped:
            return self.size_bytes
        return self.size_bytes + following.size_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many bytes, free or unmapped, begin with it."""
        room = 0
        following: Block | None = self
        while room < size_bytes and following is not None and not following.is_allocated:
            room += following.size_bytes
            following = following.next
        return room >= size_bytes

    def cut(self, size_bytes: int) -> "Block":
        """Keep so many bytes; return the rest, which lies behind (`alloc_found_block`)."""
        rest = Block(
            self.address + size_bytes, self.size_bytes - size_bytes, self.stream, self.pool
        )
        rest.is_mapped = self.is_mapped
        rest.expandable = self.expandable
        rest.prev = self
        rest.next = self.next
        if rest.next is not None:
            rest.next.prev = rest
        self.next = rest
        self.size_bytes = size_bytes
        return rest


@dataclass(slots=True, eq=False)
class BlockPool:
    """Free blocks of one pool: per stream, by size and then by address."""

    is_small: bool
    private_pool: int
    free: dict[int, list[tuple[int, int, Block]]] = field(default_factory=dict)
    unmapped: dict[int, list[tuple[int, Block]]] = field(default_factory=dict)
    """By address: what expandable segments may still map."""
    n_searches: int = 0
    """Counted while garbage collection is on: the clock by which free blocks age."""

    def insert(self, block: Block) -> None:
        """Add a free block."""
        block.age_base = self.n_searches
        blocks = self.free.get(block.stream)
        if blocks is None:
            blocks = self.free[block.stream] = []
        insort(blocks, (block.size_bytes, block.address, block))

    def remove(self, block: Block) -> None:
        """Take a free block out."""
        blocks = self.free[block.stream]
        del blocks[bisect_left(blocks, (block.size_bytes, block.address))]

    def insert_unmapped(self, block: Block) -> None:
        """Add a range of addresses without memory."""
        insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Take such a range out."""
        blocks = self.unmapped[block.stream]
        del blocks[bisect_left(blocks, (block.address,))]

    def all_free(self) -> list[Block]:
        """All free blocks, stream by stream, the smallest first."""
        return [row[2] for stream in sorted(self.free) for row in self.free[stream]]
