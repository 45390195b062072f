"""JPEG, PNG and WebP files of live streams -> pictures, within bounds and only if complete."""

import io
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP")

_UNREADABLE: Final = "not a readable picture; send JPEG, PNG or WebP"
_TRUNCATED: Final = "the picture is truncated"
# What Pillow's header parsers raise for files that are not what they seem to be.
_MALFORMED: Final = (ArithmeticError, EOFError, LookupError, OSError, SyntaxError, ValueError)
_JPEG_START_OF_SCAN: Final = 0xDA
_JPEG_END: Final = b"\xff\xd9"
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_WEBP_HEADER_BYTES: Final = 8


class UnreadablePictureError(ValueError):
    """Bytes that are no picture, half of one, or too large a one."""


def decode_picture(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG, PNG or WebP file, turned upright as its EXIF tag says.

    Returns
    -------
    array
        BGR. Of an animation the first picture; of 16 bits the upper 8; transparency is ignored.

    Raises
    ------
    UnreadablePictureError
        With the reason. Type, size and completeness are checked before anything is decoded.
    """
    check_picture(data, max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnreadablePictureError(_UNREADABLE) from error
    if image is None:
        raise UnreadablePictureError(_UNREADABLE)
    return np.asarray(image)


def check_picture(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Look at a file's header and end, in some 30 us.

    OpenCV fills what is missing of a JPEG with grey, depending on its version, and its libraries
    write a line to stderr for each damaged file.

    Returns
    -------
    tuple
        Width and height as stored, before the EXIF tag turns the picture.

    Raises
    ------
    UnreadablePictureError
        With the reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width_px, height_px = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow has a limit of its own, which may be met before ours.
        raise _too_large(max_pixels) from error
    except _MALFORMED as error:
        raise UnreadablePictureError(_UNREADABLE) from error
    if width_px * height_px > max_pixels:
        raise _too_large(max_pixels)
    if not _is_complete(data):
        raise UnreadablePictureError(_TRUNCATED)
    return width_px, height_px


def _too_large(max_pixels: int) -> UnreadablePictureError:
    return UnreadablePictureError(f"more than {max_pixels} pixels")


def _is_complete(data: bytes) -> bool:
    """Whether a file that begins as a picture also ends as one."""
    if data.startswith(b"RIFF"):
        return len(data) >= _WEBP_HEADER_BYTES + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\x89PNG"):
        return data.rfind(_PNG_END) >= 0
    return data.rfind(_JPEG_END, _jpeg_scan_start(data)) >= 0


def _jpeg_scan_start(data: bytes) -> int:
    """Where the compressed data of a JPEG begin, or the end of the file if they never do.

    The end marker cannot occur within them (ITU-T T.81, B.1.1.5: every FF is followed by 0), but
    it may well before, in an embedded thumbnail.
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        if data[position + 1] == _JPEG_START_OF_SCAN:
            return position
        if data[position + 1] == 0xFF:  # padding
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)
