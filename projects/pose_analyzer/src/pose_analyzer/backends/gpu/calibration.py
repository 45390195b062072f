"""How many frames a second a detector manages, measured with made-up pictures."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import cv2
import numpy as np

from pose_analyzer.stream_types import FrameOutcome, StreamFrame

_HEIGHT_PX: Final = 1080
_WIDTH_PX: Final = 1920
_N_PICTURES: Final = 4
_N_WARM_UP_BATCHES: Final = 2
_N_BATCHES: Final = 6
_TIMEOUT_S: Final = 120.0

Submit = Callable[[Sequence[StreamFrame]], "Future[list[FrameOutcome]]"]


def synthetic_jpegs(n_pictures: int, width_px: int, height_px: int) -> list[bytes]:
    """JPEGs about as hard to decode as those of a camera: some 200 KB at 1920x1080."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(n_pictures):
        coarse = rng.integers(0, 256, (height_px // 40, width_px // 40, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        grain = cv2.GaussianBlur(rng.normal(0, 8, (height_px, width_px, 1)), (3, 3), 0)
        image = np.clip(image + grain[..., None], 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes())
    return jpegs


def measure_frames_per_s(submit: Submit, n_frames: int) -> float:
    """Rate at full load, with as many batches under way as the detector takes."""
    jpegs = synthetic_jpegs(_N_PICTURES, _WIDTH_PX, _HEIGHT_PX)
    now_s = time.monotonic()
    batch = [
        StreamFrame("", index, float(index), now_s, jpegs[index % _N_PICTURES])
        for index in range(n_frames)
    ]
    ends_s: list[float] = []
    batches = [submit(batch) for _ in range(_N_WARM_UP_BATCHES + _N_BATCHES)]
    for future in batches:
        future.result(_TIMEOUT_S)
        ends_s.append(time.monotonic())
    elapsed_s = ends_s[-1] - ends_s[_N_WARM_UP_BATCHES - 1]
    return n_frames * _N_BATCHES / max(elapsed_s, 1e-9)
