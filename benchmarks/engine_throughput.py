"""The live service's engine alone: JPEG bytes in, people out, beside Ultralytics `predict`.

Every way to run the network is measured with the same JPEGs of a folder at several batch sizes,
with as many batches under way as the pipeline takes; stages are also timed one by one, each
waited for. Ultralytics gets the same pictures decoded already. Keypoints of FP16 are compared
with FP32, and FP32 with the detector on the CPU.

python benchmarks/engine_throughput.py --frames FOLDER --weights yolo11n-pose.pt --out engine.json
python benchmarks/engine_throughput.py --device cpu --seconds 1 --batches 1 2 ...
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import structlog
import torch

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
if importlib.util.find_spec("pose_analyzer") is None:
    sys.path += [str(PROJECTS / name / "src") for name in ("pose_analyzer", "shared_utils")]
if any(importlib.util.find_spec(name) is None for name in ("trackers", "pydantic_settings")):
    # The package opens every kind of detector; the engine needs nothing of theirs.
    package = types.ModuleType("pose_analyzer.backends")
    package.__path__ = [str(PROJECTS / "pose_analyzer" / "src" / "pose_analyzer" / "backends")]
    sys.modules[package.__name__] = package

from pose_analyzer.backends.gpu.options import GpuOptions, open_stages  # noqa: E402
from pose_analyzer.backends.gpu.pipeline import (  # noqa: E402
    MAX_BATCHES,
    GpuFramePipeline,
    create_gpu_pipeline,
)
from pose_analyzer.backends.yolo_torch import TorchBackend  # noqa: E402
from pose_analyzer.pose_detector import YOLOPoseDetector  # noqa: E402
from pose_analyzer.stream_types import FrameOutcome, FramePoses, StreamFrame  # noqa: E402
from pose_analyzer.types import Pose  # noqa: E402
from pose_analyzer.ultralytics_library import import_ultralytics  # noqa: E402

TARGET_FRAMES_PER_S = 3_000
TARGET_RATIO = 6.0
PREDICT_BATCHES = (1, 4, 8, 16)
N_COMPARED = 32
MIB = 1 << 20

Contents = Sequence[bytes] | Sequence[np.ndarray]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder of JPEG pictures")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["cuda_graph", "cuda_graph+contiguous", "cuda_graph+tune", "tensorrt", "eager"],
        help="engine, with +contiguous, +tune, +fp32; the first is the one that is judged",
    )
    parser.add_argument("--other-batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    return parser.parse_args()


def options_of(engine: str, device: str) -> GpuOptions:
    name, *extras = engine.split("+")
    return GpuOptions(
        device=device,
        engine=name,
        half="fp32" not in extras,
        channels_last="contiguous" not in extras,
        tune="tune" in extras,
        warm_hw=None,
        measure_batch=0,
    )


def batch_of(contents: Contents, n_frames: int, first: int = 0) -> list[StreamFrame]:
    return [
        StreamFrame(f"s{i}", i, 0.0, time.monotonic(), contents[(first + i) % len(contents)])
        for i in range(n_frames)
    ]


def rate(call: Callable[[], int], seconds: float) -> float:
    """Calls a second, times what each call returns."""
    call()
    call()
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        n += call()
    return n / (time.perf_counter() - began)


def milliseconds(calls: Sequence[Callable[[], None]], seconds: float) -> list[float]:
    """Medians of calls that follow one another."""
    elapsed: list[list[float]] = [[] for _ in calls]
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(elapsed[0]) < 5:
        for times, call in zip(elapsed, calls, strict=True):
            began = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - began))
    return [round(statistics.median(times[2:]), 3) for times in elapsed]


def full_load(
    pipeline: GpuFramePipeline, jpegs: Sequence[bytes], n_frames: int, seconds: float
) -> dict[str, Any]:
    """Frames a second with every stage busy."""
    under_way: deque[Future[list[FrameOutcome]]] = deque()
    answers: list[tuple[float, FramePoses]] = []
    n_failed = first = 0
    # The first batches capture graphs and fill the pipeline.
    n_skipped = MAX_BATCHES + 2
    ends: list[float] = []
    while len(ends) < n_skipped + 3 or ends[-1] - ends[n_skipped] < seconds:
        while len(under_way) <= MAX_BATCHES:
            under_way.append(pipeline.submit(batch_of(jpegs, n_frames, first)))
            first += n_frames
        outcomes = under_way.popleft().result()
        ends.append(time.perf_counter())
        n_failed += sum(not isinstance(one, FramePoses) for one in outcomes)
        answers += [(ends[-1], one) for one in outcomes[:1] if isinstance(one, FramePoses)]
    for future in under_way:
        future.result()
    steady = [one for end, one in answers if end > ends[n_skipped]]
    gaps = [b - a for a, b in pairwise(ends[n_skipped:])]
    return {
        "frames_per_s": round(n_frames * len(gaps) / sum(gaps), 1),
        "failed": n_failed,
        "stages_ms": {
            stage: round(1e3 * statistics.median(getattr(one, stage) for one in steady), 3)
            for stage in ("decode_s", "infer_s", "postprocess_s")
        },
    }


def alone(
    pipeline: GpuFramePipeline, jpegs: Sequence[bytes], n_frames: int, seconds: float
) -> dict[str, float]:
    """Time of a batch that meets an idle pipeline, from submitting to people."""
    elapsed = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(elapsed) < 10:
        batch = batch_of(jpegs, n_frames, len(elapsed))
        began = time.perf_counter()
        pipeline.submit(batch).result()
        elapsed.append(1e3 * (time.perf_counter() - began))
    steady = np.array(elapsed[5:])
    return {
        f"p{percent}": round(float(np.percentile(steady, percent)), 3) for percent in (50, 95, 99)
    }


def device_used_bytes() -> int | None:
    """Of the whole device, by all processes."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free


def memory(device: str) -> dict[str, float]:
    if not device.startswith("cuda"):
        return {}
    return {
        "allocated_peak_mib": round(torch.cuda.max_memory_allocated() / MIB, 1),
        "reserved_peak_mib": round(torch.cuda.max_memory_reserved() / MIB, 1),
        "device_used_mib": round((device_used_bytes() or 0) / MIB, 1),
    }


def stage_times(
    arguments: argparse.Namespace, engine: str, jpegs: Sequence[bytes], batches: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Each stage by itself, waited for."""
    with tempfile.TemporaryDirectory() as folder:
        options = options_of(engine, arguments.device)
        stages = open_stages(arguments.weights, "model", Path(folder), options)
        times = {}
        for n_frames in batches:
            state: dict[str, Any] = {}
            batch = batch_of(jpegs, n_frames)

            def decode(state: dict[str, Any] = state, batch: list[StreamFrame] = batch) -> None:
                with stages.thread_of("decode"):
                    state["pictures"] = stages.decode(batch)

            def infer(state: dict[str, Any] = state) -> None:
                with stages.thread_of("infer"):
                    state["inferred"] = stages.infer(state["pictures"])
                    state["inferred"].wait()

            def collect(state: dict[str, Any] = state) -> None:
                stages.collect(state["inferred"])

            found = milliseconds([decode, infer, collect], arguments.seconds / 3)
            times[n_frames] = dict(zip(("decode", "infer", "collect"), found, strict=True))
        stages.close()
    return times


def measure_engine(
    arguments: argparse.Namespace, engine: str, jpegs: Sequence[bytes], batches: Sequence[int]
) -> dict[str, Any]:
    """Everything about one way to run the network."""
    if arguments.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs() as logs:
        options = options_of(engine, arguments.device)
        began = time.perf_counter()
        pipeline = create_gpu_pipeline(arguments.weights, "model", Path(folder), options)
        result: dict[str, Any] = {"batches": {}}
        for n_frames in batches:
            found = full_load(pipeline, jpegs, n_frames, arguments.seconds)
            found["alone_ms"] = alone(pipeline, jpegs, n_frames, arguments.seconds / 3)
            result["batches"][n_frames] = found | memory(arguments.device)
            print(engine, n_frames, json.dumps(result["batches"][n_frames]), flush=True)
        pipeline.close()
    result["elapsed_s"] = round(time.perf_counter() - began, 1)
    result["engine"] = next(one["engine"] for one in logs if one["event"] == "detector_opened")
    result["warnings"] = [one for one in logs if one["log_level"] != "info"]
    return result


def measure_predict(
    arguments: argparse.Namespace, images: Sequence[np.ndarray]
) -> dict[int, float]:
    """Frames a second of Ultralytics' `predict` on decoded pictures."""
    on_gpu = arguments.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        ultralytics = import_ultralytics(Path(folder))
        model = ultralytics.YOLO(str(arguments.weights))
        known = vars(importlib.import_module("ultralytics.cfg").DEFAULT_CFG)
        precision = {"quantize": 16} if "quantize" in known else {"half": True}
        rates = {}
        for n_frames in PREDICT_BATCHES if on_gpu else PREDICT_BATCHES[:1]:
            picked = [images[i % len(images)] for i in range(n_frames)]

            def predict(picked: list[np.ndarray] = picked) -> int:
                found = model.predict(
                    picked,
                    device=arguments.device,
                    conf=0.25,
                    iou=0.45,
                    imgsz=640,
                    batch=len(picked),
                    verbose=False,
                    **(precision if on_gpu else {}),
                )
                for one in found:
                    one.keypoints.data.cpu()
                return len(picked)

            rates[n_frames] = round(rate(predict, arguments.seconds), 1)
            print("predict", n_frames, rates[n_frames], flush=True)
    return rates


def people_in(
    arguments: argparse.Namespace, images: Sequence[np.ndarray], *, half: bool
) -> list[list[Pose]]:
    engine = "cuda_graph" if half else "cuda_graph+fp32"
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        options = options_of(engine, arguments.device)
        pipeline = create_gpu_pipeline(arguments.weights, "model", Path(folder), options)
        outcomes = [pipeline.submit(batch_of([image], 1)).result()[0] for image in images]
        pipeline.close()
    return [one.poses if isinstance(one, FramePoses) else [] for one in outcomes]


def on_cpu(arguments: argparse.Namespace, images: Sequence[np.ndarray]) -> list[list[Pose]]:
    with tempfile.TemporaryDirectory() as folder:
        backend = TorchBackend(arguments.weights, Path(folder))
        detector = YOLOPoseDetector(backend, confidence=0.25)
        return [detector.detect([image])[0] for image in images]


def differences(expected: list[list[Pose]], found: list[list[Pose]]) -> dict[str, float]:
    """Between people that a network is sure of, at keypoints it is sure of, in picture pixels."""
    keypoints, n_missed = [0.0], 0
    for ours, theirs in zip(expected, found, strict=True):
        for pose in (one for one in ours if one.score > 0.5):
            if not theirs:
                n_missed += 1
                continue
            seen = pose.confidences > 0.5
            away = [np.abs(other.box_px - pose.box_px).sum() for other in theirs]
            other = theirs[int(np.argmin(away))]
            keypoints += np.abs(other.keypoints_px - pose.keypoints_px)[seen].ravel().tolist()
    return {
        "people_missed": n_missed,
        "keypoints_px_median": round(statistics.median(keypoints), 4),
        "keypoints_px_p99": round(float(np.percentile(keypoints, 99)), 4),
        "keypoints_px_max": round(max(keypoints), 4),
    }


def verdict(result: dict[str, Any], first: str) -> dict[str, Any]:
    best = max(one["frames_per_s"] for one in result["engines"][first]["batches"].values())
    predict = max(result["predict_frames_per_s"].values())
    return {
        "frames_per_s": best,
        "predict_frames_per_s": predict,
        "ratio": round(best / predict, 2),
        "target_met": best >= TARGET_FRAMES_PER_S and best >= TARGET_RATIO * predict,
    }


def table(result: dict[str, Any]) -> str:
    """The report."""
    lines = [
        "# Engine throughput",
        "",
        f"{result['device']}, torch {result['torch']}, {result['frames']} JPEGs of "
        f"{result['size'][1]}x{result['size'][0]}, {result['jpeg_kb']:.0f} KB on average. "
        "JPEG bytes in, people out; Ultralytics gets decoded pictures.",
        "",
        "| engine | runs as | batch | frames/s | alone p50 / p99 ms | decode / infer / collect ms "
        "at full load | peak reserved / device used MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, engine in result["engines"].items():
        for n_frames, one in engine["batches"].items():
            stages = " / ".join(f"{value:.2f}" for value in one["stages_ms"].values())
            alone_ms = f"{one['alone_ms']['p50']:.2f} / {one['alone_ms']['p99']:.2f}"
            used = f"{one.get('reserved_peak_mib', '–')} / {one.get('device_used_mib', '–')}"
            lines.append(
                f"| {name} | {engine['engine']} | {n_frames} | {one['frames_per_s']:,.0f} "
                f"| {alone_ms} | {stages} | {used} |"
            )
    lines += ["", "| Ultralytics `predict`, batch | frames/s |", "| --- | --- |"]
    lines += [f"| {n} | {value:,.0f} |" for n, value in result["predict_frames_per_s"].items()]
    lines += ["", "| stages by themselves, batch | decode ms | infer ms | collect ms |"]
    lines += ["| --- | --- | --- | --- |"]
    for n_frames, one in result["stages_alone_ms"].items():
        lines.append(f"| {n_frames} | {one['decode']} | {one['infer']} | {one['collect']} |")
    lines += [
        "",
        "| keypoints, px | missed | median | p99 | max |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in result["differences"].items():
        values = " | ".join(str(value) for value in one.values())
        lines.append(f"| {name} | {values} |")
    reasons = {
        f"{one['engine']} → {one['instead']}: {one['reason']}"
        for engine in result["engines"].values()
        for one in engine["warnings"]
        if one["event"] == "engine_unavailable"
    }
    lines += ["", *[f"- {reason}" for reason in sorted(reasons)]]
    judged = result["verdict"]
    lines += [
        "",
        f"Best {judged['frames_per_s']:,.0f} frames/s, {judged['ratio']} times `predict`; "
        f"target of {TARGET_FRAMES_PER_S:,} and {TARGET_RATIO:.0f} times "
        f"{'met' if judged['target_met'] else 'missed'}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    jpegs = [path.read_bytes() for path in sorted(arguments.frames.glob("*.jpg"))]
    assert jpegs, f"no *.jpg in {arguments.frames}"
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in jpegs]
    on_gpu = arguments.device.startswith("cuda")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if on_gpu else "CPU",
        "torch": torch.__version__,
        "frames": len(jpegs),
        "size": list(images[0].shape[:2]),
        "jpeg_kb": sum(len(data) for data in jpegs) / len(jpegs) / 1000,
        "device_used_before_mib": round((device_used_bytes() or 0) / MIB, 1),
        "engines": {},
    }
    first, *others = arguments.engines
    result["engines"][first] = measure_engine(arguments, first, jpegs, arguments.batches)
    result["stages_alone_ms"] = stage_times(arguments, first, jpegs, arguments.batches)
    result["predict_frames_per_s"] = measure_predict(arguments, images)
    compared = images[:N_COMPARED]
    fp16, fp32 = (people_in(arguments, compared, half=half) for half in (True, False))
    cpu = on_cpu(arguments, compared)
    result["differences"] = {
        "FP16 against FP32": differences(fp32, fp16),
        "FP32 against the CPU": differences(cpu, fp32),
    }
    result["verdict"] = verdict(result, first)
    save(arguments, result)
    batches = [n for n in arguments.other_batches if n in arguments.batches]
    for engine in others:
        result["engines"][engine] = measure_engine(arguments, engine, jpegs, batches)
        save(arguments, result)
    print(table(result))


def save(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Written after every engine: one that fails must not cost the others."""
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if arguments.report is not None:
        arguments.report.write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
