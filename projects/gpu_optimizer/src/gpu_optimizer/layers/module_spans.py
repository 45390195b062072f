"""Which module of a model is running, forward or backward, told by a label that changes with it.

`ModuleSpans` calls a function with a short text whenever the running module changes; what the
function does with it makes the tool: name the allocations that follow, take the time, or nothing,
where only the current place is asked for.

Modules are followed by a function put in the place of their `forward`, which costs less than a
microsecond per call, a tenth of what a pair of PyTorch's hooks takes; the backward pass by hooks of
autograd nodes. What is inside of a module that `torch.compile` or TorchScript runs is not seen.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gpu_optimizer.types import Category, Phase

Mark = Callable[[str], object]
Clock = Callable[[], int]

_FORWARD: Final = "f"
_RECOMPUTED: Final = "r"
_BACKWARD: Final = "b"
_SETUP: Final = "s0"
_OPTIMIZER: Final = "o0"
_PHASES: Final = {
    "f": Phase.FORWARD,
    "r": Phase.BACKWARD,
    "b": Phase.BACKWARD,
    "s": Phase.SETUP,
    "o": Phase.OPTIMIZER,
}
_MAX_RECURRING: Final = 4000
"""Notes of inputs and gradients that are kept: of two thousand steps, a few kilobytes each."""
_PLAIN: Final = frozenset({Tensor, nn.Parameter})
_NO_BACKWARD: Final = -1
_NO_NUMBER: Final = (1 << 64) - 1
"""Sequence number of the nodes that accumulate gradients."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a label stands for."""

    module: int
    """Number in the order of `model.modules()`; 0: the model itself, or none."""
    phase: Phase
    recomputed: bool = False
    """Whether it is a forward pass within the backward pass, as checkpointing makes it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where tensors of one category were at one moment."""

    moment: int
    """What the clock said."""
    category: Category
    addresses: tuple[int, ...]
    modules: tuple[int, ...] | None = None
    """Number of the module each belongs to; None: of the one that allocated it."""


class ModuleSpans:
    """Follows a model while it runs inside the ``with`` block.

    Parameters
    ----------
    model
        Run in eager mode, by one thread at a time.
    mark
        Called with a new label, on the thread on which it holds.
    clock
        Tells moments apart; for a tracer the number of allocations so far.
    every_node
        Whether the backward pass is followed node by node. Otherwise by blocks, that is by modules
        that have submodules and by leaves among such: what happens in a leaf inside of a block
        counts as the block. Each hook of a node costs from three to ten microseconds.
    """

    def __init__(
        self, model: nn.Module, mark: Mark, clock: Clock = int, *, every_node: bool = False
    ) -> None:
        self._model = model
        self._mark = mark
        self._clock = clock
        self._every_node = every_node
        self._modules = list(model.modules())
        self._followed = _followed_backward(model)
        self._hooks = ExitStack()
        self._seen_nodes: set[int] = set()
        self._in_backward = False
        self._n_states = 0
        self._owner = {id(tensor): number for tensor, number in _owned(model)}
        self.label = ""
        """The current one."""
        self.failed_at = ""
        """Label that held when memory ran out; empty: it did not."""
        self._lasting: list[Sighting] = []
        self._recurring: deque[Sighting] = deque(maxlen=_MAX_RECURRING)
        self.keeps_graph = False
        """Whether the model was last called with gradients enabled."""
        self.step_start: int | None = None
        """What the clock said when the model itself was last called; None: it was not."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Qualified names by number; the model itself is empty."""
        return tuple(name for name, _ in self._model.named_modules())

    @property
    def module_types(self) -> tuple[str, ...]:
        """Class names by number."""
        return tuple(type(each).__name__ for each in self._modules)

    def __enter__(self) -> "ModuleSpans":  # noqa: PYI034 -- the checker of shapes refuses Self
        self.see_model()
        self._set(_SETUP)
        with ExitStack() as hooks:
            hidden = _compiled(self._model)
            for number, module in enumerate(self._modules):
                if module not in hidden:
                    hooks.callback(_replace_forward(module, self._traced(number, module)))
            for handle in (
                register_optimizer_step_pre_hook(self._before_optimizer),
                register_optimizer_step_post_hook(self._after_optimizer),
            ):
                hooks.callback(handle.remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._mark("")

    @property
    def in_backward(self) -> bool:
        """Whether a backward pass is under way, or was when an exception ended it."""
        return self._in_backward

    def span(self, label: str) -> Span:
        """What a label stands for; the empty one is that of a thread that never had one."""
        if not label:
            return Span(0, Phase.BACKWARD)
        kind, number = label[0], label[1:]
        # A label may be someone else's, or one that an earlier tracer left on another thread.
        if kind not in _PHASES or not number.isdecimal() or int(number) >= len(self._modules):
            return Span(0, Phase.SETUP)
        return Span(int(number), _PHASES[kind], recomputed=kind == _RECOMPUTED)

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Where known tensors were; of inputs and gradients the last few thousand times."""
        return (*self._lasting, *self._recurring)

    def see_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Note where an optimizer's state is now."""
        leaves = torch.utils._pytree.tree_leaves(list(optimizer.state.values()))  # noqa: SLF001
        state = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._lasting.append(self._sight(Category.OPTIMIZER_STATE, state))

    def _set(self, label: str) -> None:
        self.label = label
        self._mark(label)

    def see_model(self) -> None:
        """Note where the model's parameters, buffers and gradients are now."""
        owned = list(_owned(self._model))
        gradients = [(each.grad, number) for each, number in owned if each.grad is not None]
        self._lasting.append(self._sight_owned(Category.PARAMETER, owned))
        self._lasting.append(self._sight_owned(Category.GRADIENT, gradients))

    def _sight(self, category: Category, tensors: Iterable[Tensor]) -> Sighting:
        addresses = tuple([part.data_ptr() for tensor in tensors for part in _parts(tensor)])
        return Sighting(self._clock(), category, addresses)

    def _sight_owned(self, category: Category, owned: list[tuple[Tensor, int]]) -> Sighting:
        parts = [(part, number) for tensor, number in owned for part in _parts(tensor)]
        addresses = tuple([part.data_ptr() for part, _ in parts])
        modules = tuple([number for _, number in parts])
        return Sighting(self._clock(), category, addresses, modules)

    def _traced(self, number: int, module: nn.Module) -> Callable[..., Any]:
        """Put marks around a module's forward function."""
        forward = module.forward
        label, recomputed = f"{_FORWARD}{number}", f"{_RECOMPUTED}{number}"
        watched = self._every_node or module in self._followed
        enter = functools.partial(self._enter_backward, f"{_BACKWARD}{number}")
        is_model = number == 0
        mark = self._mark

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any module's own signature
            before = self.label
            first_node = _next_node() if watched else 0
            if is_model and self._starts():
                self._recurring.append(
                    self._sight(Category.INPUT, _tensors((*args, *kwargs.values())))
                )
            now = recomputed if self._in_backward else label
            self.label = now
            mark(now)
            try:
                out = forward(*args, **kwargs)
            except torch.OutOfMemoryError:
                self.failed_at = self.failed_at or self.label
                raise
            finally:
                if is_model and not self._in_backward:
                    # The loss is computed next, if there is to be one.
                    before = label if torch.is_grad_enabled() else _SETUP
                self.label = before
                mark(before)
            if watched:
                self._watch(enter, out, first_node)
            return out

        return run

    def _starts(self) -> bool:
        """Begin a forward pass, unless the backward pass recomputes it."""
        if torch._C._current_graph_task_id() != _NO_BACKWARD:  # noqa: SLF001
            return False
        # A backward pass that ended in an exception left its mark.
        self._in_backward = False
        self._seen_nodes.clear()
        self.failed_at = ""
        self.keeps_graph = torch.is_grad_enabled()
        self.step_start = self._clock()
        return True

    def _watch(self, enter: Callable[[object], None], out: object, first_node: int) -> None:
        """Let the backward pass tell when it comes to the nodes that a module made."""
        pending = [tensor.grad_fn for tensor in _tensors((out,))]
        while pending:
            node = pending.pop()
            if node is None:
                continue
            sequence_number = _number(node)
            if sequence_number == _NO_NUMBER or sequence_number in self._seen_nodes:
                continue
            if sequence_number < first_node:
                continue
            self._seen_nodes.add(sequence_number)
            node.register_prehook(enter)
            if self._every_node:
                pending += [following for following, _ in node.next_functions]

    def _enter_backward(self, label: str, _: object) -> None:
        if not self._in_backward:
            self._in_backward = True
            self._seen_nodes.clear()
            engine = torch.autograd.Variable._execution_engine  # noqa: SLF001
            engine.queue_callback(self._leave_backward)
        if self.label != label:
            self._set(label)

    def _leave_backward(self) -> None:
        self._in_backward = False
        self.label = f"{_FORWARD}0"
        # The thread keeps this label until its next backward pass, for the gradient of the loss.
        self._mark(f"{_BACKWARD}0")

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._set(_OPTIMIZER)
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        found = [(each.grad, self._owner.get(id(each), 0)) for each in parameters]
        gradients = [(gradient, number) for gradient, number in found if gradient is not None]
        self._recurring.append(self._sight_owned(Category.GRADIENT, gradients))

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._set(_SETUP)
        # Looking through the state takes long; it comes into being in the first step.
        if len(optimizer.state) != self._n_states:
            self._n_states = len(optimizer.state)
            self.see_state(optimizer)


def _next_node() -> int:
    """Sequence number of the next autograd node that this thread makes."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001
    return number


def _number(node: Any) -> int:  # noqa: ANN401 -- the declared class lacks the method
    number: int = node._sequence_nr()  # noqa: SLF001
    return number


def _owned(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Parameters and buffers, each with the number of the first module that has it."""
    seen: set[int] = set()
    for number, module in enumerate(model.modules()):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor, number


def _parts(tensor: Tensor) -> list[Tensor]:
    """Tensors with memory of their own that a tensor consists of, quantized ones of several."""
    if type(tensor) in _PLAIN:
        return [tensor] if tensor.layout == torch.strided else []
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _followed_backward(model: nn.Module) -> set[nn.Module]:
    """Modules that have submodules, the model's own leaves, and leaves among many such modules."""
    followed: set[nn.Module] = set()
    for module in model.modules():
        children = list(module.children())
        n_blocks = sum(next(child.children(), None) is not None for child in children)
        if children:
            followed.add(module)
        # In a layer of a transformer, but not beside the one branch of a residual block.
        if module is model or 2 * n_blocks >= len(children) - n_blocks:
            followed.update(children)
    return followed


def _compiled(model: nn.Module) -> set[nn.Module]:
    """Modules whose code is not run as it stands; to change it would make them compile again."""
    hidden: set[nn.Module] = set()
    for module in model.modules():
        # By name: importing the compiler takes seconds.
        if type(module).__name__ == "OptimizedModule":
            hidden |= {*module.modules()} - {module}
        elif module._compiled_call_impl is not None:  # noqa: SLF001
            hidden |= {*module.modules()}
        elif isinstance(module, torch.jit.ScriptModule):
            hidden.add(module)
    return hidden


def _replace_forward(module: nn.Module, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in the place of `forward`; returns what takes it back."""
    own = module.__dict__.get("forward")
    module.forward = function

    def restore() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return restore


def _tensors(values: Iterable[object]) -> list[Tensor]:
    """Tensors among values, and one level deeper: `tree_flatten` takes ten times as long."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += [each for each in value.values() if isinstance(each, Tensor)]
        elif isinstance(value, list | tuple):
            found += [each for each in value if isinstance(each, Tensor)]
    return found
