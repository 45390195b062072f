"""Frames of one chunk of a video: decoded from the last place before it where that can begin."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.ports import FrameSource
from pose_analyzer.sources.video_file import (
    Damage,
    VideoFileSource,
    VideoPacket,
    decode,
    opened,
    video_stream,
)
from pose_analyzer.types import Frame, SourceInfo
from pose_analyzer.video_chunking import ChunkPictures, ChunkSpec

# Here no picture refers to one that the decoder calls dispensable. Not HEVC, where a picture may be
# dispensable to its own temporal layer only (ITU-T H.265, 3.155: sub-layer non-reference picture).
_MAY_SKIP: Final = frozenset({"h264"})


def open_chunk(
    path: Path, spec: ChunkSpec, *, max_width_px: int | None = None, n_threads: int | None = None
) -> FrameSource:
    """Open a video for the frames of one chunk.

    Parameters
    ----------
    path
        The file that was planned.
    spec
        Which chunk.
    max_width_px
        Wider pictures are scaled down to it; `info` tells the original size. None: never.
    n_threads
        Threads that decode; None: as many as there are cores. Several workers on one machine had
        better share its cores.

    Raises
    ------
    UnreadableSourceError
        As `VideoFileSource`.
    """
    source = VideoFileSource(path, max_width_px=max_width_px, n_threads=n_threads)
    if spec.pictures is None:
        return source
    return VideoChunkSource(path, source, spec.pictures, n_threads)


class VideoChunkSource:
    """The pictures of one chunk, exactly as a reading of the whole file gives them.

    Parameters
    ----------
    path
        The file that was planned.
    source
        The same file, for its size and orientation.
    pictures
        Which pictures; see `video_chunking.create_chunk_specs`.
    n_threads
        Threads that decode; None: as many as there are cores.
    """

    def __init__(
        self,
        path: Path,
        source: VideoFileSource,
        pictures: ChunkPictures,
        n_threads: int | None = None,
    ) -> None:
        self._source = source
        self._pictures = pictures
        self._decoder = PictureDecoder(path, pictures.stamps, pictures.entries, n_threads)

    @property
    def info(self) -> SourceInfo:
        """Facts of the container."""
        return self._source.info

    @property
    def problems(self) -> tuple[str, ...]:
        """Nothing: pictures that could not be decoded are missing from `frames`."""
        return ()

    @property
    def n_decoded(self) -> int:
        """Pictures decoded so far, whether or not they are in the chunk."""
        return self._decoder.n_decoded

    def frames(self, sample_fps: float | None = None) -> Iterator[Frame]:  # noqa: ARG002 - planned
        """Decode the chunk's pictures in time order; which ones are sampled was planned."""
        to_bgr = self._source.converter()
        pictures = self._pictures
        for place, picture in self._decoder.pictures():
            yield Frame(pictures.frame_indices[place], pictures.times_s[place], to_bgr(picture))


class PictureDecoder:
    """Decodes pictures that are known by their stamps, beginning close before the first.

    What cannot be decoded is left out. A decoder may need more than one key picture to find in
    (H.264 with intra refresh), so if the first pictures are missing it begins once more, at the
    entry before. Later gaps would be there in any reading.

    Parameters
    ----------
    path
        The file.
    stamps
        Presentation times in the file's units, increasing.
    entries
        Where decoding may begin: the last such stamp before the first picture, then the one before.
    n_threads
        Threads that decode; None: as many as there are cores.
    """

    def __init__(
        self,
        path: Path,
        stamps: Sequence[int],
        entries: Sequence[int],
        n_threads: int | None = None,
    ) -> None:
        self._path = path
        self._stamps = stamps
        self._entries = entries
        self._n_threads = n_threads
        self.n_decoded = 0
        """Pictures decoded so far, whether or not they were wanted."""

    def pictures(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yield pictures with their places among the stamps, in order."""
        found_any = False
        for place, picture in self._from(self._entries, len(self._stamps)):
            if not found_any and place > 0:
                yield from self._from(self._entries[1:], place)
            found_any = True
            yield place, picture
        if not found_any:
            yield from self._from(self._entries[1:], len(self._stamps))

    def _from(self, entries: Sequence[int], n_wanted: int) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from the first of `entries` what is there of the first `n_wanted` pictures."""
        if not entries or not n_wanted:
            return
        # Containers seek by decoding time, by a sparse index or by guessing. Where that leads past
        # the entry, an earlier one is sought, and at last nothing is.
        for target in (*entries, None):
            with opened(self._path) as container:
                stream = video_stream(container, self._path, self._n_threads)
                packets = _packets_from(container, stream, target, entries[0])
                if packets is not None:
                    yield from self._decoded(packets, stream, n_wanted)
                    return
        raise UnreadableSourceError(str(self._path), "it is not the file that was planned.")

    def _decoded(
        self, packets: Iterator[VideoPacket], stream: VideoStream, n_wanted: int
    ) -> Iterator[tuple[int, VideoFrame]]:
        places = {stamp: place for place, stamp in enumerate(self._stamps[:n_wanted])}
        if stream.codec_context.name in _MAY_SKIP:
            packets = _with_skips(packets, stream, places)
        expected = 0
        for picture in decode(packets, stream, Damage()):
            self.n_decoded += 1
            place = -1 if picture.pts is None else places.get(picture.pts, -1)
            if place >= expected:
                yield place, picture
                expected = place + 1
                if expected == n_wanted:
                    return


def _packets_from(
    container: InputContainer, stream: VideoStream, target: int | None, entry: int
) -> Iterator[VideoPacket] | None:
    """Packets from `entry` on, found by seeking `target`; None if that led past it."""
    try:
        if target is not None:
            container.seek(target, stream=stream)
        packets: Iterator[VideoPacket] = container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= entry:
                return chain([packet], packets) if packet.pts == entry else None
    except av.error.FFmpegError:
        return None
    return None


def _with_skips(
    packets: Iterator[VideoPacket], stream: VideoStream, wanted: dict[int, int]
) -> Iterator[VideoPacket]:
    """Let the decoder pass over pictures that neither we nor other pictures need."""
    for packet in packets:
        keep = packet.pts is None or packet.pts in wanted
        stream.codec_context.skip_frame = "DEFAULT" if keep else "NONREF"
        yield packet
