"""``gpu-optimizer trace``: a script of one's own, run under the memory tracer."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from gpu_optimizer.cli.options import Json, Quiet
from gpu_optimizer.cli.output import print_json
from gpu_optimizer.errors import InvalidModelError, NoGpuError
from shared_utils.exits import ExitCode
from shared_utils.gpu import read_gpus


def show_trace(
    script: Annotated[
        Path, typer.Argument(help="A Python file that runs a PyTorch model on a GPU.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="Passed to the script.")
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the results; default: NAME-memory."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Attribute every operation; slower, with call stacks.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a script and show where the memory of its model goes; options stand before the script.

    The first model that the script runs on a GPU is traced, from its first call to the end.
    """
    if not script.is_file():
        raise InvalidModelError(str(script), "there is no such file.")
    if not read_gpus():
        raise NoGpuError("Tracing memory")
    # These import PyTorch.
    from gpu_optimizer.cli.traced import print_trace, trace_dict, write_trace  # noqa: PLC0415
    from gpu_optimizer.memory_tracer import TraceMode  # noqa: PLC0415
    from gpu_optimizer.runs.scripts import (  # noqa: PLC0415
        FirstModelTracer,
        gpu_tracer,
        run_script,
    )

    mode = TraceMode.EXACT if exact else TraceMode.HISTORY
    tracer = FirstModelTracer(gpu_tracer(mode))
    folder = out or Path(f"{script.stem}-memory")
    try:
        # With --json the standard output is for JSON alone.
        with redirect_stdout(sys.stderr) if as_json else nullcontext(), tracer:
            run_script(script, arguments or [])
    finally:
        # A script that ran out of memory is the one whose trace is wanted most.
        trace = tracer.trace
        if trace is not None:
            files = write_trace(trace, folder, f"{script.name}: {tracer.model_kind}")
    if trace is None:
        typer.echo(f"Error: {script.name} ran no model on a GPU.", err=True)
        raise typer.Exit(ExitCode.FAILED)
    if as_json:
        print_json(trace_dict(trace, tracer.model_kind, files))
    elif not quiet:
        print_trace(trace, tracer.model_kind, files)
