"""What autograd holds in place of the tensors that a forward pass saves.

Every forward pass is a `StepSaves`. It numbers the large storages that are saved, counts the ticks
(see `offload.schedule`) and at each of them lets go of storages or brings some back.

Hooks switch off PyTorch's check that a saved tensor was not changed afterwards; it is done here
instead, since copies would only hide such a mistake.
"""

import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from gpu_optimizer.errors import GpuOptimizerError
from gpu_optimizer.offload.links import Clock, Link, Parcel

_INT16_BOUND: Final = 1 << 15
_PLAIN_TYPES: Final = frozenset({Tensor, torch.nn.Parameter, FakeTensor})


class ChangedTensorError(GpuOptimizerError, RuntimeError):
    """A tensor needed for gradients was changed in place after it was saved."""

    def __init__(self, shape: tuple[int, ...], saved: int, now: int) -> None:
        super().__init__(
            f"A tensor of shape {list(shape)} that is needed for the gradients was changed by an "
            f"in-place operation: it is at version {now}, saved was version {saved}."
        )


@dataclass(frozen=True, slots=True)
class TickActions:
    """What is due at a tick, as numbers of storages."""

    release: tuple[int, ...] = ()
    fetch: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What a forward pass offloads, and when."""

    offloads: Callable[[int, bool], bool]
    """Whether a storage is offloaded, asked when it is saved first: its number, and whether a
    chosen module is running."""
    actions: Mapping[int, TickActions] | None
    """By tick; None: no schedule, a window of copies under way instead."""
    window_bytes: int
    """How much may be on its way at once, without a schedule."""
    valve_ratio: float
    """Part of the device's memory; once tensors occupy more, everything is offloaded."""
    look_each_bytes: int
    """How much is saved between two looks at how full the device is: asking takes time."""


@dataclass(slots=True)
class StepRecord:
    """What happened in a step, to schedule the next ones."""

    size_bytes: list[int] = field(default_factory=list)
    """Of each storage, in the order of saving; as all by number."""
    saved: list[tuple[int, int]] = field(default_factory=list)
    """First and last tick of saving."""
    used: dict[int, int] = field(default_factory=dict)
    """Number -> tick of the first use."""
    in_region: list[bool] = field(default_factory=list)
    """Whether a chosen module was running."""
    away_bytes: list[int] = field(default_factory=list)
    """Not on the device, after each tick."""
    memory_peaks: list[int] = field(default_factory=list)
    """Most memory allocated before each tick, since the one before; only if memory is recorded."""
    forward_end: int = -1
    n_ticks: int = 0
    clock: Clock | None = None
    """Marked before and after what is done at each tick; None: memory is recorded instead.
    Asking for the memory takes so long that times would be wrong."""

    @property
    def in_regions(self) -> frozenset[int]:
        """Numbers of the storages that were saved while a chosen module was running."""
        return frozenset(number for number, inside in enumerate(self.in_region) if inside)

    def same_as(self, other: "StepRecord") -> bool:
        """Whether two steps saved and used the same storages in the same order."""
        return (
            self.n_ticks == other.n_ticks
            and self.forward_end == other.forward_end
            and self.size_bytes == other.size_bytes
            and self.saved == other.saved
            and self.used == other.used
        )


class _Kept(NamedTuple):
    """A tensor that stays."""

    tensor: Tensor
    version: int
    number: int
    """Of its storage; -1: too small to be counted, or not an activation."""


class _Lent(NamedTuple):
    """A tensor whose storage is offloaded."""

    storage: "_Storage"
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Narrowed(NamedTuple):
    """Indices, held in fewer bits."""

    held: "_Kept | _Lent"
    dtype: torch.dtype


class _Storage:
    """A storage that is offloaded, from its first saving to its last use."""

    __slots__ = (
        "__weakref__", "away", "changed", "flat", "has_left", "link", "number", "parcel",
        "reference", "size_bytes", "version",
    )  # fmt: skip

    def __init__(self, number: int, flat: Tensor, parcel: Parcel, link: Link) -> None:
        self.link = link
        self.parcel = parcel
        self.flat: Tensor | None = flat
        self.number = number
        self.size_bytes = parcel.size_bytes
        self.version = flat._version  # noqa: SLF001
        self.changed = False
        self.reference = StorageWeakRef(flat.untyped_storage())  # type: ignore[no-untyped-call]
        self.away = False
        """Not on the device, and not on its way back."""
        self.has_left = False
        """At any time."""

    def let_go(self) -> bool:
        """Free the device's memory, once; returns whether anything was done.

        What is on its way back stays: its memory would be used for something else while the copy
        still writes to it.
        """
        if self.flat is None or self.has_left:
            return False
        self.changed |= self.flat._version != self.version  # noqa: SLF001
        self.link.let_go(self.parcel)
        self.flat = None
        self.away = self.has_left = True
        return True

    def fetch(self) -> bool:
        """Begin to bring it back; returns whether anything was done."""
        if not self.away:
            return False
        self.flat = self.link.fetch(self.parcel)
        self.version = self.flat._version  # noqa: SLF001
        self.away = False
        return True

    def use(self) -> Tensor:
        """Return the storage as one row, ready to be read."""
        self.fetch()
        self.link.arrive(self.parcel)
        flat = self.flat
        if flat is None:
            raise RuntimeError("a fetched storage has no memory")
        if self.changed or flat._version != self.version:  # noqa: SLF001
            raise ChangedTensorError(tuple(flat.shape), self.version, flat._version)  # noqa: SLF001
        return flat

    def __del__(self) -> None:
        """Free both copies; one that is still being made is waited for first."""
        self.link.discard(self.parcel)
        self.flat = None


class StepSaves:
    """One forward pass and its backward pass.

    Parameters
    ----------
    link
        To the host.
    policy
        What is offloaded.
    skipped
        Identities of storages that stay: parameters, buffers, inputs.
    min_bytes
        Smaller storages stay.
    record
        Is filled; None: nothing is written down.
    """

    def __init__(
        self,
        link: Link,
        policy: Policy,
        skipped: Collection[int],
        min_bytes: int,
        record: StepRecord | None = None,
    ) -> None:
        self.record = record
        self.n_ticks = 0
        self.n_storages = 0
        self.offloaded_bytes = 0
        self.not_freed: set[int] = set()
        """Numbers of offloaded storages that somebody else keeps on the device."""
        self.in_region = 0
        """How many chosen modules are running, one inside another."""
        self.index_bound = 0
        """Indices saved now are below it; 0: they may be anything."""
        self._link, self._policy, self._min_bytes = link, policy, min_bytes
        self._skipped = skipped
        self._by_key: dict[int, _Storage | int] = {}
        self._versions: dict[int, int] = {}
        self._moved: dict[int, weakref.ref[_Storage]] = {}
        self._under_way: deque[_Storage] = deque()
        self._under_way_bytes = 0
        self._away_bytes = 0
        self._seen_bytes = 0
        self._valve_open = False

    def pack(self, tensor: Tensor) -> _Kept | _Lent | _Narrowed:
        """Return what autograd holds for a tensor."""
        if tensor.dtype is torch.int64 and 0 < self.index_bound <= _INT16_BOUND:
            return _Narrowed(self._pack(tensor.to(torch.int16)), tensor.dtype)
        return self._pack(tensor)

    def _pack(self, tensor: Tensor) -> _Kept | _Lent:
        version = tensor._version  # noqa: SLF001
        if type(tensor) not in _PLAIN_TYPES or tensor.layout is not torch.strided:
            return _Kept(tensor, version, -1)
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()
        if size_bytes < self._min_bytes or storage._cdata in self._skipped:  # noqa: SLF001
            return _Kept(tensor, version, -1)
        return self._pack_large(tensor, storage._cdata, size_bytes)  # noqa: SLF001

    def unpack(self, held: _Kept | _Lent | _Narrowed) -> Tensor:
        """Return the tensor that autograd holds something for."""
        if isinstance(held, _Narrowed):
            return self._unpack(held.held).to(held.dtype)
        return self._unpack(held)

    def _unpack(self, held: _Kept | _Lent) -> Tensor:
        if isinstance(held, _Kept):
            tensor, version, number = held
            if tensor._version != version:  # noqa: SLF001
                raise ChangedTensorError(tuple(tensor.shape), version, tensor._version)  # noqa: SLF001
            if number >= 0:
                self._tick(number)
                self._end_tick()
            return tensor
        storage = held.storage
        self._tick(storage.number)
        if self._policy.actions is None:
            self._look_ahead(storage.number)
        self._fetch(storage)
        flat = storage.use()
        self._end_tick()
        typed = flat if flat.dtype == held.dtype else flat.view(held.dtype)
        return typed.as_strided(held.size, held.stride, held.offset)

    def end_forward(self) -> None:
        """The forward pass is over: nothing more is saved."""
        if self.record is not None:
            self.record.forward_end = self.n_ticks
        self._tick()
        self._let_go_down_to(0)
        self._end_tick()
        for number, reference in self._moved.items():
            storage = reference()
            if storage is not None and not storage.reference.expired():  # type: ignore[no-untyped-call]
                self.not_freed.add(number)
        # From here on autograd alone keeps what is still needed.
        self._by_key.clear()
        self._under_way.clear()

    def _pack_large(self, tensor: Tensor, key: int, size_bytes: int) -> _Kept | _Lent:
        version = tensor._version  # noqa: SLF001
        known = self._by_key.get(key)
        if known is not None and self._versions[key] != version:
            # Changed since: what was saved before is of no use, or was never needed.
            known = None
        if known is None:
            known = self._first_saving(tensor, key, size_bytes)
        number = known if isinstance(known, int) else known.number
        if self.record is not None:
            first, _ = self.record.saved[number]
            self.record.saved[number] = (first, self.n_ticks)
            self.record.in_region[number] |= self.in_region > 0
        self._tick()
        if self._policy.actions is None or self._valve_open:
            self._let_go_down_to(self._policy.window_bytes)
        self._end_tick()
        if isinstance(known, int):
            return _Kept(tensor, version, number)
        offset = int(tensor.storage_offset())
        return _Lent(known, tensor.dtype, tensor.size(), tensor.stride(), offset)

    def _first_saving(self, tensor: Tensor, key: int, size_bytes: int) -> _Storage | int:
        number = self.n_storages
        self.n_storages += 1
        self._versions[key] = tensor._version  # noqa: SLF001
        if self.record is not None:
            self.record.size_bytes.append(size_bytes)
            self.record.saved.append((self.n_ticks, self.n_ticks))
            self.record.in_region.append(False)
        self._by_key[key] = number
        if not self._wanted(number, size_bytes) or size_bytes % tensor.dtype.itemsize:
            return number
        flat = tensor.as_strided((size_bytes // tensor.dtype.itemsize,), (1,), 0)
        parcel = self._link.send(flat)
        if parcel is None:
            return number
        storage = _Storage(number, flat, parcel, self._link)
        self.offloaded_bytes += size_bytes
        self._by_key[key] = storage
        self._moved[number] = weakref.ref(storage)
        self._under_way.append(storage)
        self._under_way_bytes += size_bytes
        return storage

    def _wanted(self, number: int, size_bytes: int) -> bool:
        self._seen_bytes += size_bytes
        if self._seen_bytes >= self._policy.look_each_bytes and not self._valve_open:
            self._seen_bytes = 0
            self._valve_open = self._link.allocated_ratio() > self._policy.valve_ratio
        return self._valve_open or self._policy.offloads(number, self.in_region > 0)

    def _tick(self, used: int = -1) -> None:
        """Do what is due at this point of the program."""
        tick = self.n_ticks
        self.n_ticks = tick + 1
        if self.record is not None:
            self._note(self.record, tick, used)
        actions = self._policy.actions
        due = actions.get(tick) if actions is not None else None
        if due is not None:
            for number in due.release:
                self._act(number, self._let_go)
            for number in due.fetch:
                self._act(number, self._fetch)

    def _end_tick(self) -> None:
        if self.record is not None:
            self.record.away_bytes.append(self._away_bytes)
            if self.record.clock is not None:
                self.record.clock.mark()

    def _note(self, record: StepRecord, tick: int, used: int) -> None:
        record.n_ticks = self.n_ticks
        if used >= 0:
            record.used.setdefault(used, tick)
        if record.clock is not None:
            record.clock.mark()
        elif (peak := self._link.memory_peak_bytes()) is not None:
            record.memory_peaks.append(peak)

    def _act(self, number: int, action: Callable[["_Storage"], None]) -> None:
        reference = self._moved.get(number)
        storage = None if reference is None else reference()
        if storage is not None:
            action(storage)

    def _let_go(self, storage: _Storage) -> None:
        if storage.let_go():
            self._away_bytes += storage.size_bytes

    def _fetch(self, storage: _Storage) -> None:
        if storage.fetch():
            self._away_bytes -= storage.size_bytes

    def _let_go_down_to(self, window_bytes: int) -> None:
        while self._under_way and self._under_way_bytes > window_bytes:
            storage = self._under_way.popleft()
            self._under_way_bytes -= storage.size_bytes
            self._let_go(storage)

    def _look_ahead(self, number: int) -> None:
        """Begin to fetch what was saved before a storage, as much as the window allows."""
        ahead_bytes = 0
        for earlier in range(number - 1, -1, -1):
            reference = self._moved.get(earlier)
            storage = None if reference is None else reference()
            if storage is None:
                continue
            ahead_bytes += storage.size_bytes
            if ahead_bytes > self._policy.window_bytes:
                return
            self._fetch(storage)
