"""The forward pass of a checkpointed module, written down so that parts of it can be repeated.

PyTorch's own checkpointing runs a module's Python code again, up to the last tensor that was saved.
This one writes down the operations below autograd and repeats single ones of them, when a saved
tensor is asked for. So what the backward pass does not ask for is not computed (the block's output,
which the next block keeps anyway), results are freed one by one, batch norms do not count a batch
twice, and operations in place are told apart from others.

The first call of a module keeps everything until its end, and the cheapest cut through what was
seen decides what later calls keep. A call that turns out differently is still correct: what is not
foreseen is kept.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_optimizer.checkpointing.cuts import ForwardOperation, cheapest_cut
from gpu_optimizer.checkpointing.operations import (
    OperationFacts,
    operation_facts,
    updates_statistics,
)
from gpu_optimizer.checkpointing.values import (
    Look,
    Operation,
    Outside,
    RandomState,
    Scratch,
    Value,
    alias,
    copy_of_storage,
    geometry_of,
    tensors_of,
    version_of,
)

_CAST: Final = torch.ops.aten._to_copy.default  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class KeptResults:
    """What to do about each operation of a call, in order."""

    functions: tuple[OpOverload, ...]
    kept: tuple[frozenset[int], ...]
    """Which of its results are held."""
    repeated: tuple[bool, ...]


@dataclass(slots=True)
class _Place:
    """A storage that came into being within the call."""

    value: Value
    """What is in it now."""
    reserved: StorageWeakRef
    """As long as this is held no other storage gets the same address."""


@dataclass(slots=True)
class _Seen:
    """What a call did of which no plan knows."""

    operations: list[Operation] = field(default_factory=list)
    made: list[list[Value]] = field(default_factory=list)
    moved_bytes: list[int] = field(default_factory=list)
    repeatable: list[bool] = field(default_factory=list)
    kept_bytes: dict[Value, int] = field(default_factory=dict)

    def note(
        self,
        operation: Operation,
        made: list[tuple[Value, Tensor]],
        out: object,
        *,
        is_repeatable: bool,
    ) -> None:
        """Take note of an operation that has just run."""
        self.operations.append(operation)
        self.made.append([value for value, _ in made])
        self.repeatable.append(is_repeatable)
        read = sum(each.n_bytes for each in operation.reads())
        written = sum(each.numel() * each.element_size() for each in tensors_of(out))
        self.moved_bytes.append(read + written)
        for value, tensor in made:
            self.kept_bytes[value] = tensor.untyped_storage().nbytes()

    def choose(self) -> KeptResults:
        """Let go of what need not be kept, and say what that is."""
        values = [value for made in self.made for value in made]
        number = {value: position for position, value in enumerate(values)}
        cut = cheapest_cut(
            [
                ForwardOperation(
                    reads=tuple(
                        number[each.value]
                        for each in operation.reads()
                        if isinstance(each, Look) and each.value in number
                    ),
                    makes=tuple(number[value] for value in made),
                    moved_bytes=moved_bytes,
                    repeatable=is_repeatable and not operation.is_stale(),
                )
                for operation, made, moved_bytes, is_repeatable in zip(
                    self.operations, self.made, self.moved_bytes, self.repeatable, strict=True
                )
            ],
            [self.kept_bytes.get(value) for value in values],
            [position for value, position in number.items() if value.wanted],
        )
        for position, operation in enumerate(self.operations):
            is_repeated = position in cut.repeated
            for value in self.made[position]:
                if number[value] in cut.kept or not is_repeated:
                    value.operation = None
                if number[value] not in cut.kept:
                    value.tensor = None
            if not is_repeated:
                operation.forget()
        return KeptResults(
            functions=tuple(operation.func for operation in self.operations),
            kept=tuple(
                frozenset(
                    position for position, value in enumerate(made) if number[value] in cut.kept
                )
                for made in self.made
            ),
            repeated=tuple(position in cut.repeated for position in range(len(self.operations))),
        )


class Tape(TorchDispatchMode):
    """Sees the operations of one call of a module, below autograd, and the tensors it saves.

    Parameters
    ----------
    plan
        What to keep; None: find it out.
    may_repeat_products
        Asked at each matrix product, convolution or attention.
    """

    def __init__(self, plan: KeptResults | None, may_repeat_products: Callable[[], bool]) -> None:
        super().__init__()
        self._plan = plan
        self._may_repeat_products = may_repeat_products
        self._places: dict[int, _Place] = {}
        self._n_planned = 0
        self._n_operations = 0
        self._seen = None if plan else _Seen()

    @property
    def was_foreseen(self) -> bool:
        """Whether the call has gone as the plan says so far."""
        return self._seen is None

    def pack(self, tensor: Tensor) -> object:
        """Say what autograd is to hold instead of a tensor it saves."""
        value = self._value_of(tensor)
        if value is None:
            return tensor if tensor.is_leaf else tensor.detach()
        value.wanted = True
        return self._look(value, tensor)

    def finish(self, returned: Sequence[Tensor]) -> KeptResults | None:
        """End the call.

        Parameters
        ----------
        returned
            Tensors among the module's results; others hold on to them.

        Returns
        -------
        KeptResults or None
            What to keep in later calls; None if the call was not seen as a whole.
        """
        plan = None
        if self._seen:
            for tensor in returned:
                value = self._value_of(tensor)
                if value:
                    self._seen.kept_bytes[value] = 0
            plan = self._seen.choose()
        self._places.clear()
        self._seen = None
        return None if self._plan else plan

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation and write it down."""
        del types
        kwargs = kwargs or {}
        facts = operation_facts(func)
        if facts.is_view:
            return func(*args, **kwargs)
        if func is _CAST and self._value_of(args[0]) is None:
            # Autocast casts a weight once, for whoever comes first: not counted, always repeated.
            repeated, kept, noted = True, frozenset[int](), None
        else:
            repeated, kept = self._next(func)
            noted = self._seen
        overwritten = _overwritten(facts, args, kwargs)
        operation = self._written_down(func, facts, args, kwargs) if repeated else None
        self._save_from(overwritten)
        out = func(*args, **kwargs)
        made = self._made(out, overwritten, operation)
        for position, (value, tensor) in enumerate(made):
            if noted or position in kept:
                value.keep(tensor)
        if noted and operation:
            is_repeatable = self._is_repeatable(facts, kwargs, overwritten)
            noted.note(operation, made, out, is_repeatable=is_repeatable)
        return out

    def _next(self, func: OpOverload) -> tuple[bool, frozenset[int]]:
        """Look up whether the next operation may have to be repeated, and what of it is kept."""
        number, plan = self._n_planned, self._plan
        self._n_planned += 1
        if plan is None or self._seen:
            return True, frozenset()
        if number < len(plan.functions) and plan.functions[number] is func:
            return plan.repeated[number], plan.kept[number]
        self._seen = _Seen()
        return True, frozenset()

    def _value_of(self, tensor: Tensor) -> Value | None:
        place = self._places.get(tensor.untyped_storage()._cdata)  # noqa: SLF001
        return place.value if place else None

    def _look(self, value: Value, tensor: Tensor) -> Look:
        if value.tensor is None and value.operation is None:
            # Nobody foresaw that it is needed. It is still there, so it is kept.
            value.keep(tensor)
        return Look(value, *geometry_of(tensor), version_of(tensor))

    def _read(self, argument: Any) -> Any:  # noqa: ANN401 -- whatever operations take
        if isinstance(argument, Tensor):
            value = self._value_of(argument)
            if value is not None:
                value.n_readers += 1
                return self._look(value, argument)
            tensor = argument if argument.is_leaf else alias(argument)
            return Outside(tensor, version_of(tensor))
        if isinstance(argument, list | tuple):
            return [self._read(each) for each in argument]
        return argument

    def _written_down(
        self,
        func: OpOverload,
        facts: OperationFacts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Operation:
        read = [self._read(each) for each in args]
        if updates_statistics(facts, args):
            for position in facts.statistics:
                if isinstance(args[position], Tensor):
                    read[position] = Scratch(args[position])
        named = {name: self._read(each) for name, each in kwargs.items()}
        self._n_operations += 1
        operation = Operation(func, self._n_operations, read, named)
        if facts.is_random:
            operation.random = RandomState(_device_of(args, kwargs))
        return operation

    def _save_from(self, overwritten: list[Tensor]) -> None:
        """See to what is held of storages that are about to be changed."""
        for tensor in overwritten:
            value = self._value_of(tensor)
            if value is None or value.tensor is None:
                continue
            if value.operation is not None:
                value.tensor = None
                if self._seen:
                    self._seen.kept_bytes.pop(value, None)
            elif value.wanted or value.n_readers:
                value.tensor, value.is_kept = copy_of_storage(value.tensor), False
            else:
                value.tensor = None

    def _made(
        self, out: object, overwritten: list[Tensor], operation: Operation | None
    ) -> list[tuple[Value, Tensor]]:
        """Give the storages that changed, or came into being, their new values."""
        made = []
        for tensor in overwritten:
            before = self._value_of(tensor)
            if before is not None:
                after = Value(operation, before.geometry)
                self._places[tensor.untyped_storage()._cdata].value = after  # noqa: SLF001
                made.append((after, tensor))
                if operation:
                    operation.overwrites(before, after)
        for tensor in tensors_of(out):
            is_known = self._value_of(tensor) is not None or any(
                tensor is each for each in overwritten
            )
            value = None if is_known else Value(operation, geometry_of(tensor))
            if value:
                storage = tensor.untyped_storage()
                reserved = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._places[storage._cdata] = _Place(value, reserved)  # noqa: SLF001
                made.append((value, tensor))
            if operation:
                operation.results.append(weakref.ref(value) if value else None)
        return made

    def _is_repeatable(
        self, facts: OperationFacts, kwargs: dict[str, Any], overwritten: list[Tensor]
    ) -> bool:
        changes_outside = len(overwritten) > sum(
            self._value_of(each) is not None for each in overwritten
        )
        is_own = kwargs.get("generator") is None and not changes_outside
        is_cheap = not facts.is_product or self._may_repeat_products()
        return facts.is_repeatable and is_own and is_cheap


def unpack(held: object) -> Tensor:
    """Return the tensor for which `Tape.pack` gave something else to hold."""
    return held.get() if isinstance(held, Look) else cast(Tensor, held)


def _overwritten(
    facts: OperationFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    changed = [args[number] for number in facts.writes if number < len(args)]
    changed += [kwargs[name] for name in facts.writes_by_name if name in kwargs]
    flat = [one for each in changed for one in (each if isinstance(each, list) else [each])]
    return [each for each in flat if isinstance(each, Tensor)]


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    for tensor in tensors_of(args):
        return tensor.device
    return torch.device(kwargs.get("device") or "cpu")
