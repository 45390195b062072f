"""Does a run fit these GPUs, and how many items at a time would: predictions, asked cleverly."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.memory_predictor import (
    DeviceConstants,
    Fit,
    device_constants,
    fits,
    predict_from,
)
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plans import PlanStep
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import Machine, Prediction

LARGEST_BATCH: Final = 1 << 16
_USUAL_CONTEXT_GPU: Final = "H200"
_MAX_STEP: Final = 64
"""The search never goes to more than so many times the largest batch known to fit."""
_MAX_LINES: Final = 10
"""After so many batches the straight line has misled for long; halving cannot."""


@dataclass(frozen=True, slots=True)
class ModelRun:
    """A run whose model may be one that is not registered."""

    workload: Workload
    described: HfModel | None = None
    """Built from this; None: the registered model that the workload names."""
    changes: tuple[PlanStep, ...] = ()
    """What is done to the model before it runs."""


@dataclass(frozen=True, slots=True)
class BatchSearch:
    """How many items at a time fit."""

    largest: int
    """0: not even one."""
    complete: bool
    """False: time was up, or the search's end reached; more may fit."""


def card_constants(machine: Machine) -> DeviceConstants:
    """What the predictor needs to know of a machine's card.

    A card that nothing was noted about is taken for one of the same compute capability, with an
    upper estimate of its context.
    """
    try:
        return device_constants(machine.gpu)
    except UnknownNameError:
        usual = device_constants(_USUAL_CONTEXT_GPU)
    target = replace(usual.target, compute_capability=machine.compute_capability)
    if machine.compute_capability[0] != 9:
        # Multiprocessors of consumer and older cards; they decide about small scratch only.
        target = CudaTarget(machine.compute_capability, target.cudnn_version, 48, 1536)
    return replace(usual, name=machine.gpu, target=target, measured=False)


def record_on(run: ModelRun, machine: Machine) -> Recording:
    """Record a run's step as a machine's card would do it; imports PyTorch.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    InvalidModelError
        If the model cannot be run as asked.
    InvalidPlanError
        If a change names a module that there is not.
    """
    from gpu_optimizer.steps.recorder import record_step  # noqa: PLC0415

    family, prepare = None, None
    if run.described is not None:
        from gpu_optimizer.models.described import described_family  # noqa: PLC0415

        family = described_family(run.described)
    try:
        if run.changes:
            # Brings all techniques with it, and their libraries.
            from gpu_optimizer.fake_recorders import preparation  # noqa: PLC0415

            prepare = preparation(run.workload, run.changes)
        return record_step(run.workload, card_constants(machine).target, family, prepare)
    except (AssertionError, RuntimeError, ValueError) as error:
        # The model's own code refuses its input: an image that is too small, say.
        reason = str(error).strip().split("\n", 1)[0]
        raise InvalidModelError(
            run.workload.family, f"it cannot be run like this: {reason}"
        ) from error


def predict_on(
    run: ModelRun, machine: Machine, allocator: AllocatorConfig | None = None
) -> Prediction:
    """Predict a run's memory on a machine's card; raises as `record_on`."""
    return predict_from(record_on(run, machine), card_constants(machine), allocator)


def prediction_dict(prediction: Prediction) -> dict[str, Any]:
    """A prediction for programs: plain values, sizes in bytes."""
    return {
        **asdict(prediction),
        "by_category_bytes": {
            category.value: size for category, size in prediction.by_category_bytes.items()
        },
        "peak_phase": prediction.peak_phase.value,
        "assumptions": list(prediction.assumptions),
    }


def headroom_bytes(prediction: Prediction, machine: Machine) -> int:
    """What the run leaves free of a machine's GPU; negative: what is missing."""
    return machine.total_bytes - machine.reserved_bytes - prediction.total_bytes


def safe_margin_bytes(prediction: Prediction, machine: Machine) -> int:
    """The same if the prediction is as wrong as it may be; not negative exactly where it fits."""
    margin = headroom_bytes(prediction, machine)
    margin -= int(prediction.total_bytes * prediction.error_ratio)
    return margin if (fits(prediction, machine) is Fit.YES) == (margin >= 0) else -1


def largest_batch(
    margin_bytes: Callable[[int], int],
    known: tuple[int, int],
    *,
    limit: int = LARGEST_BATCH,
    tolerance_ratio: float = 0.0,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> BatchSearch:
    """Largest batch with a margin that is not negative.

    Memory grows almost in proportion to the batch, so a straight line through two batches tells
    about where the limit is; each guess costs one prediction.

    Parameters
    ----------
    margin_bytes
        Free memory at a batch; must not rise with it.
    known
        A batch and its margin.
    limit
        Largest batch that is tried.
    tolerance_ratio
        By how much the answer may be below the largest; it always fits itself.
    budget_s
        When so much time has passed, what is known by then is returned.
    clock
        Tells the time in seconds.
    """
    end_s = clock() + budget_s
    seen = dict([known])
    fitting = max((batch for batch, margin in seen.items() if margin >= 0), default=0)
    failing = min((batch for batch, margin in seen.items() if margin < 0), default=limit + 1)
    while failing - fitting > (width := max(int(tolerance_ratio * fitting), 1)):
        if clock() >= end_s:
            return BatchSearch(fitting, complete=False)
        batch = _next_guess(seen, fitting, failing, width)
        seen[batch] = margin_bytes(batch)
        if seen[batch] >= 0:
            fitting = batch
        else:
            failing = batch
    return BatchSearch(fitting, complete=failing <= limit)


def _next_guess(seen: dict[int, int], fitting: int, failing: int, width: int) -> int:
    """Return a batch strictly between the largest known to fit and the smallest known not to."""
    lowest, highest = fitting + width, failing - width
    if highest <= lowest or len(seen) > _MAX_LINES:
        return (fitting + failing) // 2
    if len(seen) == 1:
        return min(max(2 * fitting, failing // 16 if not fitting else 0, lowest), highest)
    is_bracket = fitting in seen and failing in seen
    one, two = (fitting, failing) if is_bracket else sorted(seen, key=lambda b: abs(seen[b]))[:2]
    per_item = (seen[one] - seen[two]) / (two - one)
    guess = one + int(seen[one] // per_item) if per_item > 0 else highest
    return min(max(guess, lowest), highest, max(fitting, 1) * _MAX_STEP)
