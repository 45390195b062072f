"""Which tensors does one step of a model allocate and free, in order, without a GPU.

The step runs on fake tensors, which have shapes and storages but no values. Every storage is
followed from its first operation to its end; who allocated it is known from the modules that run
forward and, in the backward pass, from the number of the autograd node. CUDA's rules where they
differ from the CPU's: `kernels.semantics`; memory of its libraries: `kernels.workspaces`.
"""

import gc
from bisect import bisect_right
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_optimizer.kernels.attention import AttentionCall, AttentionKernel, CudaTarget
from gpu_optimizer.kernels.semantics import cuda_semantics
from gpu_optimizer.kernels.workspaces import Workspaces, forward_flops, tensors_in
from gpu_optimizer.layers.tables import layer_tree
from gpu_optimizer.models.family import Family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.allocation_log import AllocationLog, Place
from gpu_optimizer.steps.builder import Prepare, Step, build_step
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import Category, Phase
from shared_utils.machine import no_garbage_collection

_LIFT = torch.ops.aten.lift_fresh.default
_READ_VALUE = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001
_NO_BACKWARD = -1
# In the first step the optimizer has no state and libraries have no workspaces yet; from the second
# on they are all alike.
N_STEPS = 2
# Of a generation the first and the last tokens are run, the cache between them grows at once.
_N_NEW_TOKENS = 6
_N_PARTS = 2


def record_step(
    workload: Workload,
    target: CudaTarget | None = None,
    family: Family | None = None,
    prepare: Prepare | None = None,
) -> Recording:
    """Run a workload's step on fake tensors and write down its memory.

    Parameters
    ----------
    workload
        Model and how it is run.
    target
        GPU whose kernels are assumed; a Hopper card by default.
    family
        Builds the model; None: the registered one of the workload's name.
    prepare
        Changes the model before its first step, as a plan does; see `build_step`.

    Raises
    ------
    UnknownNameError, InvalidModelError
        If there is no such workload.
    """
    recorder = StepRecorder(Workspaces(target or CudaTarget()))
    return run_recorded(recorder, workload, family, prepare)


def run_recorded(
    recorder: "StepRecorder",
    workload: Workload,
    family: Family | None,
    prepare: Prepare | None = None,
) -> Recording:
    """Run a workload's step under a fresh recorder; parameters as for `record_step`."""
    gc.collect()
    semantics = cuda_semantics(recorder.target, recorder.attention)
    with no_garbage_collection(), FakeTensorMode(), semantics:
        skipped = max(workload.n_new_tokens - _N_NEW_TOKENS, 0)
        with _ReadableValues():
            step = build_step(
                _shortened(workload), torch.device("cpu"), family, prepare, n_skipped_tokens=skipped
            )
        recorder.run(step, N_STEPS)
        return recorder.recording(step.model)


def _shortened(workload: Workload) -> Workload:
    """Run two parts of a batch that is run in many: the others are like the second."""
    n_parts = workload.n_micro_batches
    if n_parts <= _N_PARTS:
        return workload
    batch_size = workload.batch_size // n_parts * _N_PARTS
    return replace(workload, batch_size=batch_size, n_micro_batches=_N_PARTS)


@dataclass(slots=True)
class _Modules:
    """Which module is running, forward or backward."""

    index: dict[int, int]
    """`id` of a module -> its number."""
    stack: list[int] = field(default_factory=list)
    _first_nodes: list[int] = field(default_factory=list)
    _modules: list[int] = field(default_factory=list)

    def enter(self, module: nn.Module) -> None:
        self.stack.append(self.index.get(id(module), 0))
        self._mark()

    def leave(self) -> None:
        self.stack.pop()
        self._mark()

    def of_node(self, sequence_number: int) -> int:
        """Return the module whose forward pass made an autograd node."""
        position = bisect_right(self._first_nodes, sequence_number) - 1
        return self._modules[position] if position >= 0 else 0

    def _mark(self) -> None:
        next_node: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001
        self._first_nodes.append(next_node)
        self._modules.append(self.stack[-1] if self.stack else 0)


class _ReadableValues(TorchDispatchMode):
    """Lets models read values of fake tensors while they are built, as YOLO does its strides."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation."""
        del types
        return _value(func, args) if func is _READ_VALUE else func(*args, **(kwargs or {}))


class StepRecorder(TorchDispatchMode):
    """Sees every operation below autograd."""

    def __init__(self, workspaces: Workspaces) -> None:
        super().__init__()
        self._workspaces = workspaces
        self._log = AllocationLog()
        self._modules = _Modules({})
        self._model: nn.Module | None = None
        self._kernels: Counter[tuple[AttentionKernel, AttentionCall]] = Counter()
        self._flops = np.zeros(0, np.int64)
        self._in_optimizer = False
        self._n_steps = 0
        self._first_of_step = 0
        self._first_row_of_step = 0
        self._first_recomputed = 0

    @property
    def target(self) -> CudaTarget:
        """The GPU whose kernels are assumed."""
        return self._workspaces.target

    def attention(self, kernel: AttentionKernel, call: AttentionCall) -> None:
        """Take note of a chosen kernel."""
        self._kernels[kernel, call] += 1

    def run(self, step: Step, n_steps: int) -> None:
        """Run the step a number of times."""
        self._model = step.model
        self._modules.index.update(
            (id(module), number) for number, module in enumerate(step.model.modules())
        )
        self._flops = np.zeros(len(self._modules.index), np.int64)
        self._see_setup(step)
        with ExitStack() as hooks:
            for handle in (
                register_module_forward_pre_hook(self._enter),
                register_module_forward_hook(self._leave, always_call=True),
                register_optimizer_step_pre_hook(self._before_optimizer),
                register_optimizer_step_post_hook(self._after_optimizer),
            ):
                hooks.callback(handle.remove)
            hooks.enter_context(self)
            for _ in range(n_steps):
                self._first_of_step = self._log.n_blocks
                self._first_row_of_step = self._log.n_events
                self._move(Phase.FORWARD)
                step.run()
                self._n_steps += 1

    def recording(self, model: nn.Module) -> Recording:
        """Return all that was seen."""
        named = list(model.named_modules())
        timeline = self._log.timeline(
            tuple(name for name, _ in named), tuple(type(each).__name__ for _, each in named)
        )
        return Recording(
            timeline=timeline,
            layers=layer_tree(timeline, self._flops, self._first_row_of_step),
            flops=int(self._flops.sum()),
            assumptions=self._assumptions(),
        )

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation and note what it allocates."""
        del types
        kwargs = kwargs or {}
        self._locate()
        backward = self._log.place.phase is Phase.BACKWARD
        for size_bytes in self._workspaces.persistent_bytes(func, args, backward=backward):
            self._log.allocate(size_bytes, Category.WORKSPACE)
        if func is _READ_VALUE:
            return _value(func, args)
        out = func(*args, **kwargs)
        if func is _LIFT:
            self._log.ignore(tensors_in(out))
        else:
            self._log.see(tensors_in(out))
        for scratch in self._workspaces.scratch_bytes(func, args, out):
            for block in [self._log.allocate(size_bytes) for size_bytes in scratch]:
                self._log.free(block)
        if self._log.place.phase is Phase.FORWARD and self._n_steps == 0:
            self._flops[self._log.place.module] += forward_flops(func, args, kwargs, out)
        return out

    def _see_setup(self, step: Step) -> None:
        for number, module in enumerate(step.model.modules()):
            self._log.place = Place(number, Phase.SETUP)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            self._log.see(own, Category.PARAMETER)
        self._log.place = Place(0, Phase.SETUP)
        self._log.see(step.inputs.values(), Category.INPUT)

    def _locate(self) -> None:
        """Find out where the program is, before an operation."""
        if self._in_optimizer:
            return
        if torch._C._current_graph_task_id() == _NO_BACKWARD:  # noqa: SLF001
            self._move(Phase.FORWARD)
            return
        if self._log.place.phase is not Phase.BACKWARD:
            kept = self._log.live_blocks(self._first_of_step)
            self._log.label_blocks(kept, Category.ACTIVATION)
            self._move(Phase.BACKWARD)
        node: Any = torch._C._current_autograd_node()  # noqa: SLF001
        if self._modules.stack:
            self._move(Phase.BACKWARD)
        elif node is not None and node.name() != "torch::autograd::AccumulateGrad":
            # Sums of gradients are done between two nodes, for the one before.
            module = self._modules.of_node(node._sequence_nr())  # noqa: SLF001
            self._log.place = Place(module, Phase.BACKWARD)

    def _move(self, phase: Phase) -> None:
        stack = self._modules.stack
        self._log.place = Place(stack[-1] if stack else 0, phase)

    def _enter(self, module: nn.Module, *_: object) -> None:
        if not self._modules.stack:
            self._first_recomputed = self._log.n_blocks
        self._modules.enter(module)

    def _leave(self, module: nn.Module, *_: object) -> None:
        self._modules.leave()
        if self._modules.stack:
            return
        if self._log.place.phase is Phase.BACKWARD:
            kept = self._log.live_blocks(self._first_recomputed)
            self._log.label_blocks(kept, Category.ACTIVATION)
        elif module is self._model and not torch.is_grad_enabled():
            self._log.label_blocks(self._log.live_blocks(), Category.OTHER)

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._in_optimizer = True
        self._log.place = Place(0, Phase.OPTIMIZER)
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        gradients = [each.grad for each in parameters if each.grad is not None]
        self._log.label(gradients, Category.GRADIENT)

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._log.label(tensors_in(list(optimizer.state.values())), Category.OPTIMIZER_STATE)
        self._in_optimizer = False

    def _assumptions(self) -> tuple[str, ...]:
        kernels = sorted({kernel for kernel, _ in self._kernels})
        return tuple(f"attention runs the {kernel} kernel" for kernel in kernels)


def _value(func: OpOverload, args: tuple[Any, ...]) -> object:
    """Read a tensor's single value; one, where a fake tensor has none."""
    try:
        return func(*args)
    except DataDependentOutputException:
        return 1.0 if args[0].is_floating_point() else 1
