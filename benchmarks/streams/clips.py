"""Pictures of a clip as JPEG files. Apart from `pictures`, because generators decode nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2

from pose_analyzer.model_files import fetch_clip
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source

JPEG_QUALITY: Final = 85
SAMPLE_CLIP: Final = "balance-cam02"
"""A person on one leg, filmed at 1920x1080."""


def sample_clip() -> Path:
    """The product's own clip, downloaded if it is not here."""
    return fetch_clip(SAMPLE_CLIP, Settings())


@dataclass(frozen=True, slots=True)
class Cut:
    """Which pictures of a clip, and how large."""

    height_px: int
    """They are scaled to it, keeping their proportions."""
    fps: float
    """At most so many per second of the clip."""
    n_pictures: int
    """At most so many at all."""
    begin_s: float = 0.0
    """What comes before is left out."""


def encode_clip(clip: Path, folder: Path, cut: Cut) -> None:
    """Write pictures of a clip as JPEG files.

    Parameters
    ----------
    clip
        A video.
    folder
        Where to write.
    cut
        Which, and how large.
    """
    frames = (frame for frame in open_source(clip).frames(cut.fps) if frame.time_s >= cut.begin_s)
    for number, frame in zip(range(cut.n_pictures), frames, strict=False):
        height, width = frame.image_bgr.shape[:2]
        size = 2 * round(width * cut.height_px / height / 2), cut.height_px
        way = cv2.INTER_AREA if cut.height_px < height else cv2.INTER_CUBIC
        image = cv2.resize(frame.image_bgr, size, interpolation=way)
        path = folder / f"{number:05d}.jpg"
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{path} could not be written")
