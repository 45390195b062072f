"""Image files as clients send them, whole and broken."""

import io
import struct
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pose_analyzer.api.main import create_app
from pose_analyzer.api.uploads import decode_image
from pose_analyzer.errors import (
    UnreadableSourceError,
)

from .image_service import Factory, picture, small_settings, upload


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held in portrait
    image_bgr = decode_image(picture(40, 20, "JPEG", exif=exif), "a.jpg", 10_000)
    assert image_bgr.shape == (40, 20, 3)
    for orientation in range(9):
        exif[0x0112] = orientation
        content = picture(40, 20, "JPEG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        rgb = decode_image(content, "a.jpg", 10_000)[:, :, ::-1]
        np.testing.assert_array_equal(rgb, np.asarray(expected))
    with pytest.raises(UnreadableSourceError, match=r"^a\.txt"):
        decode_image(b"text", "a.txt", 10_000)


def test_grey_of_16_bits_is_scaled_to_8() -> None:
    grey = np.array([[0, 300, 0x8000, 0xFFFF]], dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    image_bgr = decode_image(buffer.getvalue(), "a.png", 100)
    assert image_bgr.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


# As TIFF writes them: tag, type, number of values, then the value or where it is.
exif_entries = st.lists(
    st.tuples(
        st.sampled_from([0x0100, 0x010F, 0x0112, 0x011A, 0x0132, 0x8769, 0x8825, 0xA005]),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 5, 0xFFFFFFFF]),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=4,
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the EXIF
@hypothesis.settings(max_examples=150, deadline=None)
@given(entries=exif_entries, kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
@hypothesis.example(entries=[(0x010F, 0, 6, b"make"), (0x0112, 3, 1, b"\0\6\0\0")], kind="JPEG")
@hypothesis.example(entries=[(0x0100, 2, 5, b"\0\0\0\0"), (0x0112, 3, 1, b"\0\6\0\0")], kind="PNG")
def test_an_image_is_read_whatever_its_exif_says(
    entries: list[tuple[int, int, int, bytes]], kind: str
) -> None:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    exif += b"".join(struct.pack(">HHI4s", *entry) for entry in entries) + bytes(4)
    image_bgr = decode_image(picture(40, 20, kind, exif=exif), "a", 10_000)
    assert sorted(image_bgr.shape) == [3, 20, 40]


# An EXIF block with an orientation and one with a place of its own for its value.
EXIF = b"Exif\0\0MM\0*\0\0\0\10\0\2\1\17\0\2\0\0\0\6\0\0\0&\1\22\0\3\0\0\0\1\0\6\0\0\0\0\0\0maker\0"
ORIGINALS = [picture(40, 20, kind, exif=EXIF) for kind in ("JPEG", "PNG", "WEBP")]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_images_are_never_a_defect(tmp_path: Path) -> None:
    changes = st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )

    @hypothesis.settings(max_examples=300, deadline=None)
    @given(
        original=st.sampled_from(ORIGINALS),
        changes=changes,
        kept_ratio=st.just(1.0) | st.floats(0.5, 1.0),
    )
    def check(original: bytes, changes: list[tuple[float, int]], kept_ratio: float) -> None:
        content = bytearray(original)
        for place, value in changes:
            # Half of them in the first eighth, where the headers are.
            content[int(place**3 * len(content))] = value
        n_kept = round(len(content) * kept_ratio)
        response = client.post("/detect", files=upload(bytes(content[:n_kept])))
        assert response.status_code in {200, 413, 415}

    app = create_app(small_settings(tmp_path), Factory())
    with TestClient(app, raise_server_exceptions=False) as client:
        check()
