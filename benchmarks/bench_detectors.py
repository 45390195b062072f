"""Time decoding and detection per frame of one clip, one after the other and overlapped.

python benchmarks/bench_detectors.py ../shared/data/videos/jumpingjack_front_720p30.mp4
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

from pose_analyzer.backends import create_detector
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.types import Frame

QUEUE_LENGTH = 4


def frames_of(clip: Path, n_frames: int) -> Iterator[Frame]:
    for frame, _ in zip(open_source(clip).frames(), range(n_frames), strict=False):
        yield frame


def decode_only(clip: Path, n_frames: int) -> float:
    """Milliseconds per frame to decode and convert."""
    start = time.perf_counter()
    n_read = sum(1 for _ in frames_of(clip, n_frames))
    return 1e3 * (time.perf_counter() - start) / n_read


def detect_only(detector: PoseDetector, clip: Path, n_frames: int) -> float:
    """Median milliseconds of one detection, decoding not counted."""
    elapsed = []
    for frame in frames_of(clip, n_frames):
        start = time.perf_counter()
        detector.detect([frame.image_bgr], [frame.time_s])
        elapsed.append(time.perf_counter() - start)
    return 1e3 * statistics.median(elapsed)


def overlapped(detector: PoseDetector, clip: Path, n_frames: int) -> float:
    """Frames per second with decoding in a thread of its own."""
    queue: Queue[Frame | None] = Queue(QUEUE_LENGTH)

    def fill() -> None:
        for frame in frames_of(clip, n_frames):
            queue.put(frame)
        queue.put(None)

    start = time.perf_counter()
    threading.Thread(target=fill).start()
    n_done = 0
    while (frame := queue.get()) is not None:
        detector.detect([frame.image_bgr], [frame.time_s])
        n_done += 1
    return n_done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--detectors", default="mediapipe-lite,mediapipe-full,yolo11n-pose")
    arguments = parser.parse_args()
    clip, n_frames = arguments.clip, arguments.frames
    print(f"{clip.name}: decode {decode_only(clip, n_frames):.2f} ms per frame")
    for name in arguments.detectors.split(","):
        detector = create_detector(name, Settings())
        milliseconds = detect_only(detector, clip, n_frames)
        rate = overlapped(detector, clip, n_frames)
        print(
            f"{name} on {detector.device}: detect {milliseconds:.2f} ms (median), "
            f"decode and detect overlapped {rate:.1f} frames/s"
        )
        detector.close()


if __name__ == "__main__":
    main()
