"""Uploaded images within bounds: pixels are counted before they are decoded."""

import io
import struct
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from pose_analyzer.api.problems import TooManyPixelsError
from pose_analyzer.errors import UnreadableSourceError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP")

# What Pillow's parsers raise for files that are not what they seem to be.
_MALFORMED: Final = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_UPRIGHT: Final[dict[object, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of this EXIF orientation upright."""


def decode_image(data: bytes, name: str, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG, PNG, WebP or BMP file, turned upright as its EXIF tag says.

    Returns
    -------
    array
        BGR. Of an animation the first picture; of 16 bits the upper 8. An image whose EXIF cannot
        be read stays as it is.

    Raises
    ------
    UnreadableSourceError
        Not such an image, or a truncated one.
    TooManyPixelsError
        Known from the header, before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(max_pixels)
            image.load()
            turn = _turn_upright(image)
            rgb = _eight_bits(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow has a limit of its own, which may be met before ours.
        raise TooManyPixelsError(max_pixels) from error
    except _MALFORMED as error:
        reason = f"not a readable image, expected {', '.join(FORMATS)}"
        raise UnreadableSourceError(name, reason) from error
    upright = rgb if turn is None else rgb.transpose(turn)
    return np.ascontiguousarray(np.asarray(upright)[:, :, ::-1])


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image by its EXIF tag; None where that is not needed or cannot be read.

    `ImageOps.exif_transpose` would also write the EXIF anew, which fails on any malformed tag.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except _MALFORMED:
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Make 16-bit grey 8-bit, as Pillow does with 16-bit colour; its `convert` would clip grey."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
