"""What can go wrong with a trial other than memory."""

from gpu_optimizer.errors import GpuOptimizerError


class ProbeFailedError(GpuOptimizerError):
    """A model that cannot be tried at all, whatever its batch size."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
