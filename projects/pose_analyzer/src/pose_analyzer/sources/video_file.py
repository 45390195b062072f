"""Recorded videos: true timestamps, upright pictures, sampling by time, damage told apart."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeAlias

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.sampling import sampling_slot
from pose_analyzer.types import Frame, SourceInfo
from pose_analyzer.video_chunking import FALLBACK_FPS

VideoPacket: TypeAlias = Any
"""`av.packet.Packet[VideoStream]`, which is generic to type checkers only."""

# FFmpeg also plays playlists, which fetch other files and addresses, and draws text files as
# pictures. Uploads pass through here, so only self-contained media are opened.
_FORMATS: Final = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,gif,apng,"
    "h264,hevc,obu,ivf,mxf,dv,nut,yuv4mpegpipe,mp3,wav,flac,aac"
)
_OPTIONS: Final = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}

_BACKWARD_JUMP_S: Final = 1.0  # timestamps going back further belong to an appended recording
# How much shorter than announced a complete stream may be: the last frame's duration and rounding
# for a track, the end of a longer sound track for a container.
_TRACK_SHORTFALL_S: Final = 0.5
_CONTAINER_SHORTFALL_S: Final = 2.0


@dataclass(slots=True)
class Damage:
    """What was found wrong while reading."""

    n_bad_packets: int = 0
    n_bad_frames: int = 0
    n_disordered: int = 0
    n_jumps: int = 0
    read_error: str | None = None
    end_s: float = 0.0
    ended: bool = False
    """All there is has been read, so that an early end is the file's."""


class VideoFileSource:
    """Frames of one video file.

    Pictures are upright (rotation and mirroring of the first one applied to all), have square
    pixels and the size of the first one. Each call of `frames` reads the file anew.

    Parameters
    ----------
    path
        A file that holds the video itself; playlists and addresses are refused.
    max_width_px
        Wider pictures are scaled down to it; `info` tells the original size. None: never.
    n_threads
        Threads that decode; None: as many as there are cores.

    Raises
    ------
    UnreadableSourceError
        No such file, not a video, no video track, or not one readable frame.
    """

    def __init__(
        self, path: Path, *, max_width_px: int | None = None, n_threads: int | None = None
    ) -> None:
        self._path = path
        self._max_width_px = max_width_px
        self._n_threads = n_threads
        self._damage: Damage | None = None
        with opened(path) as container:
            self._info = self._probe(container)

    @property
    def info(self) -> SourceInfo:
        """Facts of the container."""
        return self._info

    def converter(self) -> "BgrConverter":
        """Make what turns this file's decoded pictures into images; for one reading."""
        width, height = self._coded_size
        if self._max_width_px is not None and self._info.width_px > self._max_width_px:
            ratio = self._max_width_px / self._info.width_px
            width, height = max(round(width * ratio), 1), max(round(height * ratio), 1)
        return BgrConverter((width, height), self._orientation)

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in the latest reading; complete once frames are exhausted."""
        return () if self._damage is None else tuple(self._describe(self._damage))

    def frames(self, sample_fps: float | None = None) -> Iterator[Frame]:
        """Decode in time order, the first frame at 0 s; nothing is kept between frames.

        Parameters
        ----------
        sample_fps
            Take the first frame of each period of a time grid of this rate; None takes all.
            Which frames are taken depends on their timestamps alone, so a later reading takes
            the same ones.

        Raises
        ------
        ValueError
            `sample_fps` is not positive.
        """
        if sample_fps is not None and not sample_fps > 0:
            raise ValueError(f"sample_fps must be positive, not {sample_fps}")
        return self._read(sample_fps)

    def _read(self, sample_fps: float | None) -> Iterator[Frame]:
        damage = self._damage = Damage()
        last_slot: int | None = None
        with opened(self._path) as container:
            stream = video_stream(container, self._path, self._n_threads)
            to_bgr = self.converter()
            pictures = decode(container.demux(stream), stream, damage)
            for index, time_s, picture in self._timed(pictures, damage):
                if sample_fps is not None:
                    slot = sampling_slot(time_s, sample_fps, self._info.fps)
                    if slot == last_slot:
                        continue
                    last_slot = slot
                yield Frame(index, time_s, to_bgr(picture))
        damage.ended = True

    def _timed(
        self, pictures: Iterator[VideoFrame], damage: Damage
    ) -> Iterator[tuple[int, float, VideoFrame]]:
        """Give each picture its number and a time that strictly increases from 0."""
        period_s = 1 / self._info.fps if self._info.fps > 0 else 1 / FALLBACK_FPS
        origin = last = Fraction(0)
        timestamp_of = _TimestampGuesser()
        for index, picture in enumerate(pictures):
            stamp = timestamp_of(picture)
            if index == 0:
                origin = stamp or Fraction(0)
            time = last + Fraction(period_s) if stamp is None else stamp - origin
            if index == 0:
                time = Fraction(0)
            elif last - time > _BACKWARD_JUMP_S:
                damage.n_jumps += 1
                origin -= last + Fraction(period_s) - time
                time = last + Fraction(period_s)
            elif time <= last:
                damage.n_disordered += 1
                continue
            last = time
            damage.end_s = float(last) + period_s
            yield index, float(time), picture

    def _probe(self, container: InputContainer) -> SourceInfo:
        stream = video_stream(container, self._path, self._n_threads)
        first = next(decode(container.demux(stream), stream, Damage()), None)
        if first is None:
            raise UnreadableSourceError(
                str(self._path), "its video track holds not one readable frame."
            )
        self._coded_size = square_pixel_size(first, stream)
        self._orientation = read_orientation(first)
        width, height = self._coded_size
        if self._orientation.transposed:
            width, height = height, width
        self._announced = announced_duration(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        return SourceInfo(
            name=self._path.name,
            width_px=width,
            height_px=height,
            fps=float(rate) if rate else float("nan"),
            duration_s=self._announced.duration_s,
            n_frames=stream.frames or None,
        )

    def _describe(self, damage: Damage) -> Iterator[str]:
        if damage.read_error is not None:
            yield f"reading stops after {damage.end_s:.1f} s: {damage.read_error}"
        if damage.ended:
            yield from self._announced.problems(damage.end_s)
        if damage.n_bad_packets:
            yield f"pictures may be missing or blurred: damaged packets ({damage.n_bad_packets})"
        if damage.n_bad_frames:
            yield f"skipped: damaged frames ({damage.n_bad_frames})"
        if damage.n_disordered:
            yield f"skipped: frames with repeated or disordered times ({damage.n_disordered})"
        if damage.n_jumps:
            yield f"timestamps start again; the parts were joined ({damage.n_jumps + 1})"


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to turn a stored picture upright: transpose first, then mirror."""

    transposed: bool
    mirror_x: bool
    mirror_y: bool

    def apply(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """Turn a picture."""
        if self.transposed:
            image = cv2.transpose(image)
        if self.mirror_x and self.mirror_y:
            return cv2.flip(image, -1)
        if self.mirror_x:
            return cv2.flip(image, 1)
        return cv2.flip(image, 0) if self.mirror_y else image


def read_orientation(picture: VideoFrame) -> Orientation:
    """Read the display matrix: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 6.2.2).

    To be asked of one picture only: it then refers to itself and stays in memory for a while.
    """
    matrix: Any = picture.side_data.get("DISPLAYMATRIX")  # a buffer, typed as object
    if matrix is None:
        return Orientation(transposed=False, mirror_x=False, mirror_y=False)
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return Orientation(transposed=False, mirror_x=a < 0, mirror_y=d < 0)
    return Orientation(transposed=True, mirror_x=c < 0, mirror_y=b < 0)


class BgrConverter:
    """Turns decoded pictures into upright BGR arrays of one size."""

    def __init__(self, size: tuple[int, int], orientation: Orientation) -> None:
        self._width, self._height = size
        self._orientation = orientation
        # Kept between pictures: setting up the scaler costs more than using it.
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        """Convert one picture."""
        converted = self._reformatter.reformat(
            picture,
            width=self._width,
            height=self._height,
            format="bgr24",
            threads=1,  # one picture is too small a job to share: 0.3 ms at 720p against 1.8 ms
        )
        image: UInt8[np.ndarray, "_ _ 3"] = converted.to_ndarray()
        return np.ascontiguousarray(self._orientation.apply(image))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a file and, at the end, let its decoding threads come to rest before it is closed.

    PyAV holds Python's global lock while it waits for those threads to end. A thread that then
    reports an error to PyAV's log callback, which takes the same lock, blocks the process for
    ever. The callback is off at first, but importing torchvision turns it on.
    """
    av.logging.set_level(None)  # what it would tell is counted and told in `problems`
    with _open(path) as container:
        try:
            yield container
        finally:
            for stream in container.streams.video:
                stream.codec_context.flush_buffers()  # waits without the lock


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        reason = "is a folder, not a video." if path.is_dir() else "no such file."
        raise UnreadableSourceError(str(path), reason)
    try:
        if path.stat().st_size == 0:
            raise UnreadableSourceError(str(path), "the file is empty.")
        return av.open(str(path), options=_OPTIONS, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise UnreadableSourceError(
            str(path), "not a video, or cut off before its index was written."
        ) from error
    except OSError as error:
        raise UnreadableSourceError(str(path), f"cannot be read: {error.strerror}.") from error


def video_stream(
    container: InputContainer, path: Path, n_threads: int | None = None
) -> VideoStream:
    """Find the first video track that is not a cover picture; None: it decodes on all cores."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            stream.thread_type = "AUTO"
            if n_threads is not None:
                stream.codec_context.thread_count = n_threads
            return stream
    raise UnreadableSourceError(str(path), "it has no video track.")


def decode(
    packets: Iterator[VideoPacket], stream: VideoStream, damage: Damage
) -> Iterator[VideoFrame]:
    """Decode as far as possible; what cannot be decoded is counted, not raised."""
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            damage.read_error = error.strerror
            packet = None
        damaged = packet is not None and packet.is_corrupt
        try:
            pictures = stream.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            damaged, pictures = True, []
        damage.n_bad_packets += damaged
        for picture in pictures:
            if picture.is_corrupt:
                damage.n_bad_frames += 1
            else:
                yield picture
        if packet is None:
            return


class _TimestampGuesser:
    """Chooses between presentation and decoding time, as FFmpeg's `guess_correct_pts`.

    AVI holds no presentation times and FFmpeg's substitute is wrong where pictures are stored out
    of order; whichever of the two was more often out of order is not believed.
    """

    def __init__(self) -> None:
        self._last_pts = self._last_dts = -math.inf
        self._n_faulty_pts = self._n_faulty_dts = 0

    def __call__(self, picture: VideoFrame) -> Fraction | None:
        """Presentation time in seconds; None where the container tells neither."""
        pts, dts = picture.pts, picture.dts
        if dts is not None:
            self._n_faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._n_faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        believe_pts = pts is not None and self._n_faulty_pts <= self._n_faulty_dts
        ticks = pts if believe_pts else dts
        return None if ticks is None or picture.time_base is None else ticks * picture.time_base


def square_pixel_size(picture: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height at which the picture's pixels are square."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return max(round(picture.width * aspect), 1), picture.height


@dataclass(frozen=True, slots=True)
class AnnouncedDuration:
    """How long a file says it is."""

    duration_s: float
    """NaN if it does not say."""
    shortfall_s: float
    """How much less a complete file may hold."""

    def problems(self, end_s: float) -> Iterator[str]:
        """Tell whether a stream that ends at `end_s` is cut off."""
        if self.duration_s - end_s > self.shortfall_s:
            yield f"stream ends after {end_s:.1f} s of {self.duration_s:.1f} s announced"


def announced_duration(container: InputContainer, stream: VideoStream) -> AnnouncedDuration:
    """Read what the track says of its length, or else what the container says."""
    track_s = _track_duration_s(stream)
    if track_s is not None:
        return AnnouncedDuration(track_s, _TRACK_SHORTFALL_S)
    return AnnouncedDuration(_container_duration_s(container), _CONTAINER_SHORTFALL_S)


def _track_duration_s(stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Matroska keeps it in a tag of the track, as 00:01:02.345.
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _container_duration_s(container: InputContainer) -> float:
    return float("nan") if container.duration is None else container.duration / av.time_base
