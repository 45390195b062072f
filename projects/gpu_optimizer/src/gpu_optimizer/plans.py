"""What is done to a run to make it fit, as a value: no PyTorch, nothing applied yet.

A plan is a tuple of steps, each of which says completely what one technique does. Module names are
qualified, as `named_modules` gives them; the model itself is the empty name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from gpu_optimizer.errors import GpuOptimizerError
from gpu_optimizer.models.workloads import Workload

PLAN_VERSION: Final = 1


class Exactness(StrEnum):
    """How far results are from those of the plain run, from none to most."""

    BIT_EQUAL = "bit-equal"
    """The same operations on the same values."""
    NUMERIC = "numeric"
    """The same mathematics in another order: equal within the rounding of the dtype."""
    APPROXIMATE = "approximate"
    """Other values: fewer bits of numbers, weights or states."""


_ORDER: Final = tuple(Exactness)


def least_exact(*each: Exactness) -> Exactness:
    """Return what can be said of several steps taken together."""
    return max(each, key=_ORDER.index, default=Exactness.BIT_EQUAL)


class Budgeted(StrEnum):
    """Which peak a budget limits."""

    ALLOCATED = "allocated"
    """What live tensors occupy, as `torch.cuda.max_memory_allocated` says."""
    RESERVED = "reserved"
    """What PyTorch's allocator holds; what `set_per_process_memory_fraction` limits."""
    TOTAL = "total"
    """What the process takes of the device."""


@dataclass(frozen=True, slots=True)
class CheckpointRegion:
    """A module whose forward pass is run again in the backward pass instead of being kept."""

    module: str
    keep: Literal["nothing", "products"] = "nothing"
    """products: no matrix product, convolution or attention is run again; the fewest bytes are
    kept from which the cheap rest (norms, activations, sums) can be computed. Either way only what
    the backward pass asks for is computed, when it asks, and what the region returns counts as
    kept."""
    recompute: tuple[str, ...] = ()
    """With products: submodules, named as within the region, whose products are run again all the
    same, such as a wide and thin convolution (``conv3``) or ``mlp.up_proj``."""


@dataclass(frozen=True, slots=True)
class Offload:
    """Modules whose saved tensors wait in the host's pinned memory for the backward pass."""

    modules: tuple[str, ...]
    min_bytes: int = 1 << 20
    """Smaller tensors stay."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtype of the operations that `torch.autocast` knows to be safe."""

    autocast: Literal["bf16", "fp16"] | None
    grad_scaler: bool = False


@dataclass(frozen=True, slots=True)
class Accumulation:
    """A batch run in parts, whose gradients are added up before the optimizer's step."""

    micro_batch: int
    n_micro_batches: int


@dataclass(frozen=True, slots=True)
class ChunkedLoss:
    """Cross-entropy over a large vocabulary, the logits made for some tokens at a time."""

    n_chunks: int


@dataclass(frozen=True, slots=True)
class Quantization:
    """Weights of linear layers, or the key-value cache, in fewer bits."""

    scheme: Literal["int8", "int4", "nf4"] | None
    """None: only the cache."""
    modules: tuple[str, ...] = ()
    """Layers it holds for; empty: all linear layers but the head."""
    group_size: int | None = None
    """Weights that share a scale; None: one scale per row."""
    kv_cache_bits: Literal[4, 8] | None = None


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Where and how the optimizer's state is kept."""

    kind: Literal["plain", "8bit", "offload"]


@dataclass(frozen=True, slots=True)
class Allocator:
    """Settings of PyTorch's allocator."""

    config: str
    """As in PYTORCH_ALLOC_CONF: ``expandable_segments:True``."""


PlanStep = (
    CheckpointRegion
    | Offload
    | Precision
    | Accumulation
    | ChunkedLoss
    | Quantization
    | OptimizerState
    | Allocator
)

STEP_TYPES: Final[Mapping[str, type[PlanStep]]] = MappingProxyType(
    {
        "checkpoint": CheckpointRegion,
        "offload": Offload,
        "precision": Precision,
        "accumulation": Accumulation,
        "chunked_loss": ChunkedLoss,
        "quantization": Quantization,
        "optimizer_state": OptimizerState,
        "allocator": Allocator,
    }
)
"""Kinds of step by the names they have in plan files."""


def step_exactness(step: PlanStep) -> Exactness:
    """Say how far a step alone moves the results.

    Checkpointing and offloading repeat or copy values and put back the random state, so gradients
    are bit-equal wherever the kernels themselves give the same bits twice.
    """
    match step:
        case Accumulation() | ChunkedLoss():
            return Exactness.NUMERIC
        case Precision(autocast=None):
            return Exactness.BIT_EQUAL
        case Precision() | Quantization():
            return Exactness.APPROXIMATE
        case OptimizerState(kind="8bit"):
            return Exactness.APPROXIMATE
        case _:
            return Exactness.BIT_EQUAL


@dataclass(frozen=True, slots=True)
class PeakBytes:
    """Peaks of one run."""

    allocated: int
    reserved: int
    total: int

    def of(self, which: Budgeted) -> int:
        """Return the peak that a budget limits."""
        return int(getattr(self, which.value))


@dataclass(frozen=True, slots=True)
class StepEffect:
    """What a step of a plan is good for, and what it costs."""

    gained_bytes: int
    """How much higher the plan's peak would be without it, by the search's model."""
    added_s: float
    """Time it adds to one step of training or one run; negative: it saves time."""
    exactness: Exactness
    text: str
    """One sentence for people."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to a run, and what comes of it."""

    workload: Workload
    """What the plan was made for, before any step of it."""
    budget_bytes: int
    budget_of: Budgeted
    steps: tuple[PlanStep, ...]
    """Empty: nothing needs doing."""
    base_peak: PeakBytes
    """Without any step."""
    predicted_peak: PeakBytes
    """Of the plan, applied and recorded."""
    base_s: float
    """Estimated time of one step of the plain run."""
    slowdown_ratio: float
    """Estimated; 0.1: takes 10% longer, negative: runs faster."""
    exactness: Exactness
    explanation: tuple[StepEffect, ...] = ()
    """One for each of `steps`."""
    version: int = PLAN_VERSION

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the budget."""
        return self.predicted_peak.of(self.budget_of) <= self.budget_bytes

    def run_workload(self) -> Workload:
        """Return the workload in the precision and the parts of the plan."""
        workload = self.workload
        for step in self.steps:
            if isinstance(step, Precision):
                workload = replace(workload, autocast=step.autocast)
            elif isinstance(step, Accumulation):
                workload = replace(workload, n_micro_batches=step.n_micro_batches)
        return workload

    def regions(self) -> tuple[CheckpointRegion, ...]:
        """Return the steps that are checkpoint regions."""
        return tuple(step for step in self.steps if isinstance(step, CheckpointRegion))


@dataclass(frozen=True, slots=True)
class PlanFailure:
    """No plan keeps within the budget; a value, since asking is how one finds out."""

    workload: Workload
    budget_bytes: int
    budget_of: Budgeted
    reason: str
    """What takes the memory that nothing allowed can give back."""
    smallest: Plan
    """The plan with the lowest peak there is."""

    @property
    def smallest_bytes(self) -> int:
        """The lowest budget that can be kept."""
        return self.smallest.predicted_peak.of(self.budget_of)


class InvalidPlanError(GpuOptimizerError):
    """A plan file that cannot be read, or a plan that does not suit the model."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source
        self.problem = problem
