"""Uploads within bounds: bytes counted while they arrive, pixels before they are decoded."""

import io
import struct
import zlib
from http import HTTPStatus
from typing import Final

import numpy as np
from fastapi import HTTPException
from jaxtyping import UInt8
from PIL import ExifTags, Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pose_analyzer.api.problems import TooManyPixelsError
from pose_analyzer.errors import UnreadableSourceError

ENVELOPE_BYTES: Final = 1 << 14
"""Room for the multipart headers around a file."""
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


class BodyLimit:
    """ASGI middleware that stops reading a request once its upload exceeds a limit."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._max_bytes = max_upload_bytes + ENVELOPE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        n_bytes = 0
        declared_bytes = _declared_length(scope)

        async def counted() -> Message:
            nonlocal n_bytes
            if declared_bytes > self._max_bytes:
                raise self._refusal()
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> HTTPException:
        # FastAPI turns any other exception met while it parses a body into a 400.
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"At most {self._max_upload_bytes} bytes are accepted.",
            headers={"Connection": "close"},
        )


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


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
