"""``gpu-optimizer fragmentation``: how much a snapshot wastes, who is to blame, what helps."""

from html import escape
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator.segments import SegmentBlock
from gpu_optimizer.allocator_replay import ReplayOptions
from gpu_optimizer.cli.options import Json, Quiet
from gpu_optimizer.cli.output import print_json, result_console, say, steps, write_text
from gpu_optimizer.cuda_analyzer import Fragmentation, SparseSegment, analyze
from gpu_optimizer.fragmentation_solver import Solution, Trial, solve
from gpu_optimizer.remedies.fragmentation import RemedyKind
from gpu_optimizer.reports.segment_map import draw_segment_map
from gpu_optimizer.snapshots.files import Snapshot, read_snapshot
from gpu_optimizer.snapshots.plain_pickle import InvalidSnapshotError
from shared_utils.units import format_bytes

_N_SPARSE: Final = 8
_N_REMEDIES: Final = 8
_N_PINNERS: Final = 3
_NO_HISTORY: Final = (
    "The snapshot holds no history, so remedies cannot be tried: record one with "
    "torch.cuda.memory._record_memory_history()."
)
_PAGE: Final = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
    '<body style="margin:0;background:#f7f8fa">{svg}</body></html>\n'
)


def show_fragmentation(
    snapshot: Annotated[
        Path,
        typer.Argument(help="From torch.cuda.memory._dump_snapshot, or the same as JSON."),
    ],
    *,
    device: Annotated[
        int | None, typer.Option(min=0, help="Index of the GPU; default: the busiest.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the segments to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The same as a page for a browser.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a memory snapshot, without unpickling it, and try what lowers its fragmentation."""
    with steps(quiet=quiet or as_json) as progress:
        progress.say("reading")
        read = _read(snapshot, device)
        found = analyze(read.segments)
        progress.say("trying remedies on the recorded history")
        solution = _solve(read)
    _draw(read, snapshot.name, svg, html)
    if as_json:
        print_json(_document(found, solution))
        return
    if quiet:
        return
    _print_state(snapshot.name, found)
    if solution is None:
        say(_NO_HISTORY)
    else:
        _print_solution(solution)
    for path in filter(None, (svg, html)):
        say(str(path))


def _read(path: Path, device: int | None) -> Snapshot:
    try:
        return read_snapshot(path, device)
    except OSError as error:
        raise InvalidSnapshotError(f"{path}: {error.strerror or error}.") from error


def _solve(read: Snapshot) -> Solution | None:
    """Try the remedies; None where there is no history to try them on."""
    if len(read.timeline) <= read.n_before:
        return None
    config = AllocatorConfig.parse(read.settings)
    options = ReplayOptions(empty_cache_before=read.cache_releases)
    return solve(read.timeline, config, options=options)


def _draw(read: Snapshot, name: str, svg: Path | None, html: Path | None) -> None:
    if svg is None and html is None:
        return
    picture = draw_segment_map(read.segments, f"Segments of {name}")
    if svg is not None:
        write_text(svg, picture)
    if html is not None:
        write_text(html, _PAGE.format(title=escape(name), svg=picture))


def _print_state(name: str, found: Fragmentation) -> None:
    say(
        f"{name}: {format_bytes(found.reserved_bytes)} reserved, "
        f"{format_bytes(found.allocated_bytes)} allocated, waste {found.waste_ratio:.1%}; "
        f"largest free block {format_bytes(found.largest_free_bytes)}, "
        f"{found.scatter_ratio:.0%} of what is free lies elsewhere"
    )
    console = result_console()
    pools = Table("pool", "stream", "segments", "reserved", "allocated", "free", "largest free")
    for column in pools.columns[1:]:
        column.justify = "right"
    for use in found.pools:
        pools.add_row(
            f"private {use.private_pool}, {use.pool}" if use.private_pool else use.pool,
            str(use.stream),
            f"{use.n_segments:,}",
            format_bytes(use.reserved_bytes),
            format_bytes(use.allocated_bytes),
            format_bytes(use.free_bytes),
            format_bytes(use.largest_free_bytes),
        )
    console.print(pools)
    if found.sparse:
        console.print(_sparse_table(found.sparse))
    for each in found.recommendations:
        say(f"- {each.measure}, up to {format_bytes(each.gain_bytes)}: {each.reason}")


def _sparse_table(sparse: tuple[SparseSegment, ...]) -> Table:
    table = Table("nearly empty segment", "size", "used", "free", "held by")
    for column in table.columns[1:4]:
        column.justify = "right"
    for each in sparse[:_N_SPARSE]:
        table.add_row(
            f"{each.segment.address:#x}",
            format_bytes(each.segment.size_bytes),
            f"{each.used_ratio:.1%}",
            format_bytes(each.free_bytes),
            "\n".join(_pinners(each)),
        )
    rest = len(sparse) - _N_SPARSE
    if rest > 0:
        free = sum(each.free_bytes for each in sparse[_N_SPARSE:])
        table.add_row(f"and {rest:,} more", "", "", format_bytes(free), "")
    return table


def _pinners(each: SparseSegment) -> list[str]:
    lines = [_pinner(block) for block in each.pinned_by[:_N_PINNERS]]
    rest = len(each.pinned_by) - _N_PINNERS
    return [*lines, f"and {rest:,} more"] if rest > 0 else lines


def _pinner(block: SegmentBlock) -> str:
    owner = block.owner
    if owner is None:
        return format_bytes(block.size_bytes)
    who = owner.module or (owner.frames[0] if owner.frames else "no module")
    what = owner.category.replace("_", " ")
    return f"{format_bytes(block.size_bytes)} {what} of {who} ({owner.phase})"


def _print_solution(solution: Solution) -> None:
    table = Table("remedy", "reserved peak", "waste", "cudaMallocs", "what to change")
    for column in table.columns[1:4]:
        column.justify = "right"
    table.columns[4].overflow = "fold"
    for trial in _worth_showing(solution):
        table.add_row(
            trial.remedy.name,
            format_bytes(trial.reserved_peak_bytes),
            f"{trial.waste_ratio:.1%}",
            f"{trial.n_cuda_mallocs:,}",
            trial.remedy.how,
        )
    before = solution.before
    say(
        f"Replayed: {format_bytes(before.reserved_peak_bytes)} reserved at the peak for "
        f"{format_bytes(solution.needed_bytes)} that are needed, waste {before.waste_ratio:.1%}. "
        "Remedies, best first:"
    )
    result_console().print(table)


def _worth_showing(solution: Solution) -> tuple[Trial, ...]:
    """The best, down to the run as it is."""
    kinds = [trial.remedy.kind for trial in solution.ranked]
    n_better = kinds.index(RemedyKind.NOTHING)
    shown = solution.ranked[: min(n_better, _N_REMEDIES)]
    return (*shown, solution.before)


def _document(found: Fragmentation, solution: Solution | None) -> dict[str, Any]:
    return {
        "reserved_bytes": found.reserved_bytes,
        "allocated_bytes": found.allocated_bytes,
        "waste_ratio": found.waste_ratio,
        "scatter_ratio": found.scatter_ratio,
        "largest_free_bytes": found.largest_free_bytes,
        "nearly_empty_segments": [
            {
                "address": each.segment.address,
                "size_bytes": each.segment.size_bytes,
                "free_bytes": each.free_bytes,
                "held_by": [_pinner(block) for block in each.pinned_by],
            }
            for each in found.sparse
        ],
        "recommendations": [
            {"measure": each.measure, "gain_bytes": each.gain_bytes, "reason": each.reason}
            for each in found.recommendations
        ],
        "replay": None
        if solution is None
        else {
            "needed_bytes": solution.needed_bytes,
            "before": _trial_dict(solution.before),
            "ranked": [_trial_dict(trial) for trial in solution.ranked],
        },
    }


def _trial_dict(trial: Trial) -> dict[str, Any]:
    return {
        "remedy": trial.remedy.name,
        "kind": trial.remedy.kind,
        "how": trial.remedy.how,
        "setting": trial.setting,
        "reserved_peak_bytes": trial.reserved_peak_bytes,
        "waste_ratio": trial.waste_ratio,
        "n_cuda_mallocs": trial.n_cuda_mallocs,
        "fits": trial.fits,
    }
