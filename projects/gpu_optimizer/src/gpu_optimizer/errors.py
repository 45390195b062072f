"""Errors of the memory optimizer: structured fields, one message that says what to do next."""

from shared_utils.errors import ProjectError


class GpuOptimizerError(ProjectError):
    """Root of this package's errors."""


class UnknownNameError(GpuOptimizerError):
    """A name that is not in a list of known ones (model, GPU, machine, optimizer)."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"Unknown {kind} {name!r}. Known: {', '.join(known)}.")
        self.kind = kind
        self.name = name
        self.known = known


class InvalidModelError(GpuOptimizerError):
    """A model description that is refused: not allowed, not consistent, or too large to build."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class NoGpuError(GpuOptimizerError):
    """Something that only a CUDA GPU can do."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} needs an NVIDIA GPU, and PyTorch sees none here. Estimates work without one."
        )
        self.what = what


class UnknownJobError(GpuOptimizerError):
    """A job that was never begun, or ended so long ago that it is forgotten."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}. Only the latest jobs are kept.")
        self.job_id = job_id


class BusyError(GpuOptimizerError):
    """A job that cannot be taken because too many are waiting."""

    def __init__(self, n_unfinished: int) -> None:
        super().__init__(f"{n_unfinished} jobs are running or waiting already. Try again later.")
        self.n_unfinished = n_unfinished
        self.retry_after_s = 30.0


class JobFailedError(GpuOptimizerError):
    """A job that was begun for a request and has no result."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
