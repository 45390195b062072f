"""Small real videos of any size."""

import hashlib
import io
import struct
from functools import cache

import av
import numpy as np

FPS = 10


@cache
def video_bytes(size_bytes: int | None = None, duration_s: float = 2.0) -> bytes:
    """An MP4 file; made longer by a box that players skip (ISO/IEC 14496-12, 8.1.2)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(round(duration_s * FPS)):
            image = np.zeros((48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    content = buffer.getvalue()
    if size_bytes is None:
        return content
    n_more = size_bytes - len(content)
    filling = np.random.default_rng(1).bytes(n_more - 8)
    return content + struct.pack(">I4s", n_more, b"free") + filling


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
