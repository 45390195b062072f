"""Which pictures a video holds, found without decoding it, and how it is cut into chunks."""

import math
from array import array
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from pose_analyzer.sources.video_chunks import PictureDecoder
from pose_analyzer.sources.video_file import (
    AnnouncedDuration,
    Damage,
    VideoPacket,
    announced_duration,
    decode,
    opened,
    video_stream,
)
from pose_analyzer.video_chunking import (
    FALLBACK_FPS,
    PictureTable,
    VideoPlan,
    check_lengths,
    plan_chunks,
    plan_whole,
)

# One packet is one picture, and the decoder gives pictures from a key picture on as it would have
# anyway, or not at all. Not MPEG-2: matrices sent between key pictures stay in force.
_CODECS: Final = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores"}
)
_PROGRESSIVE: Final = frozenset({0, 1})  # AVFieldOrder: unknown, progressive
_MAX_PICTURES: Final = 4_000_000
# H.264 and HEVC hold back 16 pictures at most, which may move a later one by as many places.
_MAX_DISPLACEMENT: Final = 32
_N_CHECKED: Final = 32
_SHOWN_VP8: Final = 0x10  # bit of a frame's first byte (RFC 6386, 9.1)


def plan_video(path: Path, chunk_s: float, sample_fps: float | None) -> VideoPlan:
    """Cut a video file into chunks; reads all of it, and decodes a few pictures.

    Videos whose pictures cannot be told apart by their stamps, because these are missing,
    disordered or start again, or that are damaged, get one chunk that is read from the beginning.

    Parameters
    ----------
    path
        The file.
    chunk_s
        Length of the chunks.
    sample_fps
        Frames analysed per second of video at most; None: all.

    Raises
    ------
    UnreadableSourceError
        No such file, not a video, or no video track.
    ValueError
        `chunk_s` or `sample_fps` is not positive.
    """
    check_lengths(chunk_s, sample_fps)
    contents = _read_contents(path)
    reason = contents.reason or _mismatch(path, contents)
    if reason is not None:
        return plan_whole(contents.duration_s, reason)
    table = contents.table()
    plan = plan_chunks(table, chunk_s, sample_fps)
    *others, last = plan.chunks
    problems = tuple(contents.announced.problems(plan.duration_s))
    return replace(plan, chunks=(*others, replace(last, problems=problems)))


def get_video_duration(path: Path) -> float:
    """How many seconds the pictures of a video last; reads all of it, but decodes nothing.

    Raises
    ------
    UnreadableSourceError
        No such file, not a video, or no video track.
    """
    return _read_contents(path).duration_s


@dataclass(slots=True)
class _Contents:
    """Stamps of all pictures in the order of decoding."""

    codec: str
    fps: float
    time_base: Fraction | None
    announced: AnnouncedDuration
    stamps: "array[int]" = field(default_factory=lambda: array("q"))
    entries: "array[int]" = field(default_factory=lambda: array("q"))
    n_packets: int = 0
    ordered: bool = True
    """Every packet has a stamp, and they increase but for pictures that are decoded early."""
    reason: str | None = None
    """Why there can be no `PictureTable`."""

    @property
    def duration_s(self) -> float:
        """Of the pictures there are, as far as it can be told; what the file says may be wrong."""
        fps = self.fps if self.fps > 0 else FALLBACK_FPS
        if not self.ordered or self.time_base is None or not self.stamps:
            return self.n_packets / fps
        return float((max(self.stamps) - min(self.stamps)) * self.time_base) + 1.0 / fps

    def table(self) -> PictureTable:
        """Everything in the order of presentation."""
        assert self.time_base is not None  # noqa: S101 - told by `reason` otherwise
        entries = np.array(self.entries, dtype=np.int64)
        stamps = np.sort(np.array(self.stamps, dtype=np.int64))
        # Pictures shown before the first key picture refer to what was cut off.
        shown = stamps[stamps >= entries[0]]
        return PictureTable(shown, entries, self.time_base, self.fps)


def _read_contents(path: Path) -> _Contents:
    with opened(path) as container:
        stream = video_stream(container, path)
        rate = stream.average_rate or stream.guessed_rate
        contents = _Contents(
            codec=stream.codec_context.name,
            fps=float(rate) if rate else math.nan,
            time_base=stream.time_base,
            announced=announced_duration(container, stream),
        )
        contents.reason = _unsuitable(container, stream)
        try:
            for packet in container.demux(stream):
                if packet.size:
                    _take(packet, contents)
        except av.error.FFmpegError as error:
            contents.reason = f"reading stops: {error.strerror}"
    _check_order(contents)
    return contents


def _unsuitable(container: InputContainer, stream: VideoStream) -> str | None:
    codec = stream.codec_context
    if container.format.name == "avi":
        return "AVI files hold no presentation times"
    if codec.name not in _CODECS:
        return f"codec {codec.name} is not known to start anew at every key picture"
    if codec.field_order not in _PROGRESSIVE:
        return "its pictures are interlaced, and may come in two parts"
    return None


def _take(packet: VideoPacket, contents: _Contents) -> None:
    contents.n_packets += 1
    stamp = packet.pts
    if stamp is None or packet.time_base != contents.time_base:
        contents.ordered = False
        contents.reason = contents.reason or "some pictures have no presentation time"
    elif contents.n_packets > _MAX_PICTURES:
        contents.ordered = False
        contents.reason = contents.reason or "it has too many pictures"
    else:
        # What an edit list cuts off is decoded all the same, but not given out.
        if not packet.is_discard and not (contents.codec == "vp8" and _hidden(packet)):
            contents.stamps.append(stamp)
        if packet.is_keyframe:
            contents.entries.append(stamp)
    if packet.is_corrupt:
        contents.reason = contents.reason or "it has damaged packets"


def _hidden(packet: VideoPacket) -> bool:
    return not memoryview(packet)[0] & _SHOWN_VP8


def _check_order(contents: _Contents) -> None:
    """Find out whether sorting by stamp gives the order in which a decoder gives pictures out."""
    stamps = np.array(contents.stamps, dtype=np.int64)
    entries = np.array(contents.entries, dtype=np.int64)
    places = np.argsort(stamps, kind="stable")
    moved = np.abs(places - np.arange(len(places))).max(initial=0)
    reason = None
    if contents.time_base is None or not len(entries) or not (stamps >= entries[0]).any():
        reason = "it has no key picture"
    elif moved > _MAX_DISPLACEMENT or not (np.diff(entries) > 0).all():
        contents.ordered = False
        reason = "its times are disordered or start again"
    elif not (np.diff(stamps[places]) > 0).all():
        reason = "some pictures have the same time"
    contents.reason = contents.reason or reason


def _mismatch(path: Path, contents: _Contents) -> str | None:
    """Decode a little to see whether what comes out is what the packets promise."""
    table = contents.table()
    if _first_stamps(path) != table.stamps[:_N_CHECKED].tolist():
        return "its first pictures are not those its packets promise"
    middle = len(table.entries) // 2
    begin = np.searchsorted(table.stamps, table.entries[middle])
    stamps = table.stamps[begin : begin + _N_CHECKED].tolist()
    entries = table.entries[[middle, middle - 1]].tolist() if middle else [int(table.entries[0])]
    if len(list(PictureDecoder(path, stamps, entries).pictures())) < len(stamps):
        return "decoding cannot begin at its key pictures"
    return None


def _first_stamps(path: Path) -> list[int | None]:
    with opened(path) as container:
        stream = video_stream(container, path)
        pictures = decode(container.demux(stream), stream, Damage())
        return [picture.pts for picture in islice(pictures, _N_CHECKED)]
