"""Files decoded by the GPU (NVDEC) and analysed there: frames per second over many sources.

Measured twice with the same files: decoding alone, and decoding with pose detection. Each source
keeps a few frames in flight and waits for their outcomes, as the live service does. Needs an
NVIDIA GPU and the extras ``yolo`` and ``nvdec``.
"""

import argparse
import json
import queue
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import av
import torch

from pose_analyzer.backends.gpu.pipeline import create_gpu_pipeline
from pose_analyzer.ports import FramePipeline
from pose_analyzer.sources import AllowedSource, SourceKind, nvdec_available, open_live_source
from pose_analyzer.stream_types import FrameContent, FrameOutcome, FramePoses, StreamFrame

TARGET_FRAMES_PER_S = 2_500
IN_FLIGHT = 8
CLIP_FRAMES = 300


def write_clip(path: Path) -> None:
    """1080p test pattern, H.264 with B pictures."""
    graph = av.filter.Graph()
    nodes = [
        graph.add("testsrc2", "size=1920x1080:rate=30"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "60"}
        for _ in range(CLIP_FRAMES):
            container.mux(stream.encode(graph.vpull()))
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

    def __init__(self, stream_id: str, waiting: "queue.Queue[StreamFrame]") -> None:
        self.stream_id = stream_id
        self.n_answered = 0
        self.ended = False
        self.problem: str | None = None
        self._waiting = waiting
        self._room = threading.Semaphore(IN_FLIGHT)
        self._n_frames = 0

    def on_rate(self, fps: float) -> None:
        pass

    def on_frame(self, time_s: float, content: FrameContent) -> None:
        self._room.acquire()
        frame = StreamFrame(self.stream_id, self._n_frames, time_s, time.monotonic(), content)
        self._n_frames += 1
        self._waiting.put(frame)

    def answered(self) -> None:
        self.n_answered += 1
        self._room.release()

    def on_problem(self, problem: str | None) -> None:
        self.problem = problem

    def on_end(self, problem: str | None) -> None:
        self.problem, self.ended = problem, True


def take_batch(waiting: "queue.Queue[StreamFrame]", n_frames: int) -> list[StreamFrame]:
    batch = []
    try:
        batch.append(waiting.get(timeout=1.0))
        while len(batch) < n_frames:
            batch.append(waiting.get_nowait())
    except queue.Empty:
        pass
    return batch


def analyse(
    pipeline: FramePipeline | None,
    feeds: dict[str, Feed],
    waiting: "queue.Queue[StreamFrame]",
    stop: threading.Event,
    outcomes: Counter[str],
) -> None:
    """Answer what waits until stopped; without a pipeline at once."""
    idle = threading.Event()
    if pipeline is not None:
        pipeline.on_idle(idle.set)

    def answer(batch: list[StreamFrame], done: "Future[list[FrameOutcome]] | None") -> None:
        if done is None:
            outcomes["decoded"] += len(batch)
        elif (error := done.exception()) is not None:
            outcomes[f"failed: {error}"] += len(batch)
        else:
            outcomes.update(
                "analysed" if isinstance(outcome, FramePoses) else outcome.detail
                for outcome in done.result()
            )
        for frame in batch:
            feeds[frame.stream_id].answered()

    while not stop.is_set():
        idle.clear()
        if pipeline is not None and not pipeline.n_idle():
            idle.wait(0.05)
        elif batch := take_batch(waiting, 64 if pipeline is None else pipeline.max_batch):
            if pipeline is None:
                answer(batch, None)
            else:
                pipeline.submit(batch).add_done_callback(partial(answer, batch))


def run(
    pipeline: FramePipeline | None, clip: Path, n_sources: int, seconds: float
) -> dict[str, object]:
    waiting: queue.Queue[StreamFrame] = queue.Queue()
    feeds = {f"source-{i}": Feed(f"source-{i}", waiting) for i in range(n_sources)}
    allowed = AllowedSource(SourceKind.FILE, clip.name, str(clip))
    readers = [open_live_source(allowed, feed, "cuda:0") for feed in feeds.values()]
    stop, outcomes = threading.Event(), Counter[str]()
    worker = threading.Thread(target=analyse, args=(pipeline, feeds, waiting, stop, outcomes))
    worker.start()
    for reader in readers:
        reader.start()
    time.sleep(5.0)  # decoders start, graphs are recorded
    before = {name: feed.n_answered for name, feed in feeds.items()}
    began = time.perf_counter()
    time.sleep(seconds)
    rates = [
        (feed.n_answered - before[name]) / (time.perf_counter() - began)
        for name, feed in feeds.items()
    ]
    early = [name for name, feed in feeds.items() if feed.ended]
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    for reader in readers:
        threading.Thread(target=reader.close).start()
    time.sleep(2.0)  # frames under way are still answered
    stop.set()
    worker.join()
    return {
        "frames_per_s": round(sum(rates), 1),
        "slowest_source_frames_per_s": round(min(rates), 1),
        "fastest_source_frames_per_s": round(max(rates), 1),
        "outcomes": dict(outcomes),
        "sources_that_ended_early": early,
        "problems": sorted({feed.problem for feed in feeds.values() if feed.problem}),
        "gpu_memory_used_bytes": total_bytes - free_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="yolo11n-pose.pt")
    parser.add_argument("--video", type=Path, help="1080p clip; a test pattern if none is given")
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if (reason := nvdec_available()) is not None:
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        clip, long_clip = Path(folder) / "clip.mp4", Path(folder) / "long.mp4"
        if arguments.video is None:
            write_clip(clip)
        # No source may end early: one alone decodes some 450 frames a second, many 3,200 in all.
        fastest = min(450.0, 4_000.0 / arguments.sources)
        n_frames = round(fastest * (arguments.seconds + 10.0))
        repeat_clip(arguments.video or clip, long_clip, n_frames)
        result: dict[str, object] = {
            "device": torch.cuda.get_device_name(0),
            "torch": torch.__version__,
            "sources": arguments.sources,
            "clip": "test pattern" if arguments.video is None else arguments.video.name,
            "target_frames_per_s": TARGET_FRAMES_PER_S,
            "decoding": run(None, long_clip, arguments.sources, arguments.seconds),
        }
        pipeline = create_gpu_pipeline(arguments.weights, arguments.weights.stem, Path(folder))
        # Graphs recorded during the measurement would cost it.
        pipeline.warm_up((1080, 1920), [1, 2, 4, 8, 16, 32, 64])
        result["decoding_and_poses"] = run(
            pipeline, long_clip, arguments.sources, arguments.seconds
        )
        pipeline.close()
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
