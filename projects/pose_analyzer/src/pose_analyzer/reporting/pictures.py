"""Photographs for the report: a part of a frame, small in every sense."""

import base64
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8

from pose_analyzer.reporting.moments import Square

StillAt = Callable[[float], UInt8[np.ndarray, "height width 3"] | None]
"""The frame of a time; None if it is not to be had."""

SIDE_PX: Final = 360
MAX_BYTES: Final = 40_000
_QUALITIES: Final = (82, 70, 55, 40, 25)


def cut_picture(image_bgr: UInt8[np.ndarray, "height width 3"], square: Square) -> bytes:
    """Cut a square out of a frame, as a JPEG of at most `SIDE_PX` and about `MAX_BYTES`.

    What lies beyond the frame is black.
    """
    side_px = min(SIDE_PX, max(round(square.side_px), 1))
    scale = side_px / square.side_px
    to_square = np.array(
        [[scale, 0.0, -scale * square.left_px], [0.0, scale, -scale * square.top_px]]
    )
    # Averaged first, so that fine patterns do not flicker in the small picture.
    n_px = max(1, int(1.0 / scale))
    blurred = cv2.blur(image_bgr, (n_px, n_px)) if n_px > 1 else image_bgr
    cut = cv2.warpAffine(blurred, to_square, (side_px, side_px), flags=cv2.INTER_LINEAR)
    for quality in _QUALITIES:
        _, written = cv2.imencode(".jpg", cut, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(written) <= MAX_BYTES:
            break
    return written.tobytes()


def data_url(jpeg: bytes) -> str:
    """Write a picture into the page itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
