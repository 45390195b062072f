"""What one process of the service can carry without a GPU: sockets, scheduling, analysis, answers.

The real service runs with a detector that only waits as long as a GPU would and then answers
recorded people, so what is left is everything else. Real 1080p JPEG files come over real
WebSockets. The main process is the part that cannot be shared out, and its threads take turns at
Python; only the time in the kernel, mostly copies of pictures out of sockets, runs beside it. The
budget is 0.35 ms of its processor time per answer, which makes 2,700 frames a second on one core.

python benchmarks/front_end_cost.py --report docs/reports/front_end_cost.md
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from streams.clips import Cut, encode_clip, sample_clip
from streams.load import LoadOptions, run_load
from streams.pictures import read_pictures
from streams.recorded_pipeline import GpuTimes, RecordedPipeline, Recording
from streams.records import back_and_forth
from streams.report import table
from streams.service import started_service
from streams.usage import describe_machine

from pose_analyzer.api.main import Server, create_app, server_config
from pose_analyzer.backends import create_detector
from pose_analyzer.ports import FramePipeline
from pose_analyzer.settings import Settings
from pose_analyzer.wire import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from shared_utils.logging import configure_logging

BUDGET_MS = 0.35
FPS = 30.0
N_PICTURES = 60
COLUMNS = (
    "analysis",
    "streams x 30",
    "answered",
    "answers/s",
    "p50 / p99, ms",
    "main process, CPU ms per answer",
    "of this in the kernel",
    "of this in the event loop's thread",
    "all processes, CPU ms per answer",
)


def record(folder: Path, detector_name: str) -> Recording:
    """People of the pictures, as a GPU detector gives them: without MediaPipe's landmarks."""
    detector = create_detector(detector_name, Settings())
    people, width_px, height_px = [], 0, 0
    for number, jpeg in enumerate(read_pictures(folder)):
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        height_px, width_px = image.shape[:2]
        poses = detector.detect([image], [number / FPS])[0]
        people.append([replace(pose, landmarks=None) for pose in poses])
    detector.close()
    order = islice(back_and_forth(len(people)), max(1, 2 * len(people) - 2))
    return Recording(tuple(people[number] for number in order), width_px, height_px)


def serve(options: argparse.Namespace) -> None:
    """Be the service."""
    configure_logging()
    pipeline = RecordedPipeline(record(options.frames, options.detector), GpuTimes())

    def recorded(_: str, __: Settings) -> FramePipeline:
        return pipeline

    app = create_app(Settings(), pipeline_factory=recorded)
    Server(server_config(app, "127.0.0.1", options.port)).run()


def measure(
    load: LoadOptions, detector: str, n_processes: int, streams: Sequence[int]
) -> list[dict[str, Any]]:
    """Load a service with so many analysis processes; 0: a thread."""
    settings = {"POSE_ANALYSIS_PROCESSES": str(n_processes), "POSE_DETECTOR": "mediapipe"}
    here = (str(Path(__file__)), "--serve", "--frames", str(load.folder), "--detector", detector)
    with (
        tempfile.TemporaryDirectory() as folder,
        started_service(Path(folder) / "service.log", settings, here) as service,
    ):
        return [
            run_load(service, replace(load, n_streams=n)) | {"analysis_processes": n_processes}
            for n in streams
        ]


def row(load: dict[str, Any]) -> list[str]:
    """One load as cells of the table."""
    n_processes = load["analysis_processes"]
    latency = load["latency"]
    return [
        f"{n_processes} processes" if n_processes else "a thread",
        str(load["n_streams"]),
        f"{load['answered_ratio']:.1%}",
        f"{load['answered_per_s']:.0f}",
        f"{latency['p50_ms']:.1f} / {latency['p99_ms']:.1f}",
        f"**{load['main_cpu_ms_per_answer']:.3f}**",
        f"{load['main_kernel_cpu_ms_per_answer']:.3f}",
        f"{load['loop_cpu_ms_per_answer']:.3f}",
        f"{load['cpu_ms_per_answer']:.3f}",
    ]


def page(machine: dict[str, Any], loads: Sequence[dict[str, Any]]) -> str:
    """Table and words."""
    lines = [
        "# What the service costs beside detection",
        "",
        "Reproduce: `python benchmarks/front_end_cost.py`.",
        "",
        " ".join((__doc__ or "").split("\n\n")[1].split()),
        "",
        f"Machine: {machine['cpu']}, {machine['cpu_cores']} cores, Python {machine['python']}; "
        f"1-minute load average before the run {machine['load_average_1_min']}. Load generators "
        "run on the same cores; processor time, unlike latency, hardly depends on that.",
        "",
        *table(COLUMNS, [row(load) for load in loads]),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--frames", type=Path, help="folder of JPEG files, else a sample clip's")
    parser.add_argument("--detector", default="mediapipe-lite", help="for the recorded people")
    parser.add_argument("--msgpack", action="store_true")
    parser.add_argument("--report", type=Path, help="page to write, with a .json beside it")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = options.frames or Path(name)
        if options.frames is None:
            encode_clip(sample_clip(), folder, Cut(1080, FPS, N_PICTURES))
        load = LoadOptions(
            n_streams=0,
            fps=FPS,
            seconds=options.seconds,
            warm_up_s=4.0,
            max_warm_up_s=10.0,
            folder=folder,
            exercise="auto",
            subprotocol=MSGPACK_SUBPROTOCOL if options.msgpack else JSON_SUBPROTOCOL,
            together=False,
        )
        loads = [
            result
            for n_processes in options.processes
            for result in measure(load, options.detector, n_processes, options.streams)
        ]
    text = page(machine, loads)
    print(text)
    cost_ms = loads[-1]["main_cpu_ms_per_answer"]
    verdict = "within" if cost_ms <= BUDGET_MS else "OVER"
    print(f"main process: {cost_ms:.3f} ms per answer, {verdict} the budget of {BUDGET_MS} ms")
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")
        results = {"machine": machine, "loads": loads}
        options.report.with_suffix(".json").write_text(
            json.dumps(results, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
