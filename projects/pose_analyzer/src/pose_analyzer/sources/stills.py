"""Single pictures of a video, found by their times without reading all that comes before."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from pose_analyzer.sources.video_file import VideoFileSource, opened, video_stream

StillAt = Callable[[float], UInt8[np.ndarray, "height width 3"] | None]
"""The upright picture of a time as `VideoFileSource.frames` gives it; None if it is not found."""

_TOLERANCE_S: Final = 1e-3
# Some containers seek by guessing and end up behind the picture: then from so much before it.
_EARLIER_S: Final = (0.0, 2.0, 10.0, math.inf)


@contextmanager
def stills(path: Path) -> Iterator[StillAt]:
    """Open a video for looking at single pictures of it.

    Where time stamps are missing or begin anew no pictures are found.

    Raises
    ------
    UnreadableSourceError
        As `VideoFileSource`.
    """
    to_bgr = VideoFileSource(path).converter()
    with opened(path) as container:
        stream = video_stream(container, path)
        origin = _first_stamp(container, stream)

        def still_at(time_s: float) -> UInt8[np.ndarray, "height width 3"] | None:
            if origin is None:
                return None
            stamp = origin + Fraction(time_s)
            for earlier_s in _EARLIER_S:
                picture = _picture_at(container, stream, stamp, earlier_s)
                if picture is not None:
                    return to_bgr(picture)
            return None

        yield still_at


def _first_stamp(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """None if pictures have no time stamps, which is not worth reading on to find out."""
    for picture in container.decode(stream):
        if picture.is_corrupt:
            continue
        if picture.pts is None or picture.time_base is None:
            break
        return picture.pts * picture.time_base
    return None


def _picture_at(
    container: InputContainer, stream: VideoStream, stamp: Fraction, earlier_s: float
) -> VideoFrame | None:
    """Look for the picture of a time stamp, decoding from some time before it on."""
    try:
        container.seek(int(max(float(stamp) - earlier_s, 0.0) * av.time_base))
        for shown, picture in _stamps(container, stream):
            if abs(float(shown - stamp)) <= _TOLERANCE_S:
                return picture
            if shown > stamp:
                return None
    except av.error.FFmpegError:
        return None
    return None


def _stamps(
    container: InputContainer, stream: VideoStream
) -> Iterator[tuple[Fraction, VideoFrame]]:
    for picture in container.decode(stream):
        if picture.pts is not None and picture.time_base is not None and not picture.is_corrupt:
            yield picture.pts * picture.time_base, picture
