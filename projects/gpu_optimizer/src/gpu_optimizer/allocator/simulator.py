"""A simulation of PyTorch's CUDA caching allocator, decision for decision.

After `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp (torch 2.10 to 2.12), whose
methods the docstrings name. Streams and pools are searched, blocks split, merged, mapped, aged and
given back by the same rules; only the addresses are invented.
"""

from bisect import bisect_left
from dataclasses import dataclass

from gpu_optimizer.allocator.blocks import Block, BlockPool, ExpandableRange
from gpu_optimizer.allocator.config import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorConfig,
)

_ADDRESS_BASE = 0x7F00_0000_0000
_ADDRESS_STEP = 2 << 20
_UNLIMITED_BYTES = 1 << 42
"""Stands for a device without end: 4 TiB."""


@dataclass(frozen=True, slots=True)
class DeviceCall:
    """Memory taken from the device or given back, named as in PyTorch's snapshots."""

    action: str
    """``segment_alloc``, ``segment_free``, ``segment_map`` or ``segment_unmap``."""
    address: int
    size_bytes: int
    stream: int


class CachingAllocator:
    """The allocator of one device, empty at first.

    Attributes
    ----------
    allocated_bytes, reserved_bytes
        Now, as `torch.cuda.memory_allocated` and `memory_reserved` would say.
    n_device_allocs, n_device_frees
        Calls that take memory from the device or give it back.
    n_retries
        How often everything free had to be given back to serve a request.
    device_calls
        All calls so far, if the log was asked for.

    Parameters
    ----------
    config
        How it is set.
    logs
        Whether `device_calls` is kept.
    """

    def __init__(self, config: AllocatorConfig, *, logs: bool = False) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.n_device_allocs = 0
        self.n_device_frees = 0
        self.n_retries = 0
        self.device_calls: list[DeviceCall] = []
        self._logs = logs
        self._config = config
        limit = config.max_split_size_bytes
        self._max_split_bytes = _UNLIMITED_BYTES if limit is None else limit
        self._rounding_bytes = config.max_non_split_rounding_bytes or config.large_segment_bytes
        self._device_bytes = config.device_bytes or _UNLIMITED_BYTES
        self._allowed_bytes = config.allowed_bytes
        self._ages = self._allowed_bytes is not None and config.garbage_collection_ratio > 0
        self._pools: dict[tuple[int, bool], BlockPool] = {}
        self._segment_addresses: dict[int, Block] = {}
        self._next_address = _ADDRESS_BASE

    def malloc(self, requested_bytes: int, stream: int = 0, private_pool: int = 0) -> Block | None:
        """Return a block for a request; None: the device has not enough memory (`malloc`)."""
        size = self._config.round_size(requested_bytes)
        pool = self._pool(private_pool, size <= SMALL_BYTES)
        block = self._find_free(pool, stream, size)
        if block is None:
            block = self._take_new(pool, stream, size)
            if block is None:
                return None
        remaining = block.size_bytes - size
        if pool.is_small or self._config.expandable_segments:
            splits = remaining >= MIN_BLOCK_BYTES
        else:
            splits = size < self._max_split_bytes and remaining > SMALL_BYTES
        if splits:
            # The front keeps the object, so that the segment's first block stays the same.
            pool.insert(block.cut(size))
        block.is_allocated = True
        block.requested_bytes = requested_bytes
        self.allocated_bytes += block.size_bytes
        return block

    def free(self, block: Block) -> None:
        """Take a block back into its pool and merge it with free neighbours (`free_block`)."""
        block.is_allocated = False
        block.requested_bytes = 0
        self.allocated_bytes -= block.size_bytes
        self._merge_neighbours(block)
        block.pool.insert(block)

    def empty_cache(self) -> None:
        """Give back every segment and page without a live block (`release_cached_blocks`).

        Private pools keep theirs as long as they are in use, as PyTorch's do.
        """
        for is_small in (False, True):
            self._release_blocks(self._pool(0, is_small))

    def segment_heads(self) -> list[Block]:
        """First block of each segment, or of each gapless mapped range, by address."""
        heads = []
        for first in self._segment_addresses.values():
            block: Block | None = first
            while block is not None:
                if block.is_mapped and (block.prev is None or not block.prev.is_mapped):
                    heads.append(block)
                block = block.next
        return sorted(heads, key=lambda head: head.address)

    def _pool(self, private_pool: int, is_small: bool) -> BlockPool:
        pool = self._pools.get((private_pool, is_small))
        if pool is None:
            pool = self._pools[private_pool, is_small] = BlockPool(is_small, private_pool)
        return pool

    def _find_free(self, pool: BlockPool, stream: int, size: int) -> Block | None:
        """Best fit among the free blocks of a stream (`get_free_block`)."""
        if self._ages:
            pool.n_searches += 1
        blocks = pool.free.get(stream)
        if not blocks:
            return None
        index = bisect_left(blocks, (size,))
        if index == len(blocks):
            return None
        block = blocks[index][2]
        if block.expandable is not None:
            # What counts is the size to which the last block of an expandable segment can grow:
            # others go first, even larger ones.
            while index + 1 < len(blocks):
                following = blocks[index + 1][2]
                if block.expandable is None or following.grown_bytes >= block.grown_bytes:
                    break
                index += 1
                block = following
        limit = self._max_split_bytes
        if size < limit <= block.size_bytes:
            return None
        if size >= limit and block.size_bytes >= size + self._rounding_bytes:
            return None
        del blocks[index]
        return block

    def _take_new(self, pool: BlockPool, stream: int, size: int) -> Block | None:
        """Memory from the device, giving back what is cached if need be (end of `malloc`)."""
        if self._ages:
            self._collect_garbage()
        block = self._alloc_block(pool, stream, size)
        if block is None and self._release_oversize(pool, stream, size):
            block = self._alloc_block(pool, stream, size)
        if block is None:
            self.empty_cache()
            self.n_retries += 1
            block = self._alloc_block(pool, stream, size)
        return block

    def _alloc_block(self, pool: BlockPool, stream: int, size: int) -> Block | None:
        """Memory from the device as it is (`alloc_block`)."""
        segment_bytes = self._config.segment_bytes(size)
        allowed = self._allowed_bytes
        if allowed is not None and self.reserved_bytes + segment_bytes > allowed:
            return None
        if self._config.expandable_segments:
            return self._alloc_expandable(pool, stream, size)
        if self.reserved_bytes + segment_bytes > self._device_bytes:
            return None
        block = Block(self._reserve_addresses(segment_bytes), segment_bytes, stream, pool)
        self._segment_addresses[block.address] = block
        self._account("segment_alloc", block.address, segment_bytes, stream)
        return block

    def _account(self, action: str, address: int, size: int, stream: int) -> None:
        if action in {"segment_alloc", "segment_map"}:
            self.reserved_bytes += size
            self.n_device_allocs += 1
        else:
            self.reserved_bytes -= size
            self.n_device_frees += 1
        if self._logs:
            self.device_calls.append(DeviceCall(action, address, size, stream))

    def _reserve_addresses(self, size: int) -> int:
        address = self._next_address
        self._next_address += -(-size // _ADDRESS_STEP) * _ADDRESS_STEP
        return address

    def _merge_neighbours(self, block: Block) -> None:
        """Take in what is free on both sides."""
        if block.prev is not None:
            self._merge(block, block.prev)
        if block.next is not None:
            self._merge(block, block.next)

    def _merge(self, block: Block, neighbour: Block) -> None:
        """Take a free neighbour into a block (`try_merge_blocks`)."""
        if neighbour.is_allocated or neighbour.is_mapped != block.is_mapped:
            return
        if neighbour.is_mapped:
            neighbour.pool.remove(neighbour)
        else:
            neighbour.pool.remove_unmapped(neighbour)
        if neighbour is block.prev:
            if neighbour.prev is None:
                self._segment_addresses[neighbour.address] = block
            block.address = neighbour.address
            block.prev = neighbour.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = neighbour.next
            if block.next is not None:
                block.next.prev = block
        block.size_bytes += neighbour.size_bytes

    def _release_blocks(self, pool: BlockPool) -> None:
        """Give back whole free segments, and unmap whole free pages (`release_blocks`)."""
        for block in pool.all_free():
            if block.expandable is None:
                if not block.is_split:
                    self._release_block(block)
            else:
                self._unmap(block)
                if not block.is_split:
                    block.pool.remove_unmapped(block)
                    del self._segment_addresses[block.address]

    def _release_block(self, block: Block) -> None:
        """Give a segment back (`release_block`)."""
        block.pool.remove(block)
        del self._segment_addresses[block.address]
        self._account("segment_free", block.address, block.size_bytes, block.stream)

    def _release_oversize(self, pool: BlockPool, stream: int, size: int) -> bool:
        """Give back free blocks above the split limit, no more than needed.

        As `release_available_cached_blocks`; returns whether it may have been enough.
        """
        if self._config.max_split_size_bytes is None:
            return False
        limit = self._max_split_bytes
        wanted = max(size, limit)
        blocks = [row[2] for row in pool.free.get(stream, [])]
        index = next((i for i, block in enumerate(blocks) if block.size_bytes >= wanted), None)
        if index is not None and blocks[index].expandable is None:
            self._release_block(blocks[index])
            return True
        released = 0
        for block in reversed(blocks[:index]):
            if released >= wanted or block.size_bytes < limit:
                break
            if block.expandable is None:
                released += block.size_bytes
                self._release_block(block)
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Give back the segments free for longest (`garbage_collect_cached_blocks`)."""
        allowed = self._allowed_bytes or 0
        threshold = int(self._config.garbage_collection_ratio * allowed)
        wanted = self.reserved_bytes - threshold
        if wanted <= 0:
            return
        pool = self._pool(0, is_small=False)
        idle = [block for block in pool.all_free() if not block.is_split]
        total_age = sum(pool.n_searches - block.age_base for block in idle)
        n_idle = len(idle)
        reclaimed = 0
        while reclaimed < wanted and n_idle > 0:
            least_age = total_age / n_idle
            kept = []
            for block in idle:
                age = pool.n_searches - block.age_base
                if block.expandable is not None or age < least_age:
                    kept.append(block)
                    continue
                reclaimed += block.size_bytes
                total_age -= age
                n_idle -= 1
                self._release_block(block)
            if len(kept) == len(idle):
                return
            idle = kept

    def _alloc_expandable(self, pool: BlockPool, stream: int, size: int) -> Block | None:
        """Grow an expandable segment (`try_allocate_expandable_block`)."""
        block = self._find_growable(pool, stream, size)
        if not block.is_mapped and not self._map(block, min(block.size_bytes, size)):
            return None
        while block.size_bytes < size:
            following = block.next
            if following is None:
                raise AssertionError("A free block without room behind it was chosen to grow.")
            missing = min(size - block.size_bytes, following.size_bytes)
            if not self._map(following, missing):
                return None
            block = following
        pool.remove(block)
        return block

    def _find_growable(self, pool: BlockPool, stream: int, size: int) -> Block:
        """Lowest addresses with enough room, free or unmapped (`find_expandable_block`)."""
        for _, unmapped in pool.unmapped.get(stream, []):
            block = unmapped
            if block.prev is not None and not block.prev.is_allocated:
                block = block.prev
            if block.has_room(size):
                return block
        page_bytes = SMALL_SEGMENT_BYTES if pool.is_small else self._config.large_segment_bytes
        n_pages = -(-(self._device_bytes + self._device_bytes // 8) // page_bytes)
        address = self._reserve_addresses(n_pages * page_bytes)
        block = Block(address, n_pages * page_bytes, stream, pool, is_mapped=False)
        block.expandable = ExpandableRange(address, block.size_bytes, page_bytes)
        self._segment_addresses[address] = block
        pool.insert_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put pages behind the front of an unmapped block (`map_block`)."""
        expandable = block.expandable
        if expandable is None:
            raise AssertionError("Only expandable segments have unmapped blocks.")
        mapped_bytes = -(-size // expandable.page_bytes) * expandable.page_bytes
        if self.reserved_bytes + mapped_bytes > self._device_bytes:
            return False
        pool = block.pool
        address = block.address
        pool.remove_unmapped(block)
        if mapped_bytes < block.size_bytes:
            pool.insert_unmapped(block.cut(mapped_bytes))
        block.is_mapped = True
        self._merge_neighbours(block)
        pool.insert(block)
        self._account("segment_map", address, mapped_bytes, block.stream)
        return True

    def _unmap(self, block: Block) -> None:
        """Take the whole pages away from a free block (`unmap_block`)."""
        expandable = block.expandable
        if expandable is None:
            raise AssertionError("Only expandable segments can be unmapped.")
        page = expandable.page_bytes
        start = block.address - expandable.address
        first = -(-start // page) * page
        stop = (start + block.size_bytes) // page * page
        if first >= stop:
            return
        pool = block.pool
        pool.remove(block)
        if first > start:
            self._detach_front(block, first - start)
        if block.size_bytes > stop - first:
            pool.insert(block.cut(stop - first))
        block.is_mapped = False
        self._merge_neighbours(block)
        pool.insert_unmapped(block)
        self._account("segment_unmap", expandable.address + first, stop - first, block.stream)

    def _detach_front(self, block: Block, size: int) -> None:
        """Leave so many bytes before a block as a free block of their own."""
        front = Block(block.address, size, block.stream, block.pool)
        front.expandable = block.expandable
        front.prev = block.prev
        if front.prev is not None:
            front.prev.next = front
        else:
            self._segment_addresses[front.address] = front
        front.next = block
        block.prev = front
        block.address += size
        block.size_bytes -= size
        block.pool.insert(front)
