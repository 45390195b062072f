"""What can go wrong when weights are quantized; needs no PyTorch."""

from gpu_optimizer.errors import GpuOptimizerError


class CannotFitError(GpuOptimizerError):
    """Even the smallest options take more bytes than the budget has."""

    def __init__(self, budget_bytes: int, smallest_bytes: int) -> None:
        super().__init__(
            f"The weights do not fit into {budget_bytes:,} bytes; the smallest choice takes "
            f"{smallest_bytes:,}."
        )
        self.budget_bytes = budget_bytes
        self.smallest_bytes = smallest_bytes


class InvalidTextError(GpuOptimizerError):
    """Text or tokens that quality cannot be measured on."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}.")
        self.source = source
        self.reason = reason


class MissingLibraryError(GpuOptimizerError):
    """A library that a scheme needs is not installed."""

    def __init__(self, what: str, library: str) -> None:
        super().__init__(f"{what} needs {library}: install gpu-optimizer[quantize].")
        self.what = what
        self.library = library
