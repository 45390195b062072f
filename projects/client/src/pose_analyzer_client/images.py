"""Images of any kind to the bytes the service takes."""

import io
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pose_analyzer_client.errors import UnreadableImageError
from pose_analyzer_client.options import Color

Picture = bytes | bytearray | memoryview | NDArray[np.uint8] | Image.Image
"""A JPEG, PNG or WebP file; an array (height, width, 3) or, grey, (height, width); a PIL image."""


def _import_opencv() -> Any:  # noqa: ANN401 - a module, or None without the extra `video`
    try:
        return import_module("cv2")
    except ModuleNotFoundError:
        return None


_cv2: Final = _import_opencv()
_MOST_SIDE_PX: Final = 65_500  # the most a JPEG can have


def encode_image(image: object, color: Color, quality: int) -> bytes:
    """Bytes of an image file: those given, or a JPEG made of what was given.

    Parameters
    ----------
    image
        Anything of `Picture`.
    color
        Order of the channels of an array.
    quality
        1..100 of the JPEG.

    Raises
    ------
    UnreadableImageError
        None of these, or an array of another shape or type.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise UnreadableImageError("no bytes")
        return bytes(image)
    if isinstance(image, Image.Image):
        return _encode_pil(image, quality)
    if not isinstance(image, np.ndarray):
        raise UnreadableImageError(f"a {type(image).__name__}")
    _check(image)
    swapped = image.ndim == 3 and color != ("rgb" if _cv2 is None else "bgr")
    pixels = np.ascontiguousarray(image[:, :, ::-1] if swapped else image)
    if _cv2 is None:
        return _encode_pil(Image.fromarray(pixels), quality)
    _, jpeg = _cv2.imencode(".jpg", pixels, [_cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(jpeg)


def _check(image: NDArray[Any]) -> None:
    if image.dtype != np.uint8:
        raise UnreadableImageError(f"an array of {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise UnreadableImageError(f"an array of shape {image.shape}")
    if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) <= _MOST_SIDE_PX:
        raise UnreadableImageError(f"an array of shape {image.shape}")


def _encode_pil(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(image)
    picture = upright if upright.mode in ("RGB", "L") else upright.convert("RGB")
    # Nothing else of the EXIF, such as the place, leaves the machine.
    picture.save(buffer, "JPEG", quality=quality, exif=b"")
    return buffer.getvalue()
