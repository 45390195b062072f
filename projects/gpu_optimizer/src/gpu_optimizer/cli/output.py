"""What commands print: tables for people, JSON for programs, files that appear whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gpu_optimizer.errors import GpuOptimizerError

_BAR_CHARACTERS: Final = 30
_PIPE_COLUMNS: Final = 120


class OutputFailedError(GpuOptimizerError):
    """A result file that cannot be written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written: {reason}.")
        self.path = path
        self.reason = reason


def bar(part: float) -> str:
    """Draw a part of a whole, 0 to 1."""
    return "█" * max(round(part * _BAR_CHARACTERS), 1 if part > 0 else 0)


def result_console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def print_json(value: object) -> None:
    """Write a value to standard output for programs."""
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201 - this is the shell


def say(sentence: str) -> None:
    """Write a sentence to standard output as it is."""
    result_console().print(sentence, markup=False, highlight=False, soft_wrap=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises
    ------
    OutputFailedError
        If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputFailedError(path, error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


class Steps:
    """Says what a command is doing at the moment."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def say(self, text: str) -> None:
        """Put another text beside the spinner."""
        self._progress.update(self._task, description=text)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Steps]:
    """Show a spinner on stderr; nothing when quiet or not on a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        yield Steps(progress)
