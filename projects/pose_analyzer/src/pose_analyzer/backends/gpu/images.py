"""Frames of streams -> 8-bit RGB pictures on the device that runs the network."""

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
import torch
from jaxtyping import UInt8
from torchvision.io import ImageReadMode, decode_jpeg

from pose_analyzer.backends.gpu.jpeg_header import JpegHeader, read_jpeg_header
from pose_analyzer.backends.gpu.memory import is_out_of_memory
from pose_analyzer.backends.picture_files import UnreadablePictureError, decode_picture
from pose_analyzer.regions import roi_pixels
from pose_analyzer.stream_types import (
    DevicePicture,
    DropCause,
    FrameContent,
    FrameFailure,
    StreamFrame,
)

log = structlog.get_logger()

# EXIF orientation -> whether to exchange x and y first, then which axes to reverse.
_TURNS: Final[dict[int, tuple[bool, tuple[int, ...]]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}

_NVJPEG_LOCK: Final = threading.Lock()

PixelTensor = UInt8[torch.Tensor, "3 _ _"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The part of an upright picture that is looked at."""

    rgb: PixelTensor
    """A view with any strides."""
    width_px: int
    height_px: int
    """Of the whole picture."""
    x0_px: int = 0
    y0_px: int = 0
    """Where in the whole picture the part begins."""


class PictureDecoder:
    """Decodes batches of JPEGs with nvJPEG, and everything else on the CPU.

    Parameters
    ----------
    device
        Where the pictures go; on ``cpu`` JPEGs are decoded there too.
    max_pixels
        Larger pictures are refused before they are decoded.

    Attributes
    ----------
    lock
        Held while nvJPEG works. It allocates GPU memory on its own, which whoever captures a CUDA
        graph must keep out. There is one for all detectors of the process, as torchvision has one
        decoder.
    """

    def __init__(self, device: torch.device, max_pixels: int) -> None:
        self._device = device
        self._max_pixels = max_pixels
        self.lock = _NVJPEG_LOCK
        self._told = False
        with warnings.catch_warnings():
            # Said once per process: that a tensor over `bytes` must not be written to. None is.
            warnings.simplefilter("ignore")
            torch.frombuffer(b"\0", dtype=torch.uint8)

    def decode(self, frames: Sequence[StreamFrame]) -> list[Picture | FrameFailure]:
        """Decode a batch; waits until the pictures are there.

        Returns
        -------
        list
            One entry per frame, in order; ``UNDECODABLE`` for what is no picture or too large.

        Raises
        ------
        torch.OutOfMemoryError, RuntimeError
            See `memory.is_out_of_memory`.
        """
        files: dict[int, tuple[torch.Tensor, JpegHeader]] = {}
        for index, frame in enumerate(frames):
            if (header := self._plain_jpeg(frame.content)) is not None:
                files[index] = torch.frombuffer(frame.content, dtype=torch.uint8), header
        images = self._decode_jpegs([data for data, _ in files.values()])
        decoded = dict(zip(files, images, strict=True))
        pictures: list[Picture | FrameFailure] = []
        for index, frame in enumerate(frames):
            rgb: torch.Tensor | FrameFailure | None = decoded.get(index)
            if isinstance(rgb, torch.Tensor):
                rgb = _upright(rgb, files[index][1].orientation)
            else:
                rgb = self._from_host(frame.content)
            pictures.append(rgb if isinstance(rgb, FrameFailure) else _region(rgb, frame))
        return pictures

    def _plain_jpeg(self, content: FrameContent) -> JpegHeader | None:
        """What is worth a try with nvJPEG; the rest is decoded, or refused, on the CPU."""
        if not isinstance(content, bytes):
            return None
        header = read_jpeg_header(content)
        if header is None or header.width_px * header.height_px > self._max_pixels:
            return None
        return header

    def _decode_jpegs(self, files: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """All at once, or one by one if one of them stops the others; None: not decodable here."""
        if not files:
            return []
        try:
            return list(self._decode_together(files))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if len(files) == 1:
                self._tell_once(str(error))
                return [None]
        return [image for file in files for image in self._decode_jpegs([file])]

    def _tell_once(self, reason: str) -> None:
        """Log the first picture only: if it is not the picture's fault, all of them are meant."""
        if not self._told:
            self._told = True
            log.warning("jpeg_not_decoded_here", device=str(self._device), reason=reason)

    def _decode_together(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        with self.lock:
            images: list[torch.Tensor] = decode_jpeg(
                files, mode=ImageReadMode.RGB, device=self._device
            )
        return images

    def _from_host(self, content: FrameContent) -> torch.Tensor | FrameFailure:
        if isinstance(content, DevicePicture):
            return self._received(content.rgb)
        if isinstance(content, bytes):
            try:
                content = decode_picture(content, self._max_pixels)
            except UnreadablePictureError as error:
                return FrameFailure(DropCause.UNDECODABLE, str(error))
        return self._uploaded(content)

    def _received(self, rgb: Any) -> torch.Tensor:  # noqa: ANN401 - the port knows no torch
        pixels: torch.Tensor = rgb
        return pixels.to(self._device)

    def _uploaded(self, image_bgr: UInt8[np.ndarray, "height width 3"]) -> torch.Tensor:
        if not image_bgr.flags.writeable or not image_bgr.flags.c_contiguous:
            image_bgr = image_bgr.copy()
        return torch.from_numpy(image_bgr).to(self._device).permute(2, 0, 1).flip(0)


def _upright(pixels: PixelTensor, orientation: int) -> PixelTensor:
    """Turn a picture as its EXIF tag says."""
    if orientation not in _TURNS:
        return pixels
    transposed, reversed_axes = _TURNS[orientation]
    if transposed:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(reversed_axes) if reversed_axes else pixels


def _region(pixels: PixelTensor, frame: StreamFrame) -> Picture:
    height_px, width_px = pixels.shape[1:]
    if frame.roi is None:
        return Picture(pixels, width_px, height_px)
    x0, y0, x1, y1 = roi_pixels(frame.roi, width_px, height_px)
    return Picture(pixels[:, y0:y1, x0:x1], width_px, height_px, x0, y0)
