"""How much GPU memory fragmentation wastes in three hard workloads, before and after remedies.

Without a GPU: timelines written from the workloads' descriptions are replayed through the simulated
allocator, as they are and under every remedy. With ``--record OUT`` on a machine with a GPU the
workloads run for real: the replay of the recorded history is compared with PyTorch's statistics,
and the remedies that are settings are applied. ``--live FILE`` takes such a record into the report.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from fragmentation_workloads import WORKLOADS, Workload

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator_replay import ReplayOptions, replay
from gpu_optimizer.fragmentation_solver import Solution, Trial, least_device_bytes, solve
from gpu_optimizer.remedies.fragmentation import Case, RemedyKind
from gpu_optimizer.reports.segment_map import draw_segment_map

GIB = 1 << 30
GOAL_RATIO = 0.10
REPLAY_GOAL_RATIO = 0.03


def row(workload: Workload, trial: Trial) -> str:
    case = Case(workload.timeline, AllocatorConfig(), ReplayOptions(), workload.step_starts)
    fits_bytes = least_device_bytes(trial.remedy.change(case))
    return (
        f"| {trial.remedy.name} | {trial.reserved_peak_bytes / GIB:.2f} | {trial.waste_ratio:.1%} "
        f"| {trial.waste_at_peak_ratio:.1%} | {trial.waste_mean_ratio:.1%} "
        f"| {fits_bytes / GIB:.2f} | {trial.n_cuda_mallocs:,} / {trial.n_cuda_frees:,} |"
    )


def section(workload: Workload, solution: Solution) -> list[str]:
    best = solution.best
    lines = [
        f"## {workload.name[0].upper()}{workload.name[1:]}",
        "",
        f"{workload.description} {len(workload.timeline):,} events, "
        f"{len(workload.step_starts)} steps; needed {solution.needed_bytes / GIB:.2f} GiB.",
        "",
        f"Waste {solution.before.waste_ratio:.1%} before, {best.waste_ratio:.1%} with "
        f"{best.remedy.name} ({best.remedy.how.rstrip('.')}).",
        "",
        "| remedy | reserved peak, GiB | waste | at that moment | mean | fits from, GiB "
        "| mallocs / frees |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(workload, trial) for trial in solution.ranked),
        "",
    ]
    without = best_without_expandable(solution)
    if without is not None:
        lines += [
            f"Where expandable segments are not to be had: {without.remedy.name}, waste "
            f"{without.waste_ratio:.1%} ({without.remedy.how.rstrip('.')}).",
            "",
        ]
    return lines


def best_without_expandable(solution: Solution) -> Trial | None:
    return next(
        (
            trial
            for trial in solution.ranked
            if "expandable_segments:False" in trial.setting
            and trial.remedy.kind != RemedyKind.NOTHING
        ),
        None,
    )


def write_maps(workload: Workload, folder: Path) -> None:
    """Two pictures of the first workload: its peak before and after."""
    peak = int(np.argmax(np.cumsum(workload.timeline.size_bytes)))
    for name, config in (
        ("before", AllocatorConfig()),
        ("after", AllocatorConfig(expandable_segments=True)),
    ):
        result = replay(workload.timeline, config, ReplayOptions(snapshot_after=peak))
        title = f"{workload.name}, at the peak, {config.as_setting()}"
        picture = draw_segment_map(result.segments, title)
        (folder / f"fragmentation_{name}.svg").write_text(picture, encoding="utf-8")


def live_section(records: dict[str, Any]) -> list[str]:
    lines = [
        "## Measured",
        "",
        f"{records['gpu']}, PyTorch {records['torch']}: `python benchmarks/fragmentation.py "
        "--record OUT`. Allocated and reserved peaks in GiB, by `torch.cuda` statistics; the "
        f"replay starts from the recorded history (goal: within {REPLAY_GOAL_RATIO:.0%}).",
        "",
        "| workload | setting | allocated | reserved | waste | replay, error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records["workloads"]:
        uses = {"default": record["live"], **record["remedies"]}
        for setting, use in uses.items():
            waste = 1.0 - use["allocated_peak_bytes"] / use["reserved_peak_bytes"]
            error = f"{record['replay_error_ratio']:+.2%}" if setting == "default" else ""
            lines.append(
                f"| {record['workload']} | {setting} | {use['allocated_peak_bytes'] / GIB:.2f} "
                f"| {use['reserved_peak_bytes'] / GIB:.2f} | {waste:.1%} | {error} |"
            )
    return [*lines, ""]


def report(solutions: list[tuple[Workload, Solution]], live: dict[str, Any] | None) -> str:
    reached = all(solution.best.waste_ratio < GOAL_RATIO for _, solution in solutions)
    confirmation = (
        "What a GPU says stands at the end."
        if live
        else "Confirmation on a GPU is awaited: `python benchmarks/fragmentation.py --record OUT`."
    )
    lines = [
        "# Fragmentation",
        "",
        "Reproduce: `python benchmarks/fragmentation.py`. Simulated: each workload's requests, "
        "written down from its description, are replayed through a simulation of PyTorch's caching "
        "allocator without a memory limit, which does what PyTorch's own does to the byte "
        f"([allocator_parity.md](allocator_parity.md)). {confirmation}",
        "",
        "*Waste* is the part of the reserved peak beyond the most that was allocated at once, by "
        "the run as it is, so that remedies which round sizes up do not look better for it. "
        "*At that moment* is what was not allocated when the reserved peak was first reached, "
        "*mean* the same over all events: both count memory that the cache keeps from one peak to "
        "the next, which is its purpose. *Fits from* is the smallest device on which the run does "
        "not fail: under pressure the allocator gives back what is wholly free, at the price of "
        "taking it again, so that not all waste is lost. Mallocs and frees are those without "
        "pressure. Remedies are ranked by the reserved peak; within 1% those that need no code go "
        "first, then those with fewer calls to the device.",
        "",
        f"Goal: below {GOAL_RATIO:.0%} after remedies, {'reached' if reached else 'missed'} "
        "in the simulation.",
        "",
        *(line for workload, solution in solutions for line in section(workload, solution)),
        "## What it looks like",
        "",
        "The first workload when it needs most; white is free.",
        "",
        "![Before](fragmentation_before.svg)",
        "",
        "![After](fragmentation_after.svg)",
        "",
    ]
    return "\n".join(lines + (live_section(live) if live else []))


def record_all(out: Path) -> None:
    # Only here: the module needs PyTorch with a GPU.
    import fragmentation_live  # noqa: PLC0415
    import torch  # noqa: PLC0415

    recordings = [fragmentation_live.record(name) for name in fragmentation_live.WORKLOADS]
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "workloads": [recording.as_json() for recording in recordings],
    }
    (out / "fragmentation.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    for recording in recordings:
        print(f"{recording.workload}: replay {recording.replay_error_ratio:+.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/reports"))
    parser.add_argument("--record", type=Path, metavar="OUT", help="run on a GPU, write OUT")
    parser.add_argument("--live", type=Path, metavar="FILE", help="a record to report as well")
    arguments = parser.parse_args()
    if arguments.record:
        record_all(arguments.record)
        return
    started_s = time.perf_counter()
    solutions = []
    for make in WORKLOADS:
        workload = make()
        solutions.append((workload, solve(workload.timeline, step_starts=workload.step_starts)))
    live = json.loads(arguments.live.read_text("utf-8")) if arguments.live else None
    (arguments.out / "fragmentation.md").write_text(report(solutions, live), encoding="utf-8")
    write_maps(solutions[0][0], arguments.out)
    took_s = time.perf_counter() - started_s
    print(f"{took_s:.1f} s on Python {platform.python_version()}")


if __name__ == "__main__":
    main()
