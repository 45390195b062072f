"""One load on a service: streams started, generators run, the steady part measured."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from streams.generator import LoadClock, LoadPlan, StreamPlan, generate
from streams.records import StreamRecord, Window, is_steady, summarise
from streams.service import Answer, Service
from streams.usage import GpuReading, ProcessReading, gpu_reader, read_gpu, read_processes

_BEGIN_AFTER_S = 0.3
_AFTER_WINDOW_S = 0.5  # load goes on, so that the window's last pictures meet the same queue
_POLL_S = 0.25
_RECORDS_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a service is loaded."""

    n_streams: int
    fps: float
    seconds: float
    warm_up_s: float
    max_warm_up_s: float
    folder: Path
    """Of JPEG files."""
    exercise: str
    subprotocol: str
    together: bool
    """All cameras take their pictures at the same moment, the worst case; else spread evenly."""


@dataclass(frozen=True, slots=True)
class _Usage:
    begin: ProcessReading | None
    end: ProcessReading | None
    gpu_max: GpuReading | None


def run_load(service: Service, options: LoadOptions) -> dict[str, Any]:
    """Load a service and give the figures of the steady part."""
    starts = [
        service.start_stream(exercise=options.exercise, fps=options.fps)
        for _ in range(options.n_streams)
    ]
    accepted = [start for start in starts if start.status == 201]
    try:
        plans = _plans(service, accepted, options)
        records, window, usage, steady = _measure(service, plans, options)
    finally:
        for start in accepted:
            service.end_stream(start.body["stream_id"])
    summary = summarise(records, window, n_refused=len(starts) - len(accepted))
    return {
        "streams_asked": options.n_streams,
        "fps": options.fps,
        "together": options.together,
        "subprotocol": options.subprotocol,
        "exercise": options.exercise,
        "detector": records[0].detector if records else None,
        "device": records[0].device if records else None,
        "refusals": sorted({_reason(start) for start in starts if start.status != 201}),
        "steady": steady,
        "n_generators": len(plans),
        **summary,
        **_used(usage, summary["frames_answered"], window),
    }


def n_generators(n_streams: int) -> int:
    """How many processes send: a quarter of the cores, one stream each at least."""
    return max(1, min(n_streams, len(os.sched_getaffinity(0)) // 4))


def _plans(service: Service, accepted: Sequence[Answer], options: LoadOptions) -> list[LoadPlan]:
    """Deal the streams out to the processes."""
    n_streams = len(accepted)
    spread_s = 0.0 if options.together else 1 / options.fps / max(1, n_streams)
    streams = [
        StreamPlan(number, service.address(start), number * spread_s)
        for number, start in enumerate(accepted)
    ]
    n_processes = n_generators(n_streams)
    dealt = [tuple(streams[first::n_processes]) for first in range(n_processes)]
    return [
        LoadPlan(part, options.folder, options.fps, options.subprotocol) for part in dealt if part
    ]


def _measure(
    service: Service, plans: Sequence[LoadPlan], options: LoadOptions
) -> tuple[list[StreamRecord], Window, _Usage, bool]:
    context = multiprocessing.get_context("spawn")
    clock = LoadClock(
        begin_s=context.RawValue("d", 0.0),
        stop_s=context.RawValue("d", float("inf")),
        n_answers=context.RawArray("q", max(1, len(plans))),
    )
    with _generators(context, plans, clock) as pipes:
        begin_s = time.monotonic() + _BEGIN_AFTER_S
        clock.begin_s.value = begin_s
        steady = _warm_up(clock, begin_s, options) if plans else False
        window = Window(time.monotonic(), time.monotonic() + options.seconds)
        clock.stop_s.value = window.end_s + _AFTER_WINDOW_S
        usage = _watch(service, window)
        records = [record for pipe in pipes for record in _receive(pipe, _RECORDS_TIMEOUT_S)]
    return records, window, usage, steady


@contextmanager
def _generators(
    context: Any,  # noqa: ANN401 - a multiprocessing context
    plans: Sequence[LoadPlan],
    clock: LoadClock,
) -> Iterator[list[Connection]]:
    """Start the processes and wait until all their streams are connected."""
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        for index, plan in enumerate(plans):
            ours, theirs = context.Pipe()
            process = context.Process(target=generate, args=(plan, clock, index, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        for pipe in pipes:
            _receive(pipe, None)
        yield pipes
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _receive(pipe: Connection, timeout_s: float | None) -> Any:  # noqa: ANN401 - what was sent
    try:
        if pipe.poll(timeout_s):
            return pipe.recv()
    except EOFError as error:
        raise SystemExit("A load generator ended early; its error stands above.") from error
    raise SystemExit("A load generator did not hand its records over.")


def _warm_up(clock: LoadClock, begin_s: float, options: LoadOptions) -> bool:
    """Wait until answers come at a steady rate; False if they never did."""
    counts: list[tuple[float, int]] = []
    while True:
        time.sleep(_POLL_S)
        now_s = time.monotonic()
        counts.append((now_s, sum(clock.n_answers)))
        if now_s - begin_s < options.warm_up_s:
            continue
        if is_steady(counts):
            return True
        if now_s - begin_s > options.max_warm_up_s:
            return False


def _watch(service: Service, window: Window) -> _Usage:
    """Read what the service takes until the window ends."""
    pid = service.pid
    begin = None if pid is None else read_processes(pid)
    readings: list[GpuReading] = []
    with closing(gpu_reader()) as reader:
        while True:
            if (reading := read_gpu(reader, pid)) is not None:
                readings.append(reading)
            left_s = window.end_s - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(_POLL_S, left_s))
    end = None if pid is None else read_processes(pid)
    gpu_max = max(readings, key=lambda reading: reading.used_bytes, default=None)
    return _Usage(begin, end, gpu_max)


def _used(usage: _Usage, n_answered: int, window: Window) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "gpu_used_bytes_max": None if usage.gpu_max is None else usage.gpu_max.used_bytes,
        "gpu_service_bytes_max": None if usage.gpu_max is None else usage.gpu_max.service_bytes,
    }
    if usage.begin is None or usage.end is None:
        return figures
    spent_s = {
        "cpu": usage.end.all_cpu_s - usage.begin.all_cpu_s,
        "main_cpu": usage.end.main_cpu_s - usage.begin.main_cpu_s,
        "main_kernel_cpu": usage.end.main_kernel_cpu_s - usage.begin.main_kernel_cpu_s,
        "loop_cpu": usage.end.loop_cpu_s - usage.begin.loop_cpu_s,
    }
    for name, cpu_s in spent_s.items():
        figures[f"{name}_s_per_s"] = round(cpu_s / window.length_s, 3)
        figures[f"{name}_ms_per_answer"] = (
            round(1e3 * cpu_s / n_answered, 3) if n_answered else None
        )
    return figures | {
        "rss_begin_bytes": usage.begin.rss_bytes,
        "rss_end_bytes": usage.end.rss_bytes,
        "n_service_processes": usage.end.n_processes,
        "n_service_threads": usage.end.n_threads,
    }


def _reason(start: Answer) -> str:
    detail = start.body.get("detail", "") if isinstance(start.body, dict) else start.body
    return f"{start.status}: {detail}"
