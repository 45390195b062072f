"""Files decoded by the GPU (NVDEC) and analysed there: frames per second over many sources.

Measured with the same files for each number of sources:

- ``nvdec``: PyNvVideoCodec alone, pictures left where the decoder put them; the hardware's limit,
- ``rgb``: the service's sources, upright RGB pictures on the GPU,
- ``poses``: these with pose detection. Each source keeps a few frames in flight and waits for
  their outcomes, as the live service does; who follows people and counts, in processes of its
  own there, is left out.

Beside the frames: processor time per frame, and how much later than asked for a thread wakes up
that sleeps 2 ms, which tells how long threads wait for Python's lock. Every figure is printed,
and the file written anew, as soon as it is known. Needs an NVIDIA GPU and the extras ``yolo`` and
``nvdec``.
"""

import argparse
import itertools
import json
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from pose_analyzer.backends.gpu.pipeline import create_gpu_pipeline
from pose_analyzer.ports import FramePipeline
from pose_analyzer.sources import AllowedSource, SourceKind, nvdec_available, open_live_source
from pose_analyzer.stream_types import FrameContent, FrameOutcome, FramePoses, StreamFrame

TARGET_FRAMES_PER_S = 2_500
TARGET_SOURCES = 16
IN_FLIGHT = 8
CLIP_FRAMES = 300
START_LIMIT_S = 20.0
DRAIN_LIMIT_S = 3.0


def pattern(n_frames: int) -> Iterator[av.VideoFrame]:
    """FFmpeg's moving test picture."""
    graph = av.filter.Graph()
    nodes = [
        graph.add("testsrc2", "size=1920x1080:rate=30"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return (graph.vpull() for _ in range(n_frames))


def photographs(folder: Path, n_frames: int) -> Iterator[av.VideoFrame]:
    """The pictures of a folder, there and back again, without a jump."""
    images = [cv2.imread(str(path)) for path in sorted(folder.glob("*.jpg"))]
    turns = itertools.cycle([*images, *images[-2:0:-1]])
    return (
        av.VideoFrame.from_ndarray(image, format="bgr24")
        for image in itertools.islice(turns, n_frames)
    )


def write_clip(path: Path, frames: Iterator[av.VideoFrame]) -> None:
    """1080p, H.264 with B pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "60"}
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repeat_clip(clip: Path, path: Path, n_frames: int) -> None:
    """Join a clip to itself until it has so many frames, without encoding it again."""
    with av.open(str(clip)) as source:
        packets = [
            (bytes(packet), packet.pts, packet.dts, packet.is_keyframe)
            for packet in source.demux(video=0)
            if packet.size
        ]
        track = source.streams.video[0]
        stamps = sorted(pts for _, pts, _, _ in packets)
        length = stamps[-1] - stamps[0] + (stamps[1] - stamps[0])
        with av.open(str(path), "w") as target:
            copy = target.add_stream_from_template(track)
            for turn in range(-(-n_frames // len(packets))):
                for data, pts, dts, is_key in packets:
                    packet = av.Packet(data)
                    packet.pts, packet.dts = pts + turn * length, dts + turn * length
                    packet.time_base, packet.is_keyframe = track.time_base, is_key
                    packet.stream = copy
                    target.mux(packet)


class Feed:
    """Receives one source's frames; a few may be unanswered."""

    def __init__(self, stream_id: str, waiting: "queue.SimpleQueue[StreamFrame] | None") -> None:
        self.stream_id = stream_id
        self.n_answered = 0
        self.n_frames = 0
        self.ended = False
        self.problem: str | None = None
        self._waiting = waiting
        self._room = threading.Semaphore(IN_FLIGHT)

    def on_rate(self, fps: float) -> None:
        pass

    def on_frame(self, time_s: float, content: FrameContent) -> None:
        self.n_frames += 1
        if self._waiting is None:
            self.n_answered += 1
            return
        self._room.acquire()
        index = self.n_frames - 1
        frame = StreamFrame(self.stream_id, index, time_s, time.monotonic(), content)
        self._waiting.put(frame)

    def answered(self) -> None:
        self.n_answered += 1
        self._room.release()

    def on_problem(self, problem: str | None) -> None:
        self.problem = problem

    def on_end(self, problem: str | None) -> None:
        self.problem, self.ended = problem, True


def take_batch(waiting: "queue.SimpleQueue[StreamFrame]", n_frames: int) -> list[StreamFrame]:
    batch = []
    try:
        batch.append(waiting.get(timeout=0.2))
        while len(batch) < n_frames:
            batch.append(waiting.get_nowait())
    except queue.Empty:
        pass
    return batch


@dataclass
class Analysis:
    """Has what waits analysed until stopped."""

    pipeline: FramePipeline
    feeds: dict[str, Feed]
    waiting: "queue.SimpleQueue[StreamFrame]"
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        idle = threading.Event()
        self.pipeline.on_idle(idle.set)
        while not self.stop.is_set():
            idle.clear()
            if not self.pipeline.n_idle():
                idle.wait(0.05)
            elif batch := take_batch(self.waiting, self.pipeline.max_batch):
                self.batches[len(batch)] += 1
                self.pipeline.submit(batch).add_done_callback(partial(self._answer, batch))

    def _answer(self, batch: list[StreamFrame], done: "Future[list[FrameOutcome]]") -> None:
        if (error := done.exception()) is not None:
            self.outcomes[f"failed: {error}"] += len(batch)
        else:
            for outcome in done.result():
                if isinstance(outcome, FramePoses):
                    self.outcomes["people" if outcome.poses else "nobody"] += 1
                else:
                    self.outcomes[outcome.detail] += 1
        for frame in batch:
            self.feeds[frame.stream_id].answered()


class LockProbe:
    """Sleeps and notes how much too late it goes on."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.perf_counter()
            time.sleep(0.002)
            self._late_ms.append((time.perf_counter() - began - 0.002) * 1e3)

    def close(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        p50, p95 = (float(late_ms) for late_ms in np.percentile(self._late_ms, [50, 95]))
        return {"woken_late_p50_ms": round(p50, 3), "woken_late_p95_ms": round(p95, 3)}


def measured(counts: Callable[[], list[int]], seconds: float) -> dict[str, object]:
    """Frames per second by these counts, once each has begun to grow and a second has passed."""
    limit = time.monotonic() + START_LIMIT_S
    while min(counts()) == 0 and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(1.0)
    probe = LockProbe()
    before, began, cpu_s = counts(), time.perf_counter(), time.process_time()
    time.sleep(seconds)
    elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    grown = [after - count for after, count in zip(counts(), before, strict=True)]
    return {
        "frames_per_s": round(sum(grown) / elapsed_s, 1),
        "slowest_source_frames_per_s": round(min(grown) / elapsed_s, 1),
        "fastest_source_frames_per_s": round(max(grown) / elapsed_s, 1),
        "cpu_ms_per_frame": round(1e3 * cpu_s / max(sum(grown), 1), 3),
        **probe.close(),
    }


def run_sources(
    pipeline: FramePipeline | None, clip: Path, n_sources: int, seconds: float
) -> dict[str, object]:
    """The service's sources, with or without detection."""
    waiting = None if pipeline is None else queue.SimpleQueue[StreamFrame]()
    feeds = {f"source-{i}": Feed(f"source-{i}", waiting) for i in range(n_sources)}
    allowed = AllowedSource(SourceKind.FILE, clip.name, str(clip))
    readers = [open_live_source(allowed, feed, "cuda:0") for feed in feeds.values()]
    analysis, worker = None, threading.Thread()
    if pipeline is not None and waiting is not None:
        analysis = Analysis(pipeline, feeds, waiting)
        worker = threading.Thread(target=analysis.run)
        worker.start()
    for reader in readers:
        reader.start()
    result = measured(lambda: [feed.n_answered for feed in feeds.values()], seconds)
    ended = [name for name, feed in feeds.items() if feed.ended]
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    result["gpu_memory_used_bytes"] = total_bytes - free_bytes
    if ended:
        result["sources_that_ended_early"] = ended
    if problems := sorted({feed.problem for feed in feeds.values() if feed.problem}):
        result["problems"] = problems
    # Readers notice when the next frame is due; those under way are still answered.
    closing = [threading.Thread(target=reader.close) for reader in readers]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(DRAIN_LIMIT_S)
    limit = time.monotonic() + DRAIN_LIMIT_S
    while analysis and time.monotonic() < limit:
        if all(feed.n_answered == feed.n_frames for feed in feeds.values()):
            break
        time.sleep(0.05)
    if analysis is not None:
        analysis.stop.set()
        worker.join()
        n_frames = sum(size * n for size, n in analysis.batches.items())
        result["outcomes"] = dict(analysis.outcomes)
        result["frames_per_batch"] = round(n_frames / max(analysis.batches.total(), 1), 1)
    return result


def run_nvdec(clip: Path, n_sources: int, seconds: float) -> dict[str, object]:
    """PyNvVideoCodec's demultiplexer and decoder, and nothing else."""
    import PyNvVideoCodec as nvc  # noqa: N813, PLC0415 - only where there is a GPU

    counts, errors, stop = [0] * n_sources, set[str](), threading.Event()

    def decode(source: int) -> None:
        stream = torch.cuda.Stream("cuda:0")
        try:
            while not stop.is_set():
                demuxer = nvc.CreateDemuxer(str(clip))
                decoder = nvc.CreateDecoder(
                    gpuid=0,
                    codec=demuxer.GetNvCodecId(),
                    cudacontext=0,
                    cudastream=stream.cuda_stream,
                    usedevicememory=True,
                )
                for packet in demuxer:
                    counts[source] += len(decoder.Decode(packet))
                    if stop.is_set():
                        break
                stream.synchronize()
        except (RuntimeError, nvc.PyNvVCException) as error:
            errors.add(str(error).partition("\n")[0])

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(n_sources)]
    for thread in threads:
        thread.start()
    result = measured(lambda: list(counts), seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return result | ({"problems": sorted(errors)} if errors else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="yolo11n-pose.pt")
    clips = parser.add_mutually_exclusive_group()
    clips.add_argument("--video", type=Path, help="1080p clip; a test pattern if none is given")
    clips.add_argument("--frames", type=Path, help="folder of 1080p JPEG files to make one of")
    parser.add_argument("--sources", type=int, nargs="+", default=[16, 4, 1])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if (reason := nvdec_available()) is not None:
        parser.error(reason)
    sys.setswitchinterval(0.0005)  # as the service does
    with tempfile.TemporaryDirectory() as folder:
        clip, long_clip = arguments.video or Path(folder) / "clip.mp4", Path(folder) / "long.mp4"
        name = "test pattern"
        if arguments.video is not None:
            name = arguments.video.name
        elif arguments.frames is not None:
            name = f"pictures of {arguments.frames.name}"
            write_clip(clip, photographs(arguments.frames, CLIP_FRAMES))
        else:
            write_clip(clip, pattern(CLIP_FRAMES))
        # No source may end early: one alone decodes some 900 frames a second at most.
        fastest = min(900.0, 6_000.0 / min(arguments.sources))
        repeat_clip(clip, long_clip, round(fastest * (arguments.seconds + 6.0)))
        measure(arguments, long_clip, name, Path(folder))


def measure(arguments: argparse.Namespace, clip: Path, name: str, folder: Path) -> None:
    """Every step for every number of sources, those with poses first."""
    runs: list[dict[str, object]] = []
    report = {
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "clip": name,
        "target": f"{TARGET_FRAMES_PER_S} frames/s with poses, {TARGET_SOURCES} sources",
        "runs": runs,
    }
    pipeline = create_gpu_pipeline(arguments.weights, arguments.weights.stem, folder)
    # Graphs recorded during the measurement would cost it.
    pipeline.warm_up((1080, 1920), [1, 2, 4, 8, 16, 32, 64])
    steps: dict[str, Callable[[int], dict[str, object]]] = {
        "poses": lambda n: run_sources(pipeline, clip, n, arguments.seconds),
        "rgb": lambda n: run_sources(None, clip, n, arguments.seconds),
        "nvdec": lambda n: run_nvdec(clip, n, arguments.seconds),
    }
    for n_sources, (step, run) in itertools.product(arguments.sources, steps.items()):
        runs.append({"sources": n_sources, "step": step, **run(n_sources)})
        print(json.dumps(runs[-1]), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    pipeline.close()


if __name__ == "__main__":
    main()
