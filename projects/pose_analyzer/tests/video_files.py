"""Small videos made on the spot, whose pictures tell their numbers."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 96, 64


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Red top left, green top right, blue bottom left; brightness of the rest counts frames."""
    image = np.full((height, width, 3), (index * 5) % 250, dtype=np.uint8)
    top, left = slice(0, height // 4), slice(0, width // 4)
    image[top, left] = (0, 0, 255)
    image[top, -(width // 4) :] = (0, 255, 0)
    image[-(height // 4) :, left] = (255, 0, 0)
    return image


def corners(image: np.ndarray) -> str:
    """Colours of the corners, clockwise from the top left: r, g, b or - for grey."""
    height, width = image.shape[:2]
    y, x = height // 8, width // 8
    letters = ""
    for pixel in (image[y, x], image[y, -x], image[-y, -x], image[-y, x]):
        strong = pixel.astype(int) - np.median(pixel) > 60
        letters += "bgr"[int(np.argmax(strong))] if strong.any() else "-"
    return letters


def write_video(
    path: Path,
    times: Iterable[int],
    *,
    time_base: Fraction = Fraction(1, 1000),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    aspect: Fraction | None = None,
    rotation: tuple[float, bool] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Encode test pictures shown at the given times, in milliseconds unless told."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(
            codec, rate=round(1 / time_base) if time_base > Fraction(1, 100) else 30
        )
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        if codec == "libx264":
            stream.options = {"crf": "10", "g": "10"}
        if codec_options is not None:
            stream.options = codec_options
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="bgr24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def at_rate(fps: float, seconds: float) -> list[int]:
    return [round(i * 1000 / fps) for i in range(round(fps * seconds))]
