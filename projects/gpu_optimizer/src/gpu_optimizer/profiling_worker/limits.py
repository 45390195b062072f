"""What a job may use, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may use before it is stopped."""

    memory_bytes: int = 8 << 30
    """Resident memory of the job and all it starts."""
    wall_s: float = 300.0
    cpu_s: int = 600
    """Processor time of the job's process, all threads together."""
    file_bytes: int = 64 << 20
    """Of each file it writes."""
    n_open_files: int = 512
    n_processes: int = 8
    """Running at once, the job's own included."""
    output_bytes: int = 16 << 20
    """Of all events and the result together."""
    limit_private_memory: bool = True
    """Whether the system also refuses allocations beyond `memory_bytes`, which stops a sudden jump
    that watching is too slow for. Off for jobs on a GPU: CUDA maps far more than it uses."""


class FailureReason(StrEnum):
    """Why a job has no result."""

    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INVALID = "invalid"
    """What was asked for cannot be done; the message tells the user why."""
    CANCELLED = "cancelled"


class NetworkConfinement(StrEnum):
    """How a job is kept off the network."""

    NAMESPACE = "namespace"
    """It has a network namespace of its own without any interface up; the kernel enforces it."""
    AUDIT_HOOK = "audit_hook"
    """The kernel permits no namespace: Python refuses every socket, native code is not stopped."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that has no result."""

    reason: FailureReason
    message: str
    """For the user."""
    detail: str = ""
    """Last lines of its standard error, for the log."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: exactly one of value and failure is there."""

    value: Mapping[str, Any] | None = field(default=None)
    failure: JobFailure | None = None
    network: NetworkConfinement | None = None
    """None where the job ended before it was confined; nothing of it has run then."""
    wall_s: float = 0.0
    peak_memory_bytes: int = 0
    """Largest resident memory that was seen."""

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.failure is None
