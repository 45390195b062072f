"""A long 1080p video of different exercises, made of the labelled clips beside the checkout.

The clips are encoded once, one after the other, and then repeated without being encoded again.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from pose_analyzer.sources import open_source

CLIPS = (
    "squat_barbell_front_926p60.mp4",
    "pushup_34view_reps_562p30.mp4",
    "jumpingjack_front_720p30.mp4",
    "lunge_walking_front_922p60.mp4",
    "ohp_dumbbell_side_720x408p30.mp4",
    "squat_air_34view_360p24.mp4",
)
FPS = 30
_KEY_EVERY_S = 2


def join_clips(
    folder: Path, out: Path, duration_s: float, size_px: tuple[int, int] = (1920, 1080)
) -> None:
    """Write an H.264 video of at least `duration_s` seconds at 30 frames a second."""
    unit = out.with_name(f"{out.stem}.unit.mp4")
    unit_s = _encode([folder / name for name in CLIPS], unit, duration_s, size_px)
    _repeat(unit, out, unit_s, duration_s)
    unit.unlink()


def _encode(clips: Sequence[Path], out: Path, duration_s: float, size_px: tuple[int, int]) -> float:
    n_frames = 0
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = _KEY_EVERY_S * FPS
        stream.options = {"preset": "veryfast", "crf": "23"}
        for image in _pictures(clips, size_px):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            n_frames += 1
            if n_frames >= duration_s * FPS:
                break
        container.mux(stream.encode(None))
    return n_frames / FPS


def _pictures(clips: Sequence[Path], size_px: tuple[int, int]) -> Iterator[np.ndarray]:
    """Pictures of all clips, each fitted into the size with black beside it."""
    width, height = size_px
    for clip in clips:
        for frame in open_source(clip).frames(FPS):
            rows, columns = frame.image_bgr.shape[:2]
            scale = min(width / columns, height / rows)
            fitted = cv2.resize(frame.image_bgr, None, fx=scale, fy=scale)
            image = np.zeros((height, width, 3), np.uint8)
            top, left = (height - fitted.shape[0]) // 2, (width - fitted.shape[1]) // 2
            image[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
            yield image


def _repeat(unit: Path, out: Path, unit_s: float, duration_s: float) -> None:
    with av.open(str(out), "w") as container:
        stream, start_s, n_rounds = None, 0.0, 0
        while start_s < duration_s:
            with av.open(str(unit)) as source:
                given = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(given)
                shift = round(
                    Fraction(n_rounds) * Fraction(round(unit_s * FPS), FPS) / given.time_base
                )
                for packet in source.demux(given):
                    if packet.dts is None:
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    container.mux(packet)
            n_rounds += 1
            start_s = n_rounds * unit_s
