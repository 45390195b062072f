"""What was seen in the chunks of a video, put together without a seam.

A chunk holds poses as the detector gave them, nothing that depends on earlier frames. Identities,
smoothing, repetitions and form are found afterwards in one pass over all chunks, by the code that
analyses an uncut video. So `merge_chunks` has only to put frames in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pose_analyzer.regions import RegionOfInterest
from pose_analyzer.types import Pose, SourceInfo


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """What poses depend on beside the video: equal for all chunks of a job."""

    detector: str
    """A model's own name, such as ``mediapipe-lite``."""
    sample_fps: float | None
    """Frames analysed per second of video at most; None: all."""
    max_width_px: int | None = None
    """Wider pictures are scaled down to it before people are looked for; None: never."""
    roi: RegionOfInterest | None = None
    """Only there people are looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkFrame:
    """Everybody the detector saw in one frame."""

    frame_index: int
    time_s: float
    poses: tuple[Pose, ...]
    """Best first, in pixels of the original picture."""
    chunk: int = 0
    """Index of the chunk it was analysed with."""


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A chunk that has been analysed."""

    index: int
    start_s: float
    end_s: float
    device: str
    """What it was analysed on."""
    n_lost: int = 0
    """Sampled pictures that could not be decoded."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ChunkPoses:
    """Poses of one chunk, or of several that were merged."""

    source: SourceInfo
    settings: DetectionSettings
    spans: tuple[ChunkSpan, ...]
    """By index."""
    frames: tuple[ChunkFrame, ...]
    """By frame index, each once; also those without people."""

    @property
    def devices(self) -> str:
        """Everything that took part, such as ``cpu, cuda:0``."""
        return ", ".join(sorted({span.device for span in self.spans}))

    @property
    def problems(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        found = dict.fromkeys(problem for span in self.spans for problem in span.problems)
        n_lost = sum(span.n_lost for span in self.spans)
        return (*found, f"skipped: damaged frames ({n_lost})") if n_lost else tuple(found)


def merge_chunks(a: ChunkPoses, b: ChunkPoses) -> ChunkPoses:
    """Put two chunks together, or two results of merging.

    Associative and commutative, and merging the same chunk again changes nothing; so chunks may
    come in any order and be merged pairwise in any way. Of a frame that both have, the one of the
    chunk with the lower index is kept.

    Raises
    ------
    ValueError
        They were detected with different settings, or come from different plans.
    """
    if a.settings != b.settings:
        raise ValueError(f"chunks differ in their settings: {a.settings}, {b.settings}")
    spans = {span.index: span for span in (*b.spans, *a.spans)}
    for span in b.spans:
        if (span.start_s, span.end_s) != (spans[span.index].start_s, spans[span.index].end_s):
            raise ValueError(f"chunk {span.index} has different times in two plans")
    frames = {frame.frame_index: frame for frame in b.frames}
    for frame in a.frames:
        other = frames.get(frame.frame_index)
        if other is None or frame.chunk <= other.chunk:
            frames[frame.frame_index] = frame
    return replace(
        a,
        spans=tuple(spans[index] for index in sorted(spans)),
        frames=tuple(frames[index] for index in sorted(frames)),
    )


def merge_all(chunks: Iterable[ChunkPoses]) -> ChunkPoses:
    """Merge any number of chunks, each frame being moved about log2 of their number times.

    Raises
    ------
    ValueError
        There is none, or as `merge_chunks`.
    """
    waiting = list(chunks)
    if not waiting:
        raise ValueError("there are no chunks to merge")
    while len(waiting) > 1:
        pairs = zip(waiting[::2], waiting[1::2], strict=False)
        rest = waiting[-1:] if len(waiting) % 2 else []
        waiting = [*(merge_chunks(a, b) for a, b in pairs), *rest]
    return waiting[0]


def missing_ranges(chunks: ChunkPoses | None, duration_s: float) -> tuple[tuple[float, float], ...]:
    """Stretches of the video that no chunk covers, as start and end in seconds.

    Parameters
    ----------
    chunks
        What has been merged so far; None: nothing.
    duration_s
        Of the video, as planned.
    """
    missing: list[tuple[float, float]] = []
    covered_s = 0.0
    spans = () if chunks is None else chunks.spans
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.start_s > covered_s:
            missing.append((covered_s, span.start_s))
        covered_s = max(covered_s, span.end_s)
    if covered_s < duration_s:
        missing.append((covered_s, duration_s))
    return tuple(missing)
