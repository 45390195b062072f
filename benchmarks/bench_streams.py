"""Load the live service with real WebSocket streams and measure latency, answers, drops and cost.

The service is started as a process of its own (or found at --url), pictures are encoded before the
load and sent by separate processes; see docs/reports/streams.md for what the figures mean.

python benchmarks/bench_streams.py --streams 1 4 --fps 30 --report docs/reports/streams.md
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streams.load import LoadOptions, run_load
from streams.records import search_most
from streams.report import one_line, page, warnings, write_report
from streams.service import Service, started_service
from streams.usage import describe_machine, gpu_reader, read_gpu

from pose_analyzer.wire import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL

ANSWERED_RATIO_MIN = 0.98
P99_MS_MAX = 100.0
CRITERION = f"at least {ANSWERED_RATIO_MIN:.0%} answered, p99 at most {P99_MS_MAX:.0f} ms"


@dataclass(frozen=True, slots=True)
class Bench:
    """A service and the pictures it is given."""

    service: Service
    load: LoadOptions


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    load = parser.add_argument_group("load")
    load.add_argument("--streams", type=int, nargs="+", default=[4], help="one load for each")
    load.add_argument("--fps", type=float, default=30.0, help="pictures a second of each stream")
    load.add_argument("--seconds", type=float, default=20.0, help="length of what is measured")
    load.add_argument("--warm-up", type=float, default=5.0, help="shortest time before it, s")
    load.add_argument("--max-warm-up", type=float, default=30.0)
    load.add_argument("--together", action="store_true", help="all pictures at the same moments")
    load.add_argument("--msgpack", action="store_true", help="answers as MessagePack, not JSON")
    load.add_argument("--exercise", default="auto")
    load.add_argument(
        "--find-max",
        action="store_true",
        help="search from the last of --streams for the most that hold: "
        + CRITERION.replace("%", "%%"),
    )
    pictures = parser.add_argument_group("pictures").add_mutually_exclusive_group()
    pictures.add_argument("--frames", type=Path, help="folder of JPEG files, sent as they are")
    pictures.add_argument("--clip", type=Path, help="video; without any, a sample is downloaded")
    parser.add_argument("--height", type=int, choices=(720, 1080), default=1080)
    parser.add_argument("--begin", type=float, default=0.0, help="of what is taken of the clip, s")
    parser.add_argument("--n-pictures", type=int, default=150, help="of the clip, at most")
    service = parser.add_argument_group("service")
    service.add_argument("--detector", help="POSE_DETECTOR for the service")
    service.add_argument("--engine", help="POSE_ENGINE for the service")
    service.add_argument("--no-service-start", action="store_true", help="test what runs at --url")
    service.add_argument("--url", help="such as ws://127.0.0.1:8001")
    service.add_argument("--log", type=Path, help="file for the service's log")
    parser.add_argument("--no-ultralytics", action="store_true")
    parser.add_argument("--report", type=Path, help="page to write, with a .json beside it")
    options = parser.parse_args(arguments)
    if options.no_service_start != (options.url is not None):
        parser.error("--no-service-start and --url belong together")
    return options


def service_environment(options: argparse.Namespace) -> dict[str, str]:
    """Settings of the service that options stand for."""
    wanted = {"POSE_DETECTOR": options.detector, "POSE_ENGINE": options.engine}
    return {name: value for name, value in wanted.items() if value}


def holds(load: Mapping[str, Any]) -> bool:
    """Whether a load was carried, by the criterion of the search."""
    p99_ms = load["latency"]["p99_ms"]
    return (
        not load["n_refused"]
        and load["answered_ratio"] >= ANSWERED_RATIO_MIN
        and p99_ms is not None
        and p99_ms <= P99_MS_MAX
    )


@contextmanager
def pictures(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Folder of the pictures and what they are."""
    if options.frames is not None:
        yield options.frames, f"{len(list(options.frames.glob('*.jp*g')))} JPEG files"
        return
    # Decoding needs libraries that the load itself does not.
    from streams.clips import JPEG_QUALITY, Cut, encode_clip, sample_clip  # noqa: PLC0415

    clip = options.clip or sample_clip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encode_clip(
            clip, folder, Cut(options.height, options.fps, options.n_pictures, options.begin)
        )
        sizes = [path.stat().st_size for path in folder.iterdir()]
        mean_kb = sum(sizes) / len(sizes) / 1e3
        yield (
            folder,
            f"{len(sizes)} of {clip.name} at {options.height} lines, JPEG quality {JPEG_QUALITY}, "
            f"{mean_kb:.0f} kB each, played back and forth",
        )


def run_one(bench: Bench, n_streams: int) -> dict[str, Any]:
    load = run_load(bench.service, replace(bench.load, n_streams=n_streams))
    print("\n".join([one_line(load), *(f"  {text}" for text in warnings(load))]), flush=True)
    return load


def run_all(bench: Bench, options: argparse.Namespace) -> tuple[list[dict[str, Any]], int | None]:
    """All loads asked for, and the most streams that hold if that is wanted."""
    loads = [run_one(bench, n_streams) for n_streams in options.streams]
    if not options.find_max:
        return loads, None

    def carried(n_streams: int) -> bool:
        known = [load for load in loads if load["streams_asked"] == n_streams]
        if not known:
            loads.append(run_one(bench, n_streams))
        return holds((known or loads)[-1])

    most = search_most(carried, options.streams[-1])
    print(f"most streams held ({CRITERION}): {most}", flush=True)
    return loads, most


def main() -> None:
    options = parse()
    machine = describe_machine()
    with closing(gpu_reader()) as reader:
        before = read_gpu(reader, None)
    with ExitStack() as stack:
        folder, described = stack.enter_context(pictures(options))
        print(f"pictures: {described}", flush=True)
        with ExitStack() as running:
            service = _service(options, running)
            bench = Bench(service, _load_options(options, folder))
            loads, most = run_all(bench, options)
        device = next((load["device"] for load in loads if load["device"]), "cpu")
        rates = None if options.no_ultralytics else _ultralytics(folder, device)
    results = {
        "command": _command(),
        "settings": _settings(options),
        "machine": machine,
        "gpu_used_bytes_before": None if before is None else before.used_bytes,
        "pictures": described,
        "criterion": CRITERION,
        "loads": loads,
        "most_streams": most,
        "ultralytics": rates,
    }
    print(f"\n{page(results)}", end="")
    if options.report is not None:
        write_report(options.report, results)


def _service(options: argparse.Namespace, stack: ExitStack) -> Service:
    if options.no_service_start:
        return Service(options.url)
    log = options.log
    if log is None:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "service.log"
    return stack.enter_context(started_service(log, service_environment(options)))


def _load_options(options: argparse.Namespace, folder: Path) -> LoadOptions:
    return LoadOptions(
        n_streams=0,
        fps=options.fps,
        seconds=options.seconds,
        warm_up_s=options.warm_up,
        max_warm_up_s=max(options.max_warm_up, options.warm_up),
        folder=folder,
        exercise=options.exercise,
        subprotocol=MSGPACK_SUBPROTOCOL if options.msgpack else JSON_SUBPROTOCOL,
        together=options.together,
    )


def _ultralytics(folder: Path, device: str) -> dict[str, Any] | None:
    # torch and all it brings are not wanted in memory while the load runs.
    from streams.ultralytics_rate import ultralytics_rates  # noqa: PLC0415

    return ultralytics_rates(folder, device)


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """Settings the service was given, but for folders of this machine."""
    inherited = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("POSE_") and not name.endswith(("_PATH", "_DIR"))
    }
    return inherited | service_environment(options)


def _command() -> str:
    """The command as typed in the checkout, without the places of this machine."""
    here = f"{Path.cwd()}{os.sep}"
    command = shlex.join(["python", *(part.removeprefix(here) for part in sys.argv)])
    data = os.environ.get("SHARED_DATA")
    return command.replace(data, "$SHARED_DATA") if data else command


if __name__ == "__main__":
    main()
