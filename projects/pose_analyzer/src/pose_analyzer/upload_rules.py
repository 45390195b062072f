"""What may be uploaded under which name, and in which parts."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pose_analyzer.upload_errors import InvalidFileNameError, UnsupportedVideoTypeError
from shared_utils.units import BYTES_PER_MIB

MIN_PART_BYTES: Final = 8 * BYTES_PER_MIB
"""Of all parts but the last: seven seconds at 10 Mbit/s, which an interruption may cost."""
MAX_PARTS: Final = 1000
MAX_NAME_BYTES: Final = 255
"""What file systems take; in UTF-8."""

SUFFIXES: Final = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg",
    ".wmv", ".asf", ".flv", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".dv", ".gif",
)  # fmt: skip
"""Of files that may hold a video; whether one does is seen when it is opened."""
CONTENT_TYPES: Final = ("video/*", "image/gif", "application/octet-stream")
_OTHER_CONTENT_TYPES: Final = frozenset(
    {"image/gif", "application/octet-stream", "binary/octet-stream", "application/mxf",
     "application/ogg", "application/mp4", "application/x-matroska"}
)  # fmt: skip

_DRIVE: Final = re.compile(r"[A-Za-z]:")
# Joins letters of Persian and Indic scripts and the people of one emoji; the other invisible
# characters hide what a name is or turn it round.
_JOINERS: Final = frozenset("\u200c\u200d")
_UNSHOWABLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def check_filename(name: str) -> str:
    """Give the name of an uploaded file in its composed form (Unicode NFC), if it is one.

    It is shown to people and never becomes part of a path. What is refused would be dangerous
    as soon as somebody saves the file under its name.

    Raises
    ------
    InvalidFileNameError
        Empty, too long, with parts of a path, or with characters that cannot be shown.
    """
    composed = unicodedata.normalize("NFC", name)
    # Lookalikes: this turns full-width slashes and two-dot leaders into the plain ones.
    plain = unicodedata.normalize("NFKC", name).strip()
    if not plain:
        raise InvalidFileNameError("it is empty")
    if any(unicodedata.category(c) in _UNSHOWABLE and c not in _JOINERS for c in composed):
        raise InvalidFileNameError("it has characters that cannot be shown")
    if len(composed.encode()) > MAX_NAME_BYTES:
        raise InvalidFileNameError(f"it takes more than {MAX_NAME_BYTES} bytes")
    if "/" in plain or "\\" in plain or _DRIVE.match(plain) or not plain.strip("."):
        raise InvalidFileNameError("it is a path")
    return composed.strip()


def video_suffix(filename: str) -> str:
    """Kind of container a file's name tells, such as ``.mp4``; empty if it tells none.

    Raises
    ------
    UnsupportedVideoTypeError
        It tells that this is no video.
    """
    stem, dot, end = filename.rpartition(".")
    if not dot or not stem or not end:
        return ""
    suffix = f".{end.lower()}"
    if suffix not in SUFFIXES:
        raise UnsupportedVideoTypeError(suffix, SUFFIXES)
    return suffix


def check_content_type(content_type: str | None) -> None:
    """Refuse what says that it is no video; None says nothing.

    Raises
    ------
    UnsupportedVideoTypeError
        An image, a text, an archive, and so on.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("video/") and kind not in _OTHER_CONTENT_TYPES:
        raise UnsupportedVideoTypeError(kind, CONTENT_TYPES)


@dataclass(frozen=True, slots=True)
class PartPlan:
    """How a file is cut for uploading: equal parts, the last one smaller or equal."""

    size_bytes: int
    part_bytes: int

    def __post_init__(self) -> None:
        if self.size_bytes < 1 or self.part_bytes < 1:
            raise ValueError("size_bytes and part_bytes must be positive")

    @property
    def n_parts(self) -> int:
        """How many there are; they are counted from 0."""
        return -(-self.size_bytes // self.part_bytes)

    def size_of(self, number: int) -> int:
        """Bytes of one part."""
        if not 0 <= number < self.n_parts:
            raise ValueError(f"no part {number}")
        return min(self.part_bytes, self.size_bytes - number * self.part_bytes)

    def missing(self, stored_bytes: Mapping[int, int]) -> tuple[int, ...]:
        """Which parts are still to be sent.

        Parameters
        ----------
        stored_bytes
            Size of each part that is there; one of a wrong size counts as missing.
        """
        return tuple(
            number
            for number in range(self.n_parts)
            if stored_bytes.get(number) != self.size_of(number)
        )


def plan_parts(size_bytes: int) -> PartPlan:
    """Cut a file into at most `MAX_PARTS` parts of whole MiB; a larger file has no smaller ones."""
    least = -(-size_bytes // MAX_PARTS)
    whole_mib = -(-least // BYTES_PER_MIB) * BYTES_PER_MIB
    return PartPlan(size_bytes, max(MIN_PART_BYTES, whole_mib))
