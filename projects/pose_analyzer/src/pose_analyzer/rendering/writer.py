"""Overlay video: frames with their people drawn on them, as H.264 that a browser plays."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, final

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.rendering.drawing import NO_FORMS, draw_people
from pose_analyzer.types import Frame, PersonFrame

_TIME_BASE: Final = Fraction(1, 90_000)
_DEFAULT_FPS: Final = 30.0
_KEYFRAME_INTERVAL_S: Final = 2.0
# Small pictures are enlarged, at most twice, so that labels have pixels to be drawn with.
_MIN_SHORT_SIDE_PX: Final = 540
_MAX_ENLARGEMENT: Final = 2.0
# Enough to ride out a slow frame; each may hold a 4K picture of 25 MB.
_QUEUE_FRAMES: Final = 8


@final
class OverlayWriter:
    """Draws and encodes frames in a background thread while the caller analyses the next ones.

    A context manager. The file appears under its name when the block ends well and holds at
    least one frame; otherwise nothing is left behind. Errors of the thread are raised by a later
    `write` or at the end of the block.

    Parameters
    ----------
    path
        File to write, MP4; an older one is replaced.
    width_px, height_px
        Size of the frames that will come.
    fps
        About how many frames come per second; NaN if unknown. Only spaces the key frames: each
        picture is shown at its own time.
    max_short_side_px
        The shorter side of the video is at most this (720 for "720p", also in portrait).
    """

    def __init__(
        self, path: Path, width_px: int, height_px: int, fps: float, max_short_side_px: int = 720
    ) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._scale = overlay_scale(width_px, height_px, max_short_side_px)
        self._size = (_even(width_px * self._scale), _even(height_px * self._scale))
        self._fps = fps if math.isfinite(fps) and fps > 0 else _DEFAULT_FPS
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "OverlayWriter":
        self._encoder = _Encoder(self._partial, self._size, self._fps)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="overlay")
        return self

    def write(
        self,
        frame: Frame,
        people: Sequence[PersonFrame],
        forms: Mapping[int, FormUpdate] = NO_FORMS,
    ) -> None:
        """Hand over one frame, later than the one before; waits while too many are pending.

        The picture must not be changed afterwards. `forms` is what was last said of each person's
        form, by id.
        """
        while len(self._pending) >= _QUEUE_FRAMES:
            self._pending.popleft().result()
        self._pending.append(
            self._executor.submit(self._draw_and_encode, frame, tuple(people), forms)
        )

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        finished = False
        try:
            if exc_type is None:
                while self._pending:
                    self._pending.popleft().result()
                finished = self._executor.submit(self._encoder.finish).result()
        finally:
            self._executor.shutdown(cancel_futures=True)
            self._encoder.close()
            if finished:
                self._partial.replace(self._path)
            else:
                self._partial.unlink(missing_ok=True)

    def _draw_and_encode(
        self, frame: Frame, people: tuple[PersonFrame, ...], forms: Mapping[int, FormUpdate]
    ) -> None:
        # Down to a half, linear does not alias yet and costs an eighth of averaging.
        method = cv2.INTER_LINEAR if self._scale > 0.5 else cv2.INTER_AREA
        image_bgr = cv2.resize(frame.image_bgr, self._size, interpolation=method)
        drawn_bgr = draw_people(image_bgr.astype(np.uint8, copy=False), people, self._scale, forms)
        self._encoder.encode(drawn_bgr, frame.time_s)


def overlay_scale(width_px: int, height_px: int, max_short_side_px: int) -> float:
    """Pixels of the overlay per pixel of the source."""
    short_side_px = min(width_px, height_px)
    smallest = min(_MIN_SHORT_SIDE_PX / short_side_px, _MAX_ENLARGEMENT)
    return min(max(1.0, smallest), max_short_side_px / short_side_px)


class _Encoder:
    """H.264 in MP4, pictures at their own times."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        options = {"preset": "veryfast", "crf": "25", "bf": "0"}
        self._stream = self._container.add_stream("libx264", round(fps), options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = _TIME_BASE
        context = self._stream.codec_context
        context.time_base = _TIME_BASE
        context.gop_size = max(1, round(fps * _KEYFRAME_INTERVAL_S))
        # What cv2.COLOR_BGR2YUV_I420 makes; untagged, players guess BT.709 for large pictures.
        context.colorspace = Colorspace.ITU601
        context.color_range = ColorRange.MPEG
        self._last_pts: int | None = None

    def encode(self, image_bgr: UInt8[np.ndarray, "height width 3"], time_s: float) -> None:
        """Add one picture of even size."""
        planes = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2YUV_I420).astype(np.uint8, copy=False)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        pts = round(time_s / _TIME_BASE)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)
        picture.pts, picture.time_base = pts, _TIME_BASE
        self._last_pts = pts
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> bool:
        """Write what is still in the encoder; False if no picture ever came."""
        if self._last_pts is None:
            return False
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return True

    def close(self) -> None:
        """Release the file."""
        self._container.close()


def _even(value: float) -> int:
    """Nearest even size: the chroma of yuv420p has half the resolution."""
    return max(2, 2 * round(value / 2))
