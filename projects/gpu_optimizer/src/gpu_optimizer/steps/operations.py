"""Which operations does one step of a training consist of, and what does each keep, without a GPU.

A recorder like that of `steps.recorder`, which in the last step also writes down what every
operation reads, allocates and computes, and for whom autograd saves which tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks

from gpu_optimizer.checkpointing.operations import operation_facts
from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.kernels.workspaces import Workspaces, operation_flops, tensors_in
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import Prepare
from gpu_optimizer.steps.graphs import Calls, Operations, StepGraph
from gpu_optimizer.steps.recorder import N_STEPS, StepRecorder, run_recorded
from gpu_optimizer.types import PHASES, Phase

_NO_KERNELS = frozenset({"prim", "profiler"})
_NO_NODE = -1
_NO_BLOCK = -1
_LARGEST_NODE = 2**62
"""Nodes that accumulate gradients have the largest number there is."""


def record_graph(
    workload: Workload,
    target: CudaTarget | None = None,
    family: Family | None = None,
    prepare: Prepare | None = None,
) -> StepGraph:
    """Run a workload's step on fake tensors and write down its operations.

    Parameters
    ----------
    workload
        Model and how it is trained.
    target
        GPU whose kernels are assumed; a Hopper card by default.
    family
        Builds the model; None: the registered one of the workload's name.
    prepare
        Changes the model before its first step; see `build_step`.

    Raises
    ------
    UnknownNameError, InvalidModelError
        If there is no such workload.
    """
    recorder = _GraphRecorder(Workspaces(target or CudaTarget()))
    with saved_tensors_hooks(recorder.save, _unchanged):
        recording = run_recorded(recorder, workload, family, prepare)
    columns = recorder.columns
    return StepGraph(
        recording=recording,
        first_row=recorder.first_row,
        operations=columns.operations(),
        calls=columns.calls(),
        use_block=np.array(columns.use_block, np.int64),
        use_operation=np.array(columns.use_operation, np.int64),
        write_block=np.array(columns.write_block, np.int64),
        write_operation=np.array(columns.write_operation, np.int64),
        save_block=np.array(columns.save_block, np.int64),
        save_operation=np.array(columns.save_operation, np.int64),
        save_node=np.array(columns.save_node, np.int64),
        save_is_result=np.array(columns.save_is_result, np.bool_),
    )


@dataclass(slots=True)
class _Columns:
    """What a graph is made of, while it grows."""

    name: list[str] = field(default_factory=list)
    is_product: list[bool] = field(default_factory=list)
    is_repeatable: list[bool] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)
    module: list[int] = field(default_factory=list)
    first_row: list[int] = field(default_factory=list)
    last_row: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    moved_bytes: list[int] = field(default_factory=list)
    itemsize_bytes: list[int] = field(default_factory=list)
    call_module: list[int] = field(default_factory=list)
    call_first: list[int] = field(default_factory=list)
    call_last: list[int] = field(default_factory=list)
    use_block: list[int] = field(default_factory=list)
    use_operation: list[int] = field(default_factory=list)
    write_block: list[int] = field(default_factory=list)
    write_operation: list[int] = field(default_factory=list)
    save_block: list[int] = field(default_factory=list)
    save_operation: list[int] = field(default_factory=list)
    save_node: list[int] = field(default_factory=list)
    save_is_result: list[bool] = field(default_factory=list)

    def operations(self) -> Operations:
        """Return the operations."""
        return Operations(
            name=tuple(self.name),
            phase=np.array(self.phase, np.int8),
            module=np.array(self.module, np.int32),
            first_row=np.array(self.first_row, np.int64),
            last_row=np.array(self.last_row, np.int64),
            node=np.array(self.node, np.int64),
            flops=np.array(self.flops, np.int64),
            moved_bytes=np.array(self.moved_bytes, np.int64),
            itemsize_bytes=np.array(self.itemsize_bytes, np.int8),
            is_product=np.array(self.is_product, np.bool_),
            is_repeatable=np.array(self.is_repeatable, np.bool_),
        )

    def calls(self) -> Calls:
        """Return the calls of modules."""
        return Calls(
            module=np.array(self.call_module, np.int32),
            first_operation=np.array(self.call_first, np.int64),
            last_operation=np.array(self.call_last, np.int64),
        )


class _GraphRecorder(StepRecorder):
    """Notes operations in the last step."""

    def __init__(self, workspaces: Workspaces) -> None:
        super().__init__(workspaces)
        self.columns = _Columns()
        self._open_calls: list[int] = []

    @property
    def first_row(self) -> int:
        """Where the last step begins in the timeline."""
        return self._first_row_of_step

    @property
    def _noting(self) -> bool:
        return self._n_steps == N_STEPS - 1

    def save(self, tensor: Tensor) -> Tensor:
        """Note that autograd keeps a tensor."""
        block = self._block(tensor) if self._noting else _NO_BLOCK
        if block != _NO_BLOCK:
            columns, node = self.columns, _latest_node()
            # Inputs are saved before an operation runs, outputs after it; the node exists before.
            n_operations = len(columns.name)
            is_result = n_operations > 0 and columns.node[-1] == node
            columns.save_block.append(block)
            columns.save_operation.append(n_operations - is_result)
            columns.save_node.append(node)
            columns.save_is_result.append(is_result)
        return tensor

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation and note it."""
        facts = operation_facts(func)
        if not self._noting or facts.is_view or func.namespace in _NO_KERNELS:
            return super().__torch_dispatch__(func, types, args, kwargs)
        first_row, first_block = self._log.n_events, self._log.n_blocks
        read = tensors_in((args, kwargs))
        blocks = {self._block(tensor) for tensor in read} - {_NO_BLOCK}
        out = super().__torch_dispatch__(func, types, args, kwargs)
        columns, place = self.columns, self._log.place
        if place.phase is Phase.FORWARD:
            number = len(columns.name)
            columns.use_block.extend(blocks)
            columns.use_operation.extend([number] * len(blocks))
            written = {self._block(args[each]) for each in facts.writes if each < len(args)}
            changed = written & blocks
            columns.write_block.extend(changed)
            columns.write_operation.extend([number] * len(changed))
        columns.name.append(_name(func))
        columns.is_product.append(facts.is_product)
        columns.is_repeatable.append(facts.is_repeatable)
        columns.phase.append(PHASES.index(place.phase))
        columns.module.append(place.module)
        columns.first_row.append(first_row)
        columns.last_row.append(self._log.n_events)
        columns.node.append(_node(place.phase))
        columns.flops.append(operation_flops(func, args, kwargs or {}, out))
        results = tensors_in(out)
        columns.moved_bytes.append(self._moved_bytes(func, read, results, first_block))
        columns.itemsize_bytes.append(_itemsize_bytes(read or results))
        return out

    def _block(self, tensor: object) -> int:
        block = self._log.block_of(tensor) if isinstance(tensor, Tensor) else None
        return _NO_BLOCK if block is None else block

    def _moved_bytes(
        self, func: OpOverload, read: list[Tensor], results: list[Tensor], first_block: int
    ) -> int:
        """Count what is read and written; scratch memory goes both ways."""
        if _name(func).startswith("aten.empty"):
            return 0
        of_results = {self._block(tensor) for tensor in results}
        new = set(range(first_block, self._log.n_blocks)) - of_results
        scratch = sum(self._log.size_bytes(block) for block in new)
        return _sum_bytes(read) + _sum_bytes(results) + 2 * scratch

    def _enter(self, module: nn.Module, *inputs: object) -> None:
        super()._enter(module, *inputs)
        if self._noting and self._log.place.phase is not Phase.BACKWARD:
            self._open_calls.append(len(self.columns.call_module))
            self.columns.call_module.append(self._modules.stack[-1])
            self.columns.call_first.append(len(self.columns.name))
            self.columns.call_last.append(len(self.columns.name))

    def _leave(self, module: nn.Module, *results: object) -> None:
        super()._leave(module, *results)
        if self._open_calls:
            self.columns.call_last[self._open_calls.pop()] = len(self.columns.name)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _latest_node() -> int:
    next_node: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001
    return next_node - 1


def _node(phase: Phase) -> int:
    if phase is not Phase.BACKWARD:
        return _latest_node()
    node: Any = torch._C._current_autograd_node()  # noqa: SLF001
    if node is None:
        return _NO_NODE
    number: int = node._sequence_nr()  # noqa: SLF001
    return number if number < _LARGEST_NODE else _NO_NODE


@cache
def _name(func: OpOverload) -> str:
    return str(func._overloadpacket)  # noqa: SLF001


def _sum_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(
        min(each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in tensors
    )


def _itemsize_bytes(tensors: list[Tensor]) -> int:
    """Size of the largest tensor's values: what a matrix product calculates with."""
    largest = max(tensors, key=Tensor.numel, default=None)
    return 0 if largest is None else largest.element_size()
