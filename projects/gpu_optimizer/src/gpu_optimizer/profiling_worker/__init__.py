"""Runs one profiling job at a time per process, with limits, so that the service survives it."""

from gpu_optimizer.profiling_worker.limits import (
    FailureReason,
    JobFailure,
    JobLimits,
    JobResult,
    NetworkConfinement,
)
from gpu_optimizer.profiling_worker.runner import JobRunner, OnEvent, WorkerConfig, run_job

__all__ = [
    "FailureReason",
    "JobFailure",
    "JobLimits",
    "JobResult",
    "JobRunner",
    "NetworkConfinement",
    "OnEvent",
    "WorkerConfig",
    "run_job",
]
