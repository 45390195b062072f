"""How commands end: one table from error class to exit code, one line instead of a traceback."""

import sys
from enum import IntEnum
from typing import Any, Final

import typer
from typer.core import TyperGroup

from gpu_optimizer.allocator_config import InvalidAllocatorSettingError
from gpu_optimizer.cli.output import OutputFailedError
from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.machines import InvalidMachineFileError
from gpu_optimizer.snapshot_pickle import InvalidSnapshotError
from shared_utils.errors import InvalidSettingError, ProjectError


class ExitCode(IntEnum):
    """What a command tells its caller."""

    OK = 0
    FAILED = 1
    """It could not be done here, or a run fits nowhere."""
    UNUSABLE = 2
    """Wrong usage or settings, or input that cannot be read."""


EXIT_CODES: Final[dict[type[Exception], ExitCode]] = {
    InvalidAllocatorSettingError: ExitCode.UNUSABLE,
    InvalidMachineFileError: ExitCode.UNUSABLE,
    InvalidModelError: ExitCode.UNUSABLE,
    InvalidSettingError: ExitCode.UNUSABLE,
    InvalidSnapshotError: ExitCode.UNUSABLE,
    OutputFailedError: ExitCode.UNUSABLE,
    UnknownNameError: ExitCode.UNUSABLE,
    ProjectError: ExitCode.FAILED,
}


def exit_code(error: Exception) -> ExitCode:
    """Exit code for an error, by its nearest class in `EXIT_CODES`."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


class ReportingGroup(TyperGroup):
    """A group of commands whose expected failures end in one line on stderr."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own types
        """Run the command; turn an expected error into its message and exit code."""
        try:
            return super().invoke(ctx)
        except tuple(EXIT_CODES) as error:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
            raise typer.Exit(exit_code(error)) from error
