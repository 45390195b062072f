"""Which operations does one step of a training consist of, and what does each keep, without a GPU.

A recorder like that of `steps.recorder`, which in the last step also writes down what every
operation reads, allocates and computes, and for whom autograd saves which tensor.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

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
_TABLES: Final[Mapping[str, Mapping[str, type[np.generic]]]] = {
    "operation": {
        "phase": np.int8,
        "module": np.int32,
        "first_row": np.int64,
        "last_row": np.int64,
        "node": np.int64,
        "flops": np.int64,
        "moved_bytes": np.int64,
        "itemsize_bytes": np.int8,
        "is_product": np.bool_,
        "is_repeatable": np.bool_,
    },
    "call": {"module": np.int32, "first_operation": np.int64, "last_operation": np.int64},
    "use": {"block": np.int64, "operation": np.int64},
    "write": {"block": np.int64, "operation": np.int64},
    "save": {"block": np.int64, "operation": np.int64, "node": np.int64, "is_result": np.bool_},
}
"""Columns of a `StepGraph`, beside the operations' names."""


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
    tables = recorder.tables
    return StepGraph(
        recording=recording,
        first_row=recorder.first_row,
        operations=Operations(name=tuple(recorder.names), **tables["operation"].arrays()),
        calls=Calls(**tables["call"].arrays()),
        **tables["use"].arrays("use_"),
        **tables["write"].arrays("write_"),
        **tables["save"].arrays("save_"),
    )


class _Table:
    """Columns of a graph, while they grow."""

    def __init__(self, dtypes: Mapping[str, type[np.generic]]) -> None:
        self._dtypes = dtypes
        self.columns: dict[str, list[int]] = {name: [] for name in dtypes}

    def add(self, **row: int) -> None:
        """Append a row; it has a value for every column."""
        for name, column in self.columns.items():
            column.append(row[name])

    def arrays(self, prefix: str = "") -> dict[str, Any]:
        """Return the columns as arrays, by their names behind a prefix."""
        return {
            prefix + name: np.array(self.columns[name], dtype)
            for name, dtype in self._dtypes.items()
        }


class _GraphRecorder(StepRecorder):
    """Notes operations in the last step."""

    def __init__(self, workspaces: Workspaces) -> None:
        super().__init__(workspaces)
        self.names: list[str] = []
        self.tables = {name: _Table(dtypes) for name, dtypes in _TABLES.items()}
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
            node, nodes = _latest_node(), self.tables["operation"].columns["node"]
            # Inputs are saved before an operation runs, outputs after it; the node exists before.
            is_result = nodes[-1:] == [node]
            self.tables["save"].add(
                block=block, operation=len(nodes) - is_result, node=node, is_result=is_result
            )
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
        place = self._log.place
        if place.phase is Phase.FORWARD:
            written = {self._block(args[each]) for each in facts.writes if each < len(args)}
            for table, touched in (("use", blocks), ("write", written & blocks)):
                for block in touched:
                    self.tables[table].add(block=block, operation=len(self.names))
        self.names.append(_name(func))
        results = tensors_in(out)
        self.tables["operation"].add(
            phase=PHASES.index(place.phase),
            module=place.module,
            first_row=first_row,
            last_row=self._log.n_events,
            node=_node(place.phase),
            flops=operation_flops(func, args, kwargs or {}, out),
            moved_bytes=self._moved_bytes(func, read, results, first_block),
            itemsize_bytes=_itemsize_bytes(read or results),
            is_product=facts.is_product,
            is_repeatable=facts.is_repeatable,
        )
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
            calls, now = self.tables["call"], len(self.names)
            self._open_calls.append(len(calls.columns["module"]))
            calls.add(module=self._modules.stack[-1], first_operation=now, last_operation=now)

    def _leave(self, module: nn.Module, *results: object) -> None:
        super()._leave(module, *results)
        if self._open_calls:
            last = self.tables["call"].columns["last_operation"]
            last[self._open_calls.pop()] = len(self.names)


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
