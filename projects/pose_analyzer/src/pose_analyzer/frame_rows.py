"""Person-frames as compact rows: what is kept of a session, in memory and on its way to a table.

A row has a fixed size, so that the rows of many frames are one array and joining them is joining
bytes. Numbers are those of the answers rounded to single precision: a thousandth of a pixel.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped

from pose_analyzer.skeletons import N_ANGLES, N_KEYPOINTS
from pose_analyzer.types import PersonAnalysis, PersonFrame

ROW: Final = np.dtype(
    [
        ("track_id", "<i4"),
        ("frame_index", "<i8"),
        # Seconds from the session's first frame, exact.
        ("time_s", "<f8"),
        # x and y in pixels, smoothed, and confidence; NaN unknown.
        ("keypoints", "<f4", (N_KEYPOINTS, 3)),
        ("confidence", "<f4"),
        # Degrees; NaN where unknown or not trusted.
        ("angles", "<f4", N_ANGLES),
        ("progress", "<f4"),
        ("n_repetitions", "<i2"),
        # Of the latest judged repetition, 0..100; NaN before.
        ("score", "<f4"),
    ]
)
"""One person in one frame, without padding."""

Rows = Shaped[np.ndarray, "_"]
"""Array of `ROW`."""

_MAX_REPETITIONS: Final = int(np.iinfo(np.int16).max)
_HEAD: Final = struct.Struct("<iqd")
_CONFIDENCE: Final = struct.Struct("<f")
_TAIL: Final = struct.Struct("<fhf")


def pack_people(people: Sequence[PersonFrame], scores: Mapping[int, float | None]) -> bytes:
    """Rows of everybody in one frame.

    Parameters
    ----------
    people
        As the analysis answers.
    scores
        By track: total of the latest judged repetition; who is missing has none.

    Returns
    -------
    bytes
        Of an array of `ROW`; `unpack_rows` reads it.
    """
    parts: list[bytes] = []
    for person in people:
        keypoints = np.empty((N_KEYPOINTS, 3), np.float32)
        keypoints[:, :2] = person.keypoints_px
        keypoints[:, 2] = person.confidences
        measured = person.angles
        angles = np.where(measured.trusted, measured.values_deg, np.nan).astype(np.float32)
        score = scores.get(person.track_id)
        n_repetitions = min(person.n_repetitions, _MAX_REPETITIONS)
        # A third of the time that filling an array of `ROW` takes.
        parts += (
            _HEAD.pack(person.track_id, person.frame_index, person.time_s),
            keypoints.tobytes(),
            _CONFIDENCE.pack(person.score),
            angles.tobytes(),
            _TAIL.pack(person.progress, n_repetitions, np.nan if score is None else score),
        )
    return b"".join(parts)


def rows_of(person: PersonAnalysis, score: Float[np.ndarray, "rows"]) -> Rows:
    """Rows of one person of a recording.

    Parameters
    ----------
    person
        A whole recording's columns.
    score
        Total of the latest repetition that was over at each frame, 0..100; NaN before.
    """
    rows = np.empty(len(person.time_s), dtype=ROW)
    rows["track_id"] = person.track_id
    rows["frame_index"] = person.frame_index
    rows["time_s"] = person.time_s
    rows["keypoints"][:, :, :2] = person.keypoints_px
    rows["keypoints"][:, :, 2] = person.confidences
    rows["confidence"] = np.nan if person.score is None else person.score
    rows["angles"] = np.where(person.angles_trusted, person.angles_deg, np.nan)
    rows["progress"] = person.progress
    rows["n_repetitions"] = np.minimum(person.n_repetitions, _MAX_REPETITIONS)
    rows["score"] = score
    return rows


def unpack_rows(data: bytes) -> Rows:
    """Read what `pack_people` wrote, or several of them joined.

    Raises
    ------
    ValueError
        If it is no whole number of rows.
    """
    return np.frombuffer(data, dtype=ROW)
