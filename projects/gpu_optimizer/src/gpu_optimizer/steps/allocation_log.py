"""Notes every allocation and free of tensors' storages, in order, with who and when."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from gpu_optimizer.types import CATEGORIES, PHASES, Category, MemoryTimeline, Phase

_ON_HOST = -1


@dataclass(frozen=True, slots=True)
class Place:
    """Who allocates, and in which part of the step."""

    module: int
    phase: Phase


@dataclass(slots=True)
class AllocationLog:
    """Grows while a step runs; becomes a timeline at the end."""

    _sizes: list[int] = field(default_factory=list)
    _block: list[int] = field(default_factory=list)
    _places: list[Place] = field(default_factory=list)
    _categories: list[Category | None] = field(default_factory=list)
    """One per block; None: not told yet."""
    _block_bytes: list[int] = field(default_factory=list)
    _live: dict[int, int] = field(default_factory=dict)
    """Address of a storage -> block."""
    _watchers: dict[int, weakref.ref[object]] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place(0, Phase.SETUP))
    """Where the program is now."""

    def see(self, tensors: Iterable[Tensor], category: Category | None = None) -> None:
        """Note the storages of tensors that have not been seen before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata  # noqa: SLF001 -- the storage's identity
            if address not in self._live and storage.nbytes():
                self._watch(storage, address)
                self._live[address] = self.allocate(storage.nbytes(), category)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out storages that are in the host's memory on a real run."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata  # noqa: SLF001
            if address not in self._live:
                self._watch(storage, address)
                self._live[address] = _ON_HOST

    def allocate(self, size_bytes: int, category: Category | None = None) -> int:
        """Note an allocation; returns its block."""
        block = len(self._block_bytes)
        self._block_bytes.append(size_bytes)
        self._categories.append(category)
        self._append(block, size_bytes)
        return block

    def free(self, block: int) -> None:
        """Note that a block is freed."""
        self._append(block, -self._block_bytes[block])

    def label(self, tensors: Iterable[Tensor], category: Category) -> None:
        """Say what tensors are for; the first label of a block stays."""
        for tensor in tensors:
            block = self.block_of(tensor)
            if block is not None:
                self.label_blocks([block], category)

    def label_blocks(self, blocks: Iterable[int], category: Category) -> None:
        """Say what blocks are for; the first label stays."""
        for block in blocks:
            self._categories[block] = self._categories[block] or category

    def block_of(self, tensor: Tensor) -> int | None:
        """Return the block a tensor lies in; None: it is not on the GPU or unknown."""
        block = self._live.get(tensor.untyped_storage()._cdata, _ON_HOST)  # noqa: SLF001
        return None if block == _ON_HOST else block

    def size_bytes(self, block: int) -> int:
        """Return how large a block is."""
        return self._block_bytes[block]

    def live_blocks(self, first: int = 0) -> list[int]:
        """Blocks of tensors alive now, from a given number on, that bear no label."""
        unlabelled = self._categories
        return [b for b in self._live.values() if b >= first and unlabelled[b] is None]

    @property
    def n_blocks(self) -> int:
        """How many allocations there have been."""
        return len(self._block_bytes)

    @property
    def n_events(self) -> int:
        """How many allocations and frees there have been."""
        return len(self._block)

    def timeline(self, modules: tuple[str, ...], module_types: tuple[str, ...]) -> MemoryTimeline:
        """Return all events; what nobody labelled was a temporary."""
        by_block = [CATEGORIES.index(each or Category.WORKSPACE) for each in self._categories]
        phases = {phase: index for index, phase in enumerate(PHASES)}
        order = self._order()
        block = np.asarray(self._block, np.int64)[order]
        return MemoryTimeline(
            size_bytes=np.asarray(self._sizes, np.int64)[order],
            block=block,
            module=np.asarray([place.module for place in self._places], np.int32)[order],
            phase=np.asarray([phases[place.phase] for place in self._places], np.int8)[order],
            category=np.asarray(by_block, np.int8)[block],
            modules=modules,
            module_types=module_types,
            stream=np.zeros(len(block), np.int32),
        )

    def _order(self) -> Int64[np.ndarray, "events"]:
        """Sort what is freed at once by block: hash tables inside PyTorch free in any order."""
        size_bytes = np.asarray(self._sizes, np.int64)
        allocations_before = np.cumsum(size_bytes > 0)
        return np.lexsort((np.where(size_bytes > 0, -1, self._block), allocations_before))

    def _append(self, block: int, size_bytes: int) -> None:
        self._sizes.append(size_bytes)
        self._block.append(block)
        self._places.append(self.place)

    def _watch(self, storage: object, address: int) -> None:
        self._watchers[address] = weakref.ref(storage, lambda _: self._gone(address))

    def _gone(self, address: int) -> None:
        block = self._live.pop(address)
        del self._watchers[address]
        if block != _ON_HOST:
            self.free(block)
