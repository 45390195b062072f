"""How a recorded video is cut into chunks that are analysed apart from each other.

A chunk owns the sampled pictures with ``start_s <= time < end_s``. Which pictures are sampled,
their numbers and their times are settled here once for the whole video: no cut can change them.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from pose_analyzer.sampling import sampling_slot

FALLBACK_FPS: Final = 30.0
"""Of videos that do not state their rate."""
RESTART_S: Final = 5.0
"""Detectors that follow people between frames forget everything at multiples of it.

Chunks may then be cut anywhere: a worker begins at the last such moment before its own frames.
"""
# A remainder shorter than this share of a chunk is added to the last chunk.
_SHORT_REMAINDER: Final = 0.1
# More than that is decoded in one piece: chunks would decode the same pictures again and again.
_MAX_DECODED_RATIO: Final = 3.0


@dataclass(frozen=True, eq=False)
class PictureTable:
    """Every picture of a video in the order of presentation, without having been decoded.

    Raises
    ------
    ValueError
        No picture, or no entry for the first one; stamps or entries that do not strictly increase.
    """

    stamps: Int64[np.ndarray, "pictures"]
    """Presentation times in units of `time_base`."""
    entries: Int64[np.ndarray, "entries"]
    """Where decoding may begin: what is shown from these stamps on comes out right.

    Such a picture may itself be cut off by an edit list.
    """
    time_base: Fraction
    """Seconds of a unit."""
    fps: float
    """Average rate of the source; NaN when unknown."""

    def __post_init__(self) -> None:
        ordered = all((np.diff(stamps) > 0).all() for stamps in (self.stamps, self.entries))
        if not ordered or not len(self.stamps):
            raise ValueError("there must be pictures, and their stamps must increase")
        if not len(self.entries) or self.entries[0] > self.stamps[0]:
            raise ValueError("there must be an entry for the first picture")

    @cached_property
    def times_s(self) -> Float64[np.ndarray, "pictures"]:
        """Seconds since the first picture, each the float nearest to the exact time."""
        numerator, denominator = self.time_base.as_integer_ratio()
        origin, *_ = ticks = self.stamps.tolist()
        # Python divides whole numbers of any size with a single rounding.
        return np.array([(tick - origin) * numerator / denominator for tick in ticks])

    @property
    def duration_s(self) -> float:
        """End of the last picture."""
        return float(self.times_s[-1]) + 1.0 / (self.fps if self.fps > 0 else FALLBACK_FPS)

    def sampled(self, sample_fps: float | None) -> Int64[np.ndarray, "sampled"]:
        """Numbers of the pictures that are analysed: the first of each period; None: all."""
        if sample_fps is None:
            return np.arange(len(self.stamps))
        slots = [sampling_slot(time_s, sample_fps, self.fps) for time_s in self.times_s.tolist()]
        return np.flatnonzero(np.diff(slots, prepend=slots[0] - 1))


@dataclass(frozen=True, slots=True)
class ChunkPictures:
    """The pictures a chunk needs, and where to find them in the file."""

    n_warm_up: int
    """The first so many belong to an earlier chunk; a detector that follows people needs them."""
    frame_indices: tuple[int, ...]
    """Numbers in the source, increasing."""
    times_s: tuple[float, ...]
    """Seconds since the source's first picture."""
    stamps: tuple[int, ...]
    """Presentation times as the file has them."""
    entries: tuple[int, ...]
    """Stamps at which decoding may begin, best first; the others are for when the first fails."""


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """A stretch of a video for one worker."""

    index: int
    """0-based."""
    start_s: float
    end_s: float
    pictures: ChunkPictures | None
    """None: the video can only be read from its beginning, and this chunk is all of it."""
    problems: tuple[str, ...] = ()
    """What was found wrong with the video when it was planned."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """All chunks of a video. The same video is planned the same wherever that is done."""

    duration_s: float
    chunks: tuple[ChunkSpec, ...]
    in_one_piece: str | None = None
    """Why the video is not cut; None where it is, or is too short to be."""


def create_chunk_specs(
    table: PictureTable, chunk_s: float, sample_fps: float | None
) -> tuple[ChunkSpec, ...]:
    """Cut a video into stretches of `chunk_s` seconds.

    Each sampled picture belongs to exactly one chunk; together they are what is sampled of the
    uncut video. A chunk without pictures is possible where the video stands still.

    Parameters
    ----------
    table
        The pictures of the video.
    chunk_s
        Length; the last one is up to a tenth longer, or shorter. `math.inf`: one chunk.
    sample_fps
        Rate of the sampling grid; None analyses every picture.

    Raises
    ------
    ValueError
        `chunk_s` or `sample_fps` is not positive.
    """
    check_lengths(chunk_s, sample_fps)
    n_chunks = max(math.ceil(table.duration_s / chunk_s - _SHORT_REMAINDER), 1)
    starts_s = [0.0, *(chunk * chunk_s for chunk in range(1, n_chunks))]
    ends_s = [*starts_s[1:], table.duration_s]
    sampled = table.sampled(sample_fps)
    cuts = np.searchsorted(table.times_s[sampled], starts_s).tolist()
    return tuple(
        ChunkSpec(index, start_s, end_s, _pictures(table, sampled, begin, end))
        for index, (start_s, end_s, begin, end) in enumerate(
            zip(starts_s, ends_s, cuts, [*cuts[1:], len(sampled)], strict=True)
        )
    )


def check_lengths(chunk_s: float, sample_fps: float | None) -> None:
    """Make sure that a video can be cut so.

    Raises
    ------
    ValueError
        `chunk_s` or `sample_fps` is not positive.
    """
    if not chunk_s > 0:
        raise ValueError(f"chunk_s must be positive, not {chunk_s}")
    if sample_fps is not None and not sample_fps > 0:
        raise ValueError(f"sample_fps must be positive, not {sample_fps}")


def plan_chunks(table: PictureTable, chunk_s: float, sample_fps: float | None) -> VideoPlan:
    """Cut a video, unless its chunks would decode it several times over.

    Parameters and errors as `create_chunk_specs`.
    """
    chunks = create_chunk_specs(table, chunk_s, sample_fps)
    ratio = sum(n_decoded(table, chunk) for chunk in chunks) / len(table.stamps)
    if len(chunks) == 1 or ratio <= _MAX_DECODED_RATIO:
        return VideoPlan(table.duration_s, chunks)
    whole = create_chunk_specs(table, math.inf, sample_fps)
    reason = f"its key pictures are so far apart that chunks would decode it {ratio:.0f} times"
    return VideoPlan(table.duration_s, whole, reason)


def plan_whole(duration_s: float, reason: str, problems: tuple[str, ...] = ()) -> VideoPlan:
    """One chunk for a video that can only be read from its beginning."""
    chunk = ChunkSpec(0, 0.0, duration_s, None, problems)
    return VideoPlan(duration_s, (chunk,), reason)


def n_decoded(table: PictureTable, chunk: ChunkSpec) -> int:
    """How many pictures a worker decodes for a chunk, at most."""
    pictures = chunk.pictures
    if pictures is None:
        return len(table.stamps)
    if not pictures.stamps:
        return 0
    first, last = np.searchsorted(table.stamps, [pictures.entries[0], pictures.stamps[-1]])
    return int(last - first) + 1


def restart_of(time_s: float) -> int:
    """Which stretch between two restarts a time belongs to."""
    return math.floor(time_s / RESTART_S)


def _pictures(
    table: PictureTable, sampled: Int64[np.ndarray, "sampled"], begin: int, end: int
) -> ChunkPictures:
    warm = begin
    if begin < end:
        first = restart_of(table.times_s[sampled[begin]])
        while warm and restart_of(table.times_s[sampled[warm - 1]]) == first:
            warm -= 1
    numbers = sampled[warm:end]
    stamps = table.stamps[numbers]
    reachable = table.entries[table.entries <= stamps[0]] if len(stamps) else table.entries[:0]
    return ChunkPictures(
        n_warm_up=begin - warm,
        frame_indices=tuple(numbers.tolist()),
        times_s=tuple(table.times_s[numbers].tolist()),
        stamps=tuple(stamps.tolist()),
        entries=tuple(reachable[-2:][::-1].tolist()),
    )
