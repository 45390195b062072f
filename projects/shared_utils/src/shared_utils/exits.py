"""How commands end: exit codes by class of error, one line instead of a traceback."""

import sys
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class ExitCode(IntEnum):
    """What a command tells its caller."""

    OK = 0
    FAILED = 1
    """It could not be done here, or the answer is no."""
    UNUSABLE = 2
    """Wrong usage or settings, or input that cannot be read."""


class ReportingGroup(TyperGroup):
    """A group of commands whose expected failures end in one line on stderr."""

    exit_codes: ClassVar[Mapping[type[Exception], ExitCode]]
    """Expected errors; what is not among them keeps its traceback."""

    @classmethod
    def exit_code(cls, error: Exception) -> ExitCode:
        """Exit code for an error, by its nearest class in the table."""
        return next(cls.exit_codes[kind] for kind in type(error).__mro__ if kind in cls.exit_codes)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own types
        """Run the command; turn an expected error into its message and exit code."""
        try:
            return super().invoke(ctx)
        except tuple(self.exit_codes) as error:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
            raise typer.Exit(self.exit_code(error)) from error
