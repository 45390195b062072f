"""Frames per second and memory of ``pose-analyzer analyze``, as a user runs it.

Each row is a process of its own. *frames/s* is what the command reports: from opening the video
to its last analysed frame; *whole process* adds start, loading the model and finishing the files.
Memory is the largest resident set the kernel saw. The long recording is made of the clips, scaled
to 1280x720 and 30 frames a second, played over and over until the time is reached.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from pose_analyzer.sources import open_source

WIDTH_PX, HEIGHT_PX, FPS = 1280, 720, 30


@dataclass(frozen=True)
class Run:
    frames: int
    frames_per_s: float
    wall_s: float
    peak_bytes: int


def analyse(video: Path, detector: str, *, overlay: bool, out: Path) -> Run:
    command = [
        sys.executable,
        "-m",
        "pose_analyzer.cli",
        "analyze",
        str(video),
        "--detector",
        detector,
        "--out",
        str(out),
        "--json",
        "--overlay" if overlay else "--no-overlay",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    summary = json.loads(text)
    return Run(
        summary["frames"],
        summary["frames_per_second"],
        time.perf_counter() - began,
        usage.ru_maxrss * 1024,
    )


def fit(image_bgr: np.ndarray) -> np.ndarray:
    """The picture inside a black 720p frame."""
    height, width = image_bgr.shape[:2]
    scale = min(WIDTH_PX / width, HEIGHT_PX / height)
    size = round(width * scale), round(height * scale)
    canvas = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    x0, y0 = (WIDTH_PX - size[0]) // 2, (HEIGHT_PX - size[1]) // 2
    canvas[y0 : y0 + size[1], x0 : x0 + size[0]] = cv2.resize(image_bgr, size)
    return canvas


def make_long_video(clips: list[Path], minutes: float, target: Path) -> None:
    """Encode all clips one after the other once, then repeat the packets."""
    once = target.with_suffix(".once.mp4")
    with av.open(str(once), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for clip in clips:
            for frame in open_source(clip).frames(FPS):
                picture = av.VideoFrame.from_ndarray(fit(frame.image_bgr), format="bgr24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with av.open(str(target), "w") as container:
        offset, stream = 0, None
        while True:
            with av.open(str(once)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(template)
                end = offset
                for packet in source.demux(template):
                    if packet.pts is None:
                        continue
                    packet.pts += offset
                    packet.dts = packet.pts
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.stream = stream
                    container.mux(packet)
                offset = end
                if offset * (template.time_base or Fraction(1)) >= minutes * 60:
                    break
    once.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/")
    parser.add_argument("--clip", default="jumpingjack_front_720p30.mp4")
    parser.add_argument("--detectors", nargs="+", default=["mediapipe-lite", "yolo11n-pose"])
    parser.add_argument("--minutes", type=float, default=10.0, help="0: no long recording")
    parser.add_argument("--report", type=Path, default=Path("docs/reports/end_to_end.md"))
    arguments = parser.parse_args()
    videos = arguments.data / "videos"
    lines = [
        "# Speed and memory, end to end",
        "",
        "Reproduce: `python benchmarks/end_to_end.py --data $SHARED_DATA`.",
        "",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} CPU cores, no GPU, Python "
        f"{platform.python_version()}.",
        "",
        "| video | detector | overlay | frames | frames/s | whole process, s | peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def add(label: str, detector: str, run: Run, *, overlay: bool) -> None:
        lines.append(
            f"| {label} | {detector} | {'yes' if overlay else 'no'} | {run.frames} | "
            f"{run.frames_per_s:.1f} | {run.wall_s:.1f} | {run.peak_bytes / 1e6:.0f} |"
        )
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for detector in arguments.detectors:
            # Exports and file caches are warm afterwards, as they are on every later use.
            analyse(videos / arguments.clip, detector, overlay=False, out=out)
            for overlay in (False, True):
                run = analyse(videos / arguments.clip, detector, overlay=overlay, out=out)
                add(arguments.clip, detector, run, overlay=overlay)
        if arguments.minutes:
            long_video = Path(folder) / "long.mp4"
            make_long_video(sorted(videos.glob("*.mp4")), arguments.minutes, long_video)
            for detector in arguments.detectors:
                run = analyse(long_video, detector, overlay=True, out=out)
                add(f"{arguments.minutes:.0f} minutes of clips", detector, run, overlay=True)
    arguments.report.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
