"""What the memory tracer costs and misses, and layer tables measured beside estimated ones.

    python benchmarks/tracer_overhead.py --out OUT.json [--report OUT.md]
        On a machine with a GPU; two to three minutes. Results are written after every part.
    python benchmarks/tracer_overhead.py --from OUT.json --report OUT.md
        Only writes the report again.

Overhead: bouts of the same steps with and without the tracer in turn, every second pair the other
way round, the GPU waited for at both ends; the median of the pairs counts. Entering and leaving the
tracer are outside of the bouts and timed for themselves.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpu_optimizer.layers.times import time_layers, with_times
from gpu_optimizer.layers.views import own_layers
from gpu_optimizer.memory_tracer import MemoryTracer, TraceMode
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import Step, build_step
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.types import LayerMemory, Mode

MIB = 1 << 20
OVERHEAD_GOAL_RATIO = 0.01
SUM_GOAL_RATIO = 0.01
N_WARM_UPS = 3
COLUMNS = ("parameter_bytes", "activation_bytes", "gradient_bytes", "peak_bytes")
RESNET = Workload("resnet50", batch_size=64, optimizer="adamw")
LLAMA = Workload("llama-1b", batch_size=4, n_tokens=2048, dtype="bf16", optimizer="adamw")


@dataclass(frozen=True)
class Bout:
    """How one workload is compared."""

    name: str
    workload: Workload
    mode: TraceMode
    n_pairs: int
    n_steps: int


FOREACH = replace(RESNET, foreach=True)
BOUTS = (
    Bout("ResNet50 b64 fp32, AdamW foreach", FOREACH, TraceMode.HISTORY, 15, 12),
    Bout("ResNet50 b64 fp32, AdamW foreach", FOREACH, TraceMode.EXACT, 3, 4),
    Bout("ResNet50 b64 fp32, AdamW single", RESNET, TraceMode.HISTORY, 11, 12),
    Bout(
        "ResNet50 b64 bf16, AdamW foreach",
        replace(FOREACH, autocast="bf16"),
        TraceMode.HISTORY,
        11,
        12,
    ),
    Bout("Llama-1B b4 s2048 bf16, AdamW single", LLAMA, TraceMode.HISTORY, 9, 4),
    Bout("Llama-1B b4 s2048 bf16, AdamW single", LLAMA, TraceMode.EXACT, 3, 2),
)
TABLES = (
    RESNET,
    Workload("vit_b_16", batch_size=64),
    Workload("bert-base", batch_size=32, n_tokens=128),
    Workload("llama-7b", mode=Mode.INFER, n_tokens=2048, dtype="bf16"),
    Workload("llama-7b", batch_size=1, n_tokens=512, dtype="bf16", optimizer="adamw"),
)


def timed_s(step: Callable[[], None], n_steps: int) -> float:
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(n_steps):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - began_s


def traced_bout(step: Step, bout: Bout) -> dict[str, Any]:
    """Seconds of the steps inside of a tracer, and what it saw."""
    torch.cuda.reset_peak_memory_stats()
    tracer = MemoryTracer(step.model, step.optimizer, bout.mode)
    began_s = time.perf_counter()
    with tracer:
        steps_s = timed_s(step.run, bout.n_steps)
    whole_s = time.perf_counter() - began_s
    trace = tracer.trace
    return {
        "s": steps_s,
        "outside_s": whole_s - steps_s,
        "missed_bytes": trace.missed_bytes,
        "n_events": len(trace.timeline) - trace.n_before,
        "peak_bytes": trace.allocated_peak_bytes,
        "reserved_peak_bytes": trace.reserved_peak_bytes,
        "device_peak_bytes": trace.device_peak_bytes,
    }


def plain_bout(step: Step, bout: Bout) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    steps_s = timed_s(step.run, bout.n_steps)
    return {"s": steps_s, "peak_bytes": torch.cuda.max_memory_allocated()}


def compare(step: Step, bout: Bout) -> dict[str, Any]:
    pairs = []
    for number in range(bout.n_pairs):
        if number % 2:
            traced, plain = traced_bout(step, bout), plain_bout(step, bout)
        else:
            plain, traced = plain_bout(step, bout), traced_bout(step, bout)
        pairs.append((plain, traced))
    ratios = [traced["s"] / plain["s"] - 1.0 for plain, traced in pairs]
    last_plain, last = pairs[-1]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "name": bout.name,
        "mode": str(bout.mode),
        "n_pairs": bout.n_pairs,
        "n_steps": bout.n_steps,
        "step_ms": statistics.median(plain["s"] for plain, _ in pairs) / bout.n_steps * 1e3,
        "overhead_ratio": statistics.median(ratios),
        "quartile_ratios": [quartiles[0], quartiles[2]],
        "ratios": ratios,
        "missed_bytes": max(traced["missed_bytes"] for _, traced in pairs),
        "events_per_step": last["n_events"] / bout.n_steps,
        "outside_ms": statistics.median(traced["outside_s"] for _, traced in pairs) * 1e3,
        "plain_peak_bytes": last_plain["peak_bytes"],
        "traced_peak_bytes": last["peak_bytes"],
        "reserved_peak_bytes": last["reserved_peak_bytes"],
        "device_peak_bytes": last["device_peak_bytes"],
    }


def warmed(workload: Workload) -> Step:
    step = build_step(workload, torch.device("cuda"))
    for _ in range(N_WARM_UPS):
        step.run()
    torch.cuda.synchronize()
    return step


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def own_rows(layers: LayerMemory) -> dict[str, LayerMemory]:
    return {layer.name: layer for layer in own_layers(layers)}


def table(workload: Workload, folder: Path) -> dict[str, Any]:
    """One model's layers both ways."""
    step = warmed(workload)
    with MemoryTracer(step.model, step.optimizer, TraceMode.EXACT) as tracer:
        step.run()
    trace = tracer.trace
    trace.to_html(folder / f"trace_{workload.family}.html", f"{workload.family}, measured")
    measured = with_times(trace.layers, time_layers(step.model, step.run))
    del step, tracer
    began_s = time.perf_counter()
    estimated = record_step(workload).layers
    estimate_s = time.perf_counter() - began_s
    sums = {
        column: sum(getattr(row, column) for row in own_layers(measured)) for column in COLUMNS[:3]
    }
    return {
        "name": workload.family,
        "mode": str(workload.mode),
        "measured": asdict(measured),
        "estimated": asdict(estimated),
        "estimate_s": estimate_s,
        "sums": sums,
        "missed_bytes": trace.missed_bytes,
        "allocated_peak_bytes": trace.allocated_peak_bytes,
        "differences": dict(differences(measured, estimated)),
    }


def differences(
    measured: LayerMemory, estimated: LayerMemory
) -> Iterator[tuple[str, dict[str, float]]]:
    """By how much the estimate differs, in total and module by module where that is over a MiB."""
    one, two = own_rows(measured), own_rows(estimated)
    for column in COLUMNS:
        total = getattr(measured, column)
        by_module = [
            abs(getattr(two[name], column) / getattr(row, column) - 1.0)
            for name, row in one.items()
            if name in two and getattr(row, column) > MIB
        ]
        if total:
            yield (
                column,
                {
                    "total_ratio": getattr(estimated, column) / total - 1.0,
                    "median_ratio": statistics.median(by_module) if by_module else 0.0,
                    "worst_ratio": max(by_module, default=0.0),
                    "n_modules": len(by_module),
                },
            )


def run(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "overhead": [],
        "tables": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        out.write_text(json.dumps(document, indent=1), encoding="utf-8")

    began_s = time.perf_counter()
    for workload in dict.fromkeys(bout.workload for bout in BOUTS):
        step = warmed(workload)
        for bout in BOUTS:
            if bout.workload == workload:
                document["overhead"].append(compare(step, bout))
                save()
                row = overhead_row(document["overhead"][-1])
                print(f"{time.perf_counter() - began_s:5.0f} s {row}")
        del step
        release()
    for workload in TABLES:
        document["tables"].append(table(workload, out.parent))
        save()
        release()
        print(f"{time.perf_counter() - began_s:5.0f} s {workload.family}")
    return document


def overhead_row(record: dict[str, Any]) -> str:
    low, high = record["quartile_ratios"]
    return (
        f"| {record['name']} | {record['mode']} | {record['step_ms']:.1f} "
        f"| {record['overhead_ratio']:+.2%} | {low:+.2%} to {high:+.2%} "
        f"| {record['events_per_step']:,.0f} | {record['missed_bytes']:,} "
        f"| {record['plain_peak_bytes'] / MIB:,.0f} / {record['traced_peak_bytes'] / MIB:,.0f} "
        f"| {record['outside_ms']:,.0f} |"
    )


def as_layers(record: dict[str, Any]) -> LayerMemory:
    return LayerMemory(**{**record, "children": tuple(map(as_layers, record["children"]))})


def table_rows(layers: LayerMemory, depth: int) -> Iterator[tuple[int, LayerMemory]]:
    def walk(layer: LayerMemory, level: int) -> Iterator[tuple[int, LayerMemory]]:
        yield level, layer
        if level < depth:
            for child in layer.children:
                yield from walk(child, level + 1)

    return walk(layers, 0)


def table_section(record: dict[str, Any]) -> list[str]:
    measured, estimated = as_layers(record["measured"]), as_layers(record["estimated"])
    # Rows are put together by what was estimated, so that both sides have the same ones.
    members = {layer.name: layer for _, layer in table_rows(measured, 99)}
    lines = [
        f"## {record['name']}, {record['mode']}",
        "",
        "MiB measured / estimated; submodules included.",
        "",
        "| layer | class | parameters | activations kept | gradients | peak while running | ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for level, layer in table_rows(estimated, 3 if record["name"] == "resnet50" else 4):
        beside = members.get(layer.name)
        if beside is None or (level > 2 and not layer.children):
            continue
        cells = [
            f"{getattr(beside, column) / MIB:,.1f} / {getattr(layer, column) / MIB:,.1f}"
            for column in COLUMNS
        ]
        name = "&nbsp;" * 2 * level + (layer.name or "(model)")
        ms = "" if beside.time_s is None else f"{beside.time_s * 1e3:.2f}"
        lines.append(f"| {name} | {layer.kind} | {' | '.join(cells)} | {ms} |")
    lines.append("")
    for column, found in record["differences"].items():
        lines.append(
            f"- {column.removesuffix('_bytes')}: estimate {found['total_ratio']:+.2%} in total; "
            f"over {found['n_modules']} modules of more than a MiB median "
            f"{found['median_ratio']:.2%}, worst {found['worst_ratio']:.2%}"
        )
    off = max(
        abs(record["sums"][column] / total - 1.0)
        for column in COLUMNS[:3]
        if (total := getattr(measured, column))
    )
    lines += [
        f"- sums of the layers against the total: off by {off:.2%} at most; "
        f"{record['missed_bytes']:,} bytes missed; estimated in {record['estimate_s']:.1f} s",
        "",
    ]
    return lines


def report(document: dict[str, Any]) -> str:
    goals = [each for each in document["overhead"] if each["mode"] == str(TraceMode.HISTORY)]
    reached = all(each["overhead_ratio"] < OVERHEAD_GOAL_RATIO for each in goals)
    complete = all(each["missed_bytes"] == 0 for each in document["overhead"])
    lines = [
        "# Memory tracer",
        "",
        f"{document['gpu']}, PyTorch {document['torch']}. Reproduce: "
        "`python benchmarks/tracer_overhead.py --out tracer.json --report tracer.md`.",
        "",
        f"Goal in `history` mode: below {OVERHEAD_GOAL_RATIO:.0%}, "
        f"{'reached' if reached else 'missed'}; no allocation missed: "
        f"{'reached' if complete else 'missed'}.",
        "",
        "| step | mode | ms | overhead, median | quartiles | events per step | bytes missed "
        "| peak MiB without / with | to enter and leave, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(overhead_row, document["overhead"]),
        "",
    ]
    for record in document["tables"]:
        lines += table_section(record)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tracer.json"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="no measuring")
    arguments = parser.parse_args()
    if arguments.given:
        document = json.loads(arguments.given.read_text("utf-8"))
    else:
        document = run(arguments.out)
    path = arguments.report or arguments.out.with_suffix(".md")
    path.write_text(report(document), encoding="utf-8")


if __name__ == "__main__":
    main()
