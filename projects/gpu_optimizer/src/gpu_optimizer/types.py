"""The frozen vocabulary: what was allocated when, by whom, and what follows from it.

All sizes are bytes. Peaks are what PyTorch calls them: *allocated* is what live tensors occupy
(rounded up to the allocator's blocks), *reserved* what the allocator holds of the device, *total*
what the process takes of the device, with the CUDA context and libraries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Int8, Int32, Int64


class Category(StrEnum):
    """What memory is used for."""

    PARAMETER = "parameter"
    GRADIENT = "gradient"
    ACTIVATION = "activation"
    """Kept by the forward pass for the backward pass."""
    OPTIMIZER_STATE = "optimizer_state"
    INPUT = "input"
    WORKSPACE = "workspace"
    """Alive within one operation or until the next few: scratch space of kernels, temporaries."""
    OTHER = "other"


class Phase(StrEnum):
    """Part of a training step."""

    SETUP = "setup"
    """Model and inputs come into being."""
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class Mode(StrEnum):
    """What the model is run for."""

    TRAIN = "train"
    INFER = "infer"


CATEGORIES: tuple[Category, ...] = tuple(Category)
PHASES: tuple[Phase, ...] = tuple(Phase)


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTimeline:
    """Every allocation and every free of a run, in order, as columns.

    An allocation's row has a positive size, a free's row the same size negative.
    """

    size_bytes: Int64[np.ndarray, "events"]
    """As requested, before rounding; negative: freed."""
    block: Int64[np.ndarray, "events"]
    """Number of the allocation; its free has the same."""
    module: Int32[np.ndarray, "events"]
    """Index into `modules` of who allocated."""
    phase: Int8[np.ndarray, "events"]
    """Index into `PHASES`."""
    category: Int8[np.ndarray, "events"]
    """Index into `CATEGORIES`, of the allocation's whole life."""
    modules: tuple[str, ...]
    """Qualified names; the first is empty: no module."""
    module_types: tuple[str, ...]
    """Class names, one per module."""
    stream: Int32[np.ndarray, "events"]
    """CUDA stream of the allocation; 0 is the default one."""

    def __len__(self) -> int:
        """Return how many events there are."""
        return len(self.size_bytes)


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """One module of a model, its submodules included."""

    name: str
    """Qualified; the model itself is empty."""
    kind: str
    """Class name."""
    parameter_bytes: int
    """With buffers; shared ones count where they occur first."""
    gradient_bytes: int
    activation_bytes: int
    """Kept for the backward pass at the end of the forward pass."""
    peak_bytes: int
    """Most memory allocated by the whole model while this module was running."""
    flops: int | None = None
    """Of the forward pass."""
    time_s: float | None = None
    """Forward and backward; None where it was not measured."""
    children: tuple["LayerMemory", ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """How much memory a run is going to take."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    total_bytes: int
    """Reserved, CUDA context, libraries."""
    error_ratio: float
    """Calibrated bound: the true total is within this part of the predicted one."""
    by_category_bytes: Mapping[Category, int] = field(default_factory=dict)
    """What the allocated peak consists of."""
    peak_phase: Phase = Phase.FORWARD
    peak_module: str = ""
    """Who allocated when the peak was reached."""
    assumptions: tuple[str, ...] = ()
    """What was supposed, such as the attention kernel, in words."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU something may be run on."""

    name: str
    gpu: str
    total_bytes: int
    """As the driver reports it."""
    reserved_bytes: int
    """Taken by the driver and the desktop before anything runs."""
    compute_capability: tuple[int, int]
