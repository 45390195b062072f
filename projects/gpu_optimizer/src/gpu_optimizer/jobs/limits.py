"""What jobs of the service may use, from its settings."""

from dataclasses import replace

from gpu_optimizer.profiling_worker import JobLimits
from gpu_optimizer.settings import Settings


def job_limits(settings: Settings) -> JobLimits:
    """Limits of jobs that compute on the CPU."""
    return JobLimits(memory_bytes=settings.job_memory_bytes, wall_s=settings.job_wall_s)


def gpu_limits(settings: Settings) -> JobLimits:
    """Limits of jobs that measure on the GPU: CUDA maps far more memory than it uses."""
    return replace(job_limits(settings), limit_private_memory=False, n_open_files=4096)
