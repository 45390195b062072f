"""Results of operations that are kept, or can be computed again when someone asks.

The objects refer to each other as the values depend on each other, and Python's reference counts do
the rest: a saved tensor holds its value, a value holds the operation it comes from, an operation
holds what it reads. When autograd lets go of a saved tensor, everything only it needed is freed.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gpu_optimizer.errors import GpuOptimizerError


class ChangedInputError(GpuOptimizerError):
    """What a region read was overwritten before the backward pass, so it cannot be repeated."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(
            f"A tensor of shape {shape} that a checkpointed module read was changed in place "
            "before the backward pass. Do not checkpoint this module, or use an operation that "
            "makes a new tensor."
        )
        self.shape = shape


Geometry = tuple[tuple[int, ...], tuple[int, ...], int]
"""Size, stride and offset in elements of the storage."""


class Value:
    """Content of one storage between two writes.

    Parameters
    ----------
    operation
        Computes it; None: it is kept, or it is not expected that anybody needs it.
    geometry
        Of the tensor that the storage was made for.
    """

    __slots__ = ("__weakref__", "geometry", "is_kept", "n_readers", "operation", "tensor", "wanted")

    def __init__(self, operation: "Operation | None", geometry: Geometry) -> None:
        self.operation = operation
        self.geometry = geometry
        self.tensor: Tensor | None = None
        """None: not there any more, or not yet."""
        self.is_kept = False
        """Whether the tensor is the forward pass's own, which others might change."""
        self.n_readers = 0
        """Operations to be repeated that read it and have not been."""
        self.wanted = False
        """Whether autograd saved it."""

    def keep(self, tensor: Tensor) -> None:
        """Hold on to the result itself."""
        held = alias(tensor)
        if geometry_of(held) != self.geometry:
            held = held.as_strided(*self.geometry)
        self.tensor, self.is_kept = held, True


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One view of a value's storage."""

    value: Value
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    version: int
    """What the counter of in-place changes said."""

    def get(self) -> Tensor:
        """Return the tensor; computes it if it must."""
        value = self.value
        if value.tensor is None:
            compute(value)
        base = value.tensor
        if base is None:
            raise RuntimeError("A checkpointed value is neither kept nor known how to compute.")
        if value.is_kept and version_of(base) != self.version:
            raise ChangedInputError(tuple(base.shape))
        return base.as_strided(self.size, self.stride, self.offset)

    @property
    def n_bytes(self) -> int:
        """Bytes that are looked at."""
        base = self.value.tensor
        return math.prod(self.size) * (base.element_size() if base is not None else 4)


@dataclass(frozen=True, slots=True, eq=False)
class Outside:
    """A tensor that was there before the region was entered."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        """Return the tensor, if it is what it was."""
        if self.is_stale:
            raise ChangedInputError(tuple(self.tensor.shape))
        return self.tensor

    @property
    def is_stale(self) -> bool:
        """Whether it was changed since."""
        return version_of(self.tensor) != self.version

    @property
    def n_bytes(self) -> int:
        """Bytes that are looked at."""
        return self.tensor.numel() * self.tensor.element_size()


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Stands for running statistics: a repeated batch norm has to update something."""

    tensor: Tensor

    def get(self) -> Tensor:
        """Return memory that may be overwritten."""
        return torch.empty_like(self.tensor)


class Operation:
    """A call that can be repeated."""

    __slots__ = ("args", "func", "kwargs", "number", "random", "results", "written")

    def __init__(
        self, func: OpOverload, number: int, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        self.func = func
        self.number = number
        self.args = args
        self.kwargs = kwargs
        self.results: list[weakref.ref[Value] | None] = []
        """One per tensor it returns; None: a look at a storage that another value stands for."""
        self.written: list[tuple[Value, weakref.ref[Value]]] = []
        """Values whose storages it changes, and those that come of it."""
        self.random: RandomState | None = None

    def reads(self) -> Iterator[Look | Outside]:
        """Go through the tensors it is given."""
        for each in (*self.args, *self.kwargs.values()):
            for one in each if isinstance(each, list) else (each,):
                if isinstance(one, Look | Outside):
                    yield one

    def overwrites(self, before: Value, after: Value) -> None:
        """Say that the call changes a storage."""
        self.written.append((before, weakref.ref(after)))

    def is_stale(self) -> bool:
        """Whether something it is given from outside was changed since."""
        return any(each.is_stale for each in self.reads() if isinstance(each, Outside))

    def forget(self) -> None:
        """Let go of the arguments."""
        for each in self.reads():
            if isinstance(each, Look):
                each.value.n_readers -= 1
        self.args, self.kwargs, self.written = [], {}, []

    def run(self) -> None:
        """Repeat the call and give its results to the values that are still asked for."""
        bases = {before: _writable(before) for before, _ in self.written}
        args = [_resolved(each, bases) for each in self.args]
        kwargs = {name: _resolved(each, bases) for name, each in self.kwargs.items()}
        with self.random or nullcontext():
            returned = self.func(*args, **kwargs)
        for tensor, result in zip(tensors_of(returned), self.results, strict=True):
            _give(result() if result else None, tensor)
        for before, result in self.written:
            _give(result(), bases[before])
        self.forget()


def _writable(value: Value) -> Tensor:
    """Return a storage that a call may change: the value's own if nobody else reads it."""
    base = value.tensor
    if base is None:
        raise RuntimeError("A checkpointed value was overwritten before it was computed.")
    if value.n_readers > 1 or value.wanted or value.is_kept:
        return copy_of_storage(base)
    value.tensor = None
    return base


def _give(value: Value | None, tensor: Tensor) -> None:
    if value is not None:
        if value.tensor is None:
            value.tensor, value.is_kept = tensor, False
        value.operation = None


def _resolved(each: Any, bases: dict[Value, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(each, list):
        return [_resolved(one, bases) for one in each]
    if isinstance(each, Look) and each.value in bases:
        return bases[each.value].as_strided(each.size, each.stride, each.offset)
    return each.get() if isinstance(each, Look | Outside | Scratch) else each


def compute(wanted: Value) -> None:
    """Run what a value depends on, each operation once, in the order of the forward pass."""
    found: dict[int, Operation] = {}
    stack = [wanted]
    while stack:
        value = stack.pop()
        operation = value.operation
        if value.tensor is not None or operation is None or id(operation) in found:
            continue
        found[id(operation)] = operation
        stack += [each.value for each in operation.reads() if isinstance(each, Look)]
    with torch.no_grad(), _no_autocast():
        for operation in sorted(found.values(), key=lambda each: each.number):
            operation.run()


def _no_autocast() -> AbstractContextManager[object]:
    """Casts are operations of their own and are repeated as such."""
    off = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            off.enter_context(torch.autocast(device, enabled=False))
    return off


class RandomState:
    """The generator's state at a moment; as a context it holds, and is put back afterwards."""

    __slots__ = ("_device", "_now", "_then")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._then = self._read()
        self._now = self._then

    def __enter__(self) -> None:
        self._now = self._read()
        self._write(self._then)

    def __exit__(self, *_: object) -> None:
        self._write(self._now)

    def _read(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def _write(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


def alias(tensor: Tensor) -> Tensor:
    """Return the same memory without its history, with the same counter of changes."""
    # As selective checkpointing of PyTorch does: below autograd a plain detach would start a
    # counter of its own.
    with torch._C._SetExcludeDispatchKeyGuard(  # noqa: SLF001
        torch._C.DispatchKey.ADInplaceOrView,  # noqa: SLF001
        False,
    ):
        return tensor.detach()


def copy_of_storage(base: Tensor) -> Tensor:
    """Return a tensor like another in a storage of its own, with all that is in the storage."""
    n_elements = base.untyped_storage().nbytes() // base.element_size()
    everything = base.as_strided((n_elements,), (1,), 0).clone()
    return everything.as_strided(*geometry_of(base))


def geometry_of(tensor: Tensor) -> Geometry:
    """Say where in its storage a tensor lies."""
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def version_of(tensor: Tensor) -> int:
    """Return how often the memory was changed in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def tensors_of(returned: object) -> Sequence[Tensor]:
    """List the tensors among what an operation returned."""
    if isinstance(returned, Tensor):
        return (returned,)
    if isinstance(returned, list | tuple):
        return [each for each in returned if isinstance(each, Tensor)]
    return ()
