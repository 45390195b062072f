"""What ``gpu-optimizer trace`` leaves behind. Imports PyTorch."""

from pathlib import Path
from typing import Any

from rich.table import Table

from gpu_optimizer.cli.output import OutputFailedError, result_console, say
from gpu_optimizer.memory_tracer import MemoryTrace
from gpu_optimizer.reports.layer_tables import tree_table
from shared_utils.units import format_bytes


def write_trace(trace: MemoryTrace, folder: Path, title: str) -> dict[str, Path]:
    """Write a trace as a page, as JSON and as a snapshot for PyTorch's viewer.

    Raises
    ------
    OutputFailedError
        If the folder cannot be written to.
    """
    files = {name: folder / f"memory.{name}" for name in ("html", "json", "pickle")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trace.to_html(files["html"], title)
        trace.to_json(files["json"])
        trace.to_snapshot(files["pickle"])
    except OSError as error:
        raise OutputFailedError(folder, error.strerror or str(error)) from error
    return files


def trace_dict(trace: MemoryTrace, kind: str, files: dict[str, Path]) -> dict[str, Any]:
    """A trace in short, for programs."""
    return {
        "model": kind,
        "allocated_peak_bytes": trace.allocated_peak_bytes,
        "reserved_peak_bytes": trace.reserved_peak_bytes,
        "device_peak_bytes": trace.device_peak_bytes,
        "n_events": len(trace.timeline),
        "missed_bytes": trace.missed_bytes,
        "files": {name: str(path) for name, path in files.items()},
    }


def print_trace(trace: MemoryTrace, kind: str, files: dict[str, Path]) -> None:
    """Print the layers and the peaks."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_row("allocated peak", format_bytes(trace.allocated_peak_bytes))
    figures.add_row("reserved peak", format_bytes(trace.reserved_peak_bytes))
    if trace.device_peak_bytes is not None:
        figures.add_row("device, all processes", format_bytes(trace.device_peak_bytes))
    figures.add_row("allocations and frees", f"{len(trace.timeline):,}")
    figures.add_row("missed", format_bytes(trace.missed_bytes))
    say(f"{kind}, the last step in the trace:")
    console = result_console()
    console.print(tree_table(trace.layers))
    console.print(figures)
    for path in files.values():
        say(str(path))
