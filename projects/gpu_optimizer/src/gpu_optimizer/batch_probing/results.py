"""What is asked of one trial of a batch size, what comes back, and the answer in the end."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """How a batch size is tried."""

    batch_size: int
    n_steps: int = 3
    """At most; the first one warms up and is not timed."""
    n_steady_steps: int = 0
    """Ends early once so many steps in a row took nothing more from the device, or a few took the
    same again each; 0: it does not. As every step asks for the same sizes in the same order, all
    further ones would be like them."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a batch size did."""

    batch_size: int
    out_of_memory: bool = False
    """It does not fit below the limit; expected, not an error."""
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    item_s: float | None = None
    """Median time of a step by the number of items, of two the shorter; None: it did not get that
    far."""
    n_steps: int = 0
    """Completed."""
    steady: bool = False
    """Whether the last steps took nothing more from the device."""
    failure: str = ""
    """Why it failed for another reason than memory; empty: it did not."""
    limit_bytes: int = 0
    """What PyTorch's allocator was permitted to reserve."""
    clean: bool = True
    """Whether all memory came back afterwards; if not, the process is of no further use."""
    took_s: float = 0.0
    """From the making of the model to its release."""

    @property
    def ran(self) -> bool:
        """Whether all steps were completed."""
        return not self.out_of_memory and not self.failure


Probe = Callable[[int], ProbeResult]
"""Tries one batch size."""


class StopReason(StrEnum):
    """Why the batch is not larger."""

    MEMORY = "memory"
    LATENCY = "latency"
    """An item takes longer in a larger batch."""
    KNEE = "knee"
    """Doubling makes an item hardly quicker."""
    LIMIT = "limit"
    """Larger ones were not asked for."""
    TIME = "time"
    """Time was up; larger ones may fit."""
    FAILURE = "failure"
    """A larger batch fails for another reason than memory."""


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """A batch size and how it was found."""

    batch_size: int
    """0: not even one item fits."""
    stop: StopReason
    """Why it is not larger."""
    verified: bool
    """Whether real steps were run with it; False: predicted only."""
    predicted: int | None = None
    """Where the search began; None: the model could not be predicted."""
    limit_bytes: int = 0
    """What PyTorch's allocator was permitted to reserve."""
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    item_s: float | None = None
    """Time of one step by the number of items."""
    n_verified_steps: int = 0
    steady: bool = False
    """Whether the last of them took nothing more from the device."""
    n_trials: int = 0
    n_processes: int = 0
    took_s: float = 0.0
    failure: str = ""
    """What a larger batch failed with, where that was not memory."""
    searched: tuple[ProbeResult, ...] = ()
    """Trials of the search, in the order they were made."""
    checked: tuple[ProbeResult, ...] = ()
    """Trials of the fresh process: the answer, sizes that did not hold, and the next larger one."""
    cached: bool = False
    """Found on disk."""
