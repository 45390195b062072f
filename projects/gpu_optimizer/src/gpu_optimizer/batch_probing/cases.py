"""What is run in the process that tries batch sizes: a workload, or the caller's own module.

A module goes there pickled, without the values of its weights: they do not change how much memory
a step takes, and a large model would take longer to hand over than to try. Only what this process
itself packed is ever unpickled, and it travels through a pipe.
"""

import base64
import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gpu_optimizer.batch_probing.errors import ProbeFailedError
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.models.described import described_family
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.precision import MixedPrecision
from gpu_optimizer.steps.builder import Step, build_step
from gpu_optimizer.types import Mode

_BY_VALUE_BYTES: Final = 1 << 16
"""Tensors up to this size keep their values: tables of indices, scales, running statistics."""
_STD: Final = 0.02
"""Of the random values that stand for weights, as transformers are initialised."""


MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
"""A class of `torch.optim`, or a `partial` of one."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleUse:
    """How a module of the caller's is run.

    What is called here must be importable, that is defined at the top of a module: it is handed
    over to another process by name.
    """

    mode: Mode = Mode.TRAIN
    loss: Callable[[Any], Tensor] | None = None
    """From what the model returns to a single value; None: its ``loss`` if it has one, else the
    sum of all its floating-point results."""
    make_optimizer: MakeOptimizer | None = field(default=partial(torch.optim.AdamW, lr=1e-4))
    """None: no optimizer steps."""
    autocast: str | None = None
    """``bf16`` or ``fp16`` (with a gradient scaler); None: off."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCase:
    """A module of the caller's, its input and its use."""

    model: nn.Module
    make_inputs: Callable[[int], Any]
    """One batch of a number of items: a tensor, a tuple of positional or a dict of keyword
    arguments; on PyTorch's default device or the CPU."""
    use: ModuleUse = field(default_factory=ModuleUse)


@dataclass(frozen=True, slots=True)
class WorkloadCase:
    """A registered or described model."""

    workload: Workload
    """Its batch size is not used."""
    described: HfModel | None = None

    def sized(self, batch_size: int) -> Workload:
        """Return the workload with a batch size."""
        return replace(self.workload, batch_size=batch_size)


ProbeCase = ModuleCase | WorkloadCase


@dataclass(frozen=True, slots=True, eq=False)
class RepeatedBatch:
    """Makes batches of any size out of one.

    The first dimension of the first tensor counts the items; every tensor with as long a first
    dimension is repeated or cut, all else stays as it is.
    """

    sample: Any

    def __call__(self, batch_size: int) -> Any:  # noqa: ANN401 -- whatever the model takes
        """Make a batch."""
        tensors = [each for each in tree_leaves(self.sample) if isinstance(each, Tensor)]
        n_items = len(tensors[0])

        def resize(tensor: Tensor) -> Tensor:
            if tensor.ndim == 0 or len(tensor) != n_items:
                return tensor
            return tensor[torch.arange(batch_size, device=tensor.device) % n_items]

        return tree_map_only(Tensor, resize, self.sample)


def build_case(case: ProbeCase, batch_size: int, device: torch.device) -> Step:
    """Make a case's model, inputs and optimizer anew, for one batch size.

    Raises
    ------
    UnknownNameError, InvalidModelError
        As `build_step`.
    """
    if isinstance(case, WorkloadCase):
        family = None if case.described is None else described_family(case.described)
        return build_step(case.sized(batch_size), device, family)
    return _module_step(case, batch_size, device)


def pack(case: ProbeCase) -> str:
    """Write a case as text that `unpack` reads in another process.

    Raises
    ------
    ProbeFailedError
        If something in it cannot be handed over.
    """
    buffer = io.BytesIO()
    try:
        _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(case)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ProbeFailedError(
            f"The model cannot be handed to the process that tries it: {error}. Define its "
            "classes and functions at the top of a module; lambdas and local ones have no name."
        ) from error
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def refers_to_script(packed: str) -> bool:
    """Whether a packed case has classes or functions of the script that runs."""
    return b"__main__" in base64.b64decode(packed)


def unpack(text: str) -> ProbeCase:
    """Read what the parent process packed; never for data of others."""
    case: ProbeCase = pickle.loads(base64.b64decode(text))  # noqa: S301 - written by `pack`
    return case


class _Packer(pickle.Pickler):
    """Pickles without the values of large floating-point tensors."""

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - of pickle
        if type(obj) not in {Tensor, nn.Parameter, nn.Buffer}:
            return NotImplemented
        kind = nn.Parameter if isinstance(obj, nn.Parameter) else Tensor
        facts = (kind, str(obj.dtype).removeprefix("torch."), obj.requires_grad)
        if obj.is_floating_point() and obj.nbytes > _BY_VALUE_BYTES:
            return _without_values, (tuple(obj.shape), obj.stride(), *facts)
        values = obj.detach().cpu().contiguous()
        content = values.reshape(-1).view(torch.uint8).numpy().tobytes()
        return _with_values, (tuple(obj.shape), content, *facts)


def _without_values(
    shape: tuple[int, ...], stride: tuple[int, ...], kind: type, dtype: str, requires_grad: bool
) -> Tensor:
    empty = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device="meta")
    return _as_kind(empty, kind, requires_grad)


def _with_values(
    shape: tuple[int, ...], content: bytes, kind: type, dtype: str, requires_grad: bool
) -> Tensor:
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
    values = flat.view(getattr(torch, dtype)) if content else flat.to(getattr(torch, dtype))
    return _as_kind(values.reshape(shape), kind, requires_grad)


def _as_kind(tensor: Tensor, kind: type, requires_grad: bool) -> Tensor:
    if kind is nn.Parameter:
        return nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def _module_step(case: ModuleCase, batch_size: int, device: torch.device) -> Step:
    use = case.use
    memo: dict[int, Any] = {}
    for tensor in _tensors(case.model):
        memo[id(tensor)] = _materialised(tensor, device)
    model = copy.deepcopy(case.model, memo).to(device)
    with torch.device(device):
        inputs = case.make_inputs(batch_size)
    inputs = tree_map_only(Tensor, partial(_to, device), inputs)
    model.train(use.mode is Mode.TRAIN)
    parameters = [each for each in model.parameters() if each.requires_grad]
    trains = use.mode is Mode.TRAIN and use.make_optimizer is not None
    optimizer = use.make_optimizer(parameters) if trains and use.make_optimizer else None
    precision = MixedPrecision(use.autocast, device.type)
    if use.mode is Mode.INFER:
        run = partial(_infer, model, inputs, precision)
    else:
        run = partial(_train, case, model, inputs, precision, optimizer)
    return Step(model, {}, optimizer, run)


def _train(
    case: ModuleCase,
    model: nn.Module,
    inputs: Any,  # noqa: ANN401
    precision: MixedPrecision,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    model.zero_grad(set_to_none=True)
    with precision.autocast():
        loss = (case.use.loss or default_loss)(call(model, inputs))
    precision.backward(loss)
    if optimizer is not None:
        precision.step(optimizer)


def _infer(model: nn.Module, inputs: Any, precision: MixedPrecision) -> None:  # noqa: ANN401
    with torch.no_grad(), precision.autocast():
        call(model, inputs)


def call(model: nn.Module, inputs: Any) -> Any:  # noqa: ANN401 -- whatever the model takes
    """Call a model with keyword arguments, positional ones, or a single one."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def default_loss(outputs: Any) -> Tensor:  # noqa: ANN401
    """Take the model's own loss, else the sum of its floating-point results."""
    given = getattr(outputs, "loss", None)
    if isinstance(given, Tensor):
        return given
    found = [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]
    sums = [each.sum() for each in found if each.is_floating_point() and each.requires_grad]
    return torch.stack([each.float() for each in sums]).sum()


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device)


def _tensors(model: nn.Module) -> list[Tensor]:
    leaves = (leaf for module in model.modules() for leaf in tree_leaves([*vars(module).values()]))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta]


def _materialised(tensor: Tensor, device: torch.device) -> Tensor:
    real = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
    ).normal_(std=_STD)
    kind = nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor
    return _as_kind(real, kind, tensor.requires_grad)
