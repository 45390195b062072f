"""What the commands of both kinds of workers have in common."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry, start_http_server

from pose_analyzer.errors import InvalidDatabaseUrlError, UnknownNameError
from shared_utils.errors import InvalidSettingError, ProjectError
from shared_utils.exits import ExitCode
from shared_utils.logging import configure_logging
from shared_utils.machine import give_memory_back

IdleOption = Annotated[
    float | None, typer.Option("--idle-s", help="End after so many seconds without work.")
]
StdinOption = Annotated[
    bool,
    typer.Option("--until-stdin-closes", help="End with the process that started this one."),
]
MetricsOption = Annotated[
    int | None, typer.Option("--metrics-port", help="Answer GET /metrics on this port.")
]


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and Ctrl+C end the work in order; a second one ends it at once."""

    def handle(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_stdin(stop: Callable[[], None]) -> None:
    """Stop once whoever holds the other end of standard input is gone."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def serve_metrics(port: int | None, registry: CollectorRegistry) -> None:
    """Answer scrapes from a thread, if a port is given."""
    if port is not None:
        start_http_server(port, registry=registry)


def run_worker(command: Callable[..., None]) -> None:
    """Run a worker's command; what cannot be helped here ends in one line."""
    configure_logging()
    give_memory_back()

    @wraps(command)
    def told(**options: Any) -> None:  # noqa: ANN401 - those of the command
        try:
            command(**options)
        except (InvalidSettingError, InvalidDatabaseUrlError, UnknownNameError) as error:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
            raise typer.Exit(ExitCode.UNUSABLE) from error
        except ProjectError as error:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - this is the shell
            raise typer.Exit(ExitCode.FAILED) from error

    typer.run(told)
