"""Recorded videos as frames, at once or at the video's own pace."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pose_analyzer_client.errors import UnreadableVideoError

TimedImage = tuple[float, NDArray[np.uint8]]
"""Seconds since the first frame, and an upright BGR picture (height, width, 3)."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the file tells beforehand."""

    fps: float
    """Average rate; NaN when it does not tell."""
    duration_s: float
    """NaN when it does not tell."""


def probe_video(path: Path) -> VideoInfo:
    """Facts of a video file.

    Raises
    ------
    UnreadableVideoError
        No such file, or not a video.
    """
    if not path.is_file():
        raise UnreadableVideoError(str(path), "not a file." if path.exists() else "no such file.")
    try:
        with av.open(str(path)) as container:
            rate = _stream(container, path).average_rate
            duration = container.duration
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(str(path), "not a video that can be read.") from error
    return VideoInfo(
        fps=float(rate) if rate else float("nan"),
        duration_s=float("nan") if duration is None else duration / av.time_base,
    )


def video_frames(path: Path) -> Iterator[TimedImage]:
    """Decode a video file; frames that are damaged or without a time are left out.

    Raises
    ------
    UnreadableVideoError
        It cannot be read, or not further.
    """
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            stream.thread_type = "AUTO"
            first_s, n_turns = None, 0
            for picture in container.decode(stream):
                if picture.time is None or picture.is_corrupt:
                    continue
                if first_s is None:
                    # Asked of one picture only: those that are asked stay in memory for a while.
                    first_s, n_turns = picture.time, round(picture.rotation / 90)
                yield picture.time - first_s, np.rot90(picture.to_ndarray(format="bgr24"), n_turns)
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(str(path), f"it cannot be read further: {error}.") from error


def at_own_pace(
    frames: Iterable[TimedImage],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[TimedImage]:
    """Give each frame when it is due, as a camera would."""
    began_s = clock()
    for time_s, image in frames:
        early_s = began_s + time_s - clock()
        if early_s > 0:
            sleep(early_s)
        yield time_s, image


def _stream(container: "av.container.InputContainer", path: Path) -> "av.VideoStream":
    if not container.streams.video:
        raise UnreadableVideoError(str(path), "it has no video track.")
    return container.streams.video[0]
