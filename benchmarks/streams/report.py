"""The figures of a benchmark as JSON and as a page with tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streams.records import STAGES

# Past this the generator, not the service, may be what was measured.
LATENESS_LIMIT_MS = 5.0

_ANSWERS = (
    "streams x frames/s",
    "answered",
    "answered/s",
    "of these with people",
    "p50, ms",
    "p95, ms",
    "p99, ms",
    "max, ms",
    "p99 from schedule, ms",
    "streams' answers/s, fewest to most",
    "not answered, by cause",
)
_COST = (
    "streams",
    "CPU cores (main process)",
    "CPU ms per answer (main process)",
    "RSS begin → end, MB",
    "processes, threads",
    "GPU memory in use, MB",
    "of the service, MB",
    "generator late, p99 ms",
)
_EXPLANATION = """
Each row is one load after its warm-up. Latency is the time from just before a picture is handed to
the socket until its answer has been received; *from schedule* counts from when the picture was due,
so that a picture held up before its sending is not let off. Pictures are sent when they are due,
whatever became of the ones before (open loop), by processes of their own on the same machine.
*Answered* is of the pictures due. CPU is the service's, all processes together, without the load
generators. RSS adds up its processes, shared pages once for each.
"""


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page, and the figures beside it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    path.write_text(page(results), encoding="utf-8")


def page(results: Mapping[str, Any]) -> str:
    """Put results into words and tables."""
    machine = results["machine"]
    settings = [f"{name}={value}" for name, value in results["settings"].items()]
    lines = [
        "# Live streams under load",
        "",
        f"Reproduce: `{' '.join([*settings, results['command']])}`",
        *_EXPLANATION.splitlines(),
        "",
        f"Machine: {machine['cpu']}, {machine['cpu_cores']} cores, "
        f"{machine['gpu'] or 'no GPU'}, Python {machine['python']}; 1-minute load average before "
        f"the run {machine['load_average_1_min']}. "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        f"Pictures: {results['pictures']}.",
        "",
        *tables(results["loads"]),
    ]
    if results["gpu_used_bytes_before"] is not None:
        before = _megabytes(results["gpu_used_bytes_before"])
        lines += ["", f"Before the service was started {before} MB of the GPU were in use."]
    if results.get("most_streams") is not None:
        lines += ["", f"Most streams held ({results['criterion']}): **{results['most_streams']}**."]
    lines += ["", *_ultralytics(results["ultralytics"])]
    found = [warning for load in results["loads"] for warning in warnings(load)]
    lines += (
        ["", "To be kept in mind:", "", *(f"- {warning}" for warning in found)] if found else []
    )
    return "\n".join([*lines, ""])


def one_line(load: Mapping[str, Any]) -> str:
    """A load as the person at the terminal reads it."""
    cells = dict(zip(_ANSWERS, _answer_cells(load), strict=True))
    return (
        f"{cells[_ANSWERS[0]]}: {cells['answered']} answered, "
        f"p50 / p95 / p99 {cells['p50, ms']} / {cells['p95, ms']} / {cells['p99, ms']} ms, "
        f"not answered {cells['not answered, by cause']}, "
        f"{_number(load.get('cpu_s_per_s'), 2)} CPU cores"
    )


def tables(loads: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row per load in each of three tables: answers, stages, cost."""
    stages = ("streams", *(f"{stage}, p50 / p95 ms" for stage in STAGES))
    return [
        *table(_ANSWERS, [_answer_cells(load) for load in loads]),
        "",
        "Where the service says the time went:",
        "",
        *table(stages, [_stage_cells(load) for load in loads]),
        "",
        "What it took:",
        "",
        *table(_COST, [_cost_cells(load) for load in loads]),
    ]


def warnings(load: Mapping[str, Any]) -> list[str]:
    """What makes a row less than it seems."""
    found = []
    label = f"{load['n_streams']} streams"
    lateness_ms = load["generator_lateness"]["p99_ms"]
    if lateness_ms is not None and lateness_ms > LATENESS_LIMIT_MS:
        found.append(
            f"{label}: the load generator itself was late by {lateness_ms:.1f} ms (p99), so "
            "latencies include its own waiting for a processor."
        )
    if not load["steady"]:
        found.append(f"{label}: the rate of answers had not become steady before measuring.")
    if load["n_refused"]:
        refusals = "; ".join(load["refusals"])
        found.append(f"{label}: {load['n_refused']} more were refused ({refusals}).")
    if load["frames_unaccounted"]:
        found.append(
            f"{label}: {load['frames_unaccounted']} pictures neither answered nor named as dropped."
        )
    told = [what for what in ("errors", "states", "closed") if load[what]]
    return [*found, *(f"{label}: {what} {json.dumps(load[what])}." for what in told)]


def _answer_cells(load: Mapping[str, Any]) -> list[str]:
    latency = load["latency"]
    n_missing = load["frames_due"] - load["frames_answered"]
    causes = ", ".join(f"{n} {cause}" for cause, n in load["dropped"].items())
    fewest, most = load["stream_answered_per_s_min"], load["stream_answered_per_s_max"]
    return [
        f"{load['n_streams']} x {load['fps']:g}",
        f"{load['answered_ratio']:.2%}",
        _number(load["answered_per_s"]),
        f"{load['peopled_ratio']:.0%}",
        *(_number(latency[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
        _number(load["latency_from_schedule"]["p99_ms"]),
        f"{_number(fewest)} – {_number(most)}",
        f"{n_missing} ({causes})" if causes else str(n_missing),
    ]


def _stage_cells(load: Mapping[str, Any]) -> list[str]:
    stages = [load["stages"][stage] for stage in STAGES]
    cells = [f"{_number(stage['p50_ms'])} / {_number(stage['p95_ms'])}" for stage in stages]
    return [str(load["n_streams"]), *cells]


def _cost_cells(load: Mapping[str, Any]) -> list[str]:
    def with_main(name: str) -> str:
        return f"{_number(load.get(name), 2)} ({_number(load.get(f'main_{name}'), 2)})"

    return [
        str(load["n_streams"]),
        with_main("cpu_s_per_s"),
        with_main("cpu_ms_per_answer"),
        f"{_megabytes(load.get('rss_begin_bytes'))} → {_megabytes(load.get('rss_end_bytes'))}",
        f"{load.get('n_service_processes', '–')}, {load.get('n_service_threads', '–')}",
        _megabytes(load["gpu_used_bytes_max"]),
        _megabytes(load["gpu_service_bytes_max"]),
        _number(load["generator_lateness"]["p99_ms"]),
    ]


def _ultralytics(rates: Mapping[str, Any] | None) -> list[str]:
    if rates is None:
        return []
    by_batch = rates["frames_per_s"]
    return [
        f"Ultralytics {rates['version']} `predict`, {rates['model']} on {rates['device']}, the "
        "same pictures already decoded, in the same run after the service had ended:",
        "",
        *table(("batch", *by_batch), [["frames/s", *(f"{r:.1f}" for r in by_batch.values())]]),
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _megabytes(n_bytes: int | None) -> str:
    return "–" if n_bytes is None else f"{n_bytes / 1e6:.0f}"
