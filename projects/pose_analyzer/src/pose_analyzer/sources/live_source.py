"""Files and cameras the service reads itself, in threads of their own."""

import contextlib
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import av
import numpy as np
import structlog
from av.codec.context import Flags
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.ports import FrameReceiver
from pose_analyzer.sources.allow_list import AllowedSource, SourceKind
from pose_analyzer.sources.nvdec import (
    NvdecDecoder,
    NvdecFileSource,
    NvdecUnsuitableError,
    VideoPacket,
)
from pose_analyzer.sources.picture_clock import PictureClock
from pose_analyzer.sources.video_file import (
    BgrConverter,
    VideoFileSource,
    read_orientation,
    square_pixel_size,
)
from pose_analyzer.stream_types import DevicePicture, FrameContent

# Interleaved in the one TCP connection: nothing gets lost, and firewalls let it pass. No option
# against buffering: packets read while the stream was examined are decoded in no time, and without
# them the first picture came later (0.25 s after PLAY instead of 0.17 s, key pictures every 0.2 s).
# FFmpeg gives a packet out when the next one begins: pictures come one period late.
_CAMERA_OPTIONS: Final = {
    "rtsp_transport": "tcp",
    "protocol_whitelist": "tcp,tls",
    "allowed_media_types": "video",
    "fpsprobesize": "0",
    "analyzeduration": "2000000",
}
# Retrying these would get the camera's account locked.
_REFUSALS: Final = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
# A reader that waits for an answer is left to its (daemon) thread after so long.
_STOP_S: Final = 1.0
_MAX_AHEAD_S: Final = 10.0
_MAX_WAITING_PACKETS: Final = 90
_BEHIND_PACKETS: Final = 4

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CameraConfig:
    """How long to wait for a camera."""

    open_timeout_s: float = 10.0
    """For each of the two steps of connecting: its description, its first pictures."""
    read_timeout_s: float = 10.0
    """For the next picture."""
    first_retry_s: float = 0.5
    max_retry_s: float = 30.0
    """The wait before connecting again doubles from `first_retry_s` up to this; of each, a
    random half is left out, so that many cameras do not come back in step."""


DEFAULT_CAMERA_CONFIG: Final = CameraConfig()


class LiveSource(ABC):
    """Reads one source in a thread of its own and hands its frames to a receiver."""

    def __init__(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Frames under way may still be handed over, for a second at most."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        problem: str | None = "reading it failed; the service's log says why."
        try:
            problem = self._read()
        finally:  # whatever broke, the receiver learns that nothing follows
            if not self._stop.is_set():
                self._receiver.on_end(problem)

    @abstractmethod
    def _read(self) -> str | None:
        """Read until the end or until stopped; returns what went wrong."""


def open_live_source(
    source: AllowedSource,
    receiver: FrameReceiver,
    device: str = "cpu",
    config: CameraConfig = DEFAULT_CAMERA_CONFIG,
) -> LiveSource:
    """Prepare to read a source; nothing happens before `LiveSource.start`.

    Parameters
    ----------
    source
        From `resolve_source`.
    receiver
        Gets the frames: of a file every one in order, of a camera only what is not outdated.
    device
        ``cuda:0`` to decode there with NVDEC where possible, else ``cpu``.
    config
        For cameras.
    """
    if source.kind is SourceKind.FILE:
        return _FileReader(source, receiver, device)
    return _CameraReader(source, receiver, device, config)


class _FileReader(LiveSource):
    """Every frame of a file, as fast as the receiver takes them."""

    def __init__(self, source: AllowedSource, receiver: FrameReceiver, device: str) -> None:
        super().__init__(receiver)
        self._source = source
        self._device = device

    def _read(self) -> str | None:
        try:
            video = self._open()
            self._receiver.on_rate(video.info.fps)
            for time_s, content in _contents(video):
                if self._stop.is_set():
                    return None
                self._receiver.on_frame(time_s, content)
        except UnreadableSourceError as error:
            return error.reason  # its message holds the whole path
        return "; ".join(video.problems) or None

    def _open(self) -> VideoFileSource:
        path = Path(self._source.location)
        if self._device != "cpu":
            try:
                return NvdecFileSource(path, self._device)
            except NvdecUnsuitableError as error:
                log.warning("nvdec_not_used", source=self._source.name, reason=error.reason)
        return VideoFileSource(path)


def _contents(video: VideoFileSource) -> Iterator[tuple[float, FrameContent]]:
    if isinstance(video, NvdecFileSource):
        yield from video.device_pictures()
    else:
        for frame in video.frames():
            yield frame.time_s, frame.image_bgr


class _CameraLostError(Exception):
    """The connection is of no more use; the text says why."""


class _CameraReader(LiveSource):
    """The newest frames of a camera, connected again whenever it is lost."""

    def __init__(
        self, source: AllowedSource, receiver: FrameReceiver, device: str, config: CameraConfig
    ) -> None:
        super().__init__(receiver)
        self._source = source
        self._device = device
        self._config = config
        self._clock = PictureClock(_MAX_AHEAD_S)
        self._lost_s: float | None = None

    def _read(self) -> str | None:
        delay_s = self._config.first_retry_s
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                self._play()
            except _REFUSALS as error:
                return f"the camera refused: {error.strerror}."
            except _CameraLostError as error:
                self._lost(str(error))
            except NvdecUnsuitableError as error:
                log.warning("nvdec_not_used", source=self._source.name, reason=error.reason)
                self._device = "cpu"
                continue
            if time.monotonic() - began_s > self._config.max_retry_s:
                delay_s = self._config.first_retry_s
            self._stop.wait(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            delay_s = min(2.0 * delay_s, self._config.max_retry_s)
        return None

    def _play(self) -> None:
        """Connect and hand over pictures until the camera is lost or this is stopped.

        FFmpeg's messages name the address with its password, so that none is passed on.
        """
        with self._connected() as container:
            if not container.streams.video:
                raise _CameraLostError("it sends no video.")
            stream = container.streams.video[0]
            self._clock.restart(stream.time_base)
            delivery = _Delivery(self._decoder(stream), self._deliver)
            try:
                for packet in self._packets(container, stream):
                    delivery.put(packet)
            finally:
                delivery.close()
                stream.codec_context.flush_buffers()  # as `video_file._opened`, and for its reason

    @contextlib.contextmanager
    def _connected(self) -> Iterator[InputContainer]:
        av.logging.set_level(None)
        limits_s = (self._config.open_timeout_s, self._config.read_timeout_s)
        with self._losing(limits_s[0]):
            container = av.open(
                self._source.location,
                format="rtsp",
                options=_CAMERA_OPTIONS,
                timeout=limits_s,
                metadata_errors="replace",
            )
        with container:
            yield container

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
        packets = container.demux(stream)
        while not self._stop.is_set():
            with self._losing(self._config.read_timeout_s):
                packet = next(packets)
            if not packet.size:
                raise _CameraLostError("it ended the connection.")
            yield packet

    @contextlib.contextmanager
    def _losing(self, limit_s: float) -> Iterator[None]:
        """Turn FFmpeg's errors into a reason that holds no address."""
        began_s = time.monotonic()
        try:
            yield
        except _REFUSALS:
            raise
        except av.error.FFmpegError as error:
            # The interruption itself is reported in different ways.
            if time.monotonic() - began_s >= limit_s:
                raise _CameraLostError(f"it did not answer within {limit_s:g} s.") from None
            raise _CameraLostError(f"{(error.strerror or 'unknown error').lower()}.") from None

    def _decoder(self, stream: VideoStream) -> "PictureDecoder":
        if self._device == "cpu":
            return _SoftwareDecoder(stream)
        return _GpuDecoder(NvdecDecoder(stream, self._device, low_latency=True))

    def _deliver(self, stamp: int | None, picture: Callable[[], FrameContent]) -> None:
        now_s = time.monotonic()
        time_s = self._clock.time_s(stamp, now_s)
        if time_s is None or self._stop.is_set():
            return
        if self._lost_s is not None:
            log.info("camera_back", source=self._source.name, missing_s=now_s - self._lost_s)
            self._lost_s = None
            self._receiver.on_problem(None)
        self._receiver.on_frame(time_s, picture())

    def _lost(self, reason: str) -> None:
        if self._lost_s is not None or self._stop.is_set():
            return
        self._lost_s = time.monotonic()
        log.warning("camera_lost", source=self._source.name, reason=reason)
        self._receiver.on_problem(f"the camera is lost and will be tried again: {reason}")


@runtime_checkable
class PictureDecoder(Protocol):
    """Turns the packets of one connection into pictures."""

    def decode(
        self, packet: VideoPacket
    ) -> Iterator[tuple[int | None, Callable[[], FrameContent]]]:
        """Pictures that are complete now: stamp in the track's time base, how to get them."""
        ...


class _GpuDecoder:
    """NVDEC, whose pictures are converted at once: the next packet overwrites them."""

    def __init__(self, decoder: NvdecDecoder) -> None:
        self._decoder = decoder

    def decode(
        self, packet: VideoPacket
    ) -> Iterator[tuple[int | None, Callable[[], FrameContent]]]:
        for stamp, picture in self._decoder.decode((packet,)):
            yield stamp, partial(_itself, picture)


def _itself(picture: DevicePicture) -> DevicePicture:
    return picture


class _SoftwareDecoder:
    """FFmpeg on the CPU."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._context = stream.codec_context
        # Threads for whole frames would each hold one back.
        self._context.thread_type = "SLICE"
        self._context.flags |= Flags.low_delay
        self._to_bgr: BgrConverter | None = None

    def decode(
        self, packet: VideoPacket
    ) -> Iterator[tuple[int | None, Callable[[], FrameContent]]]:
        try:
            pictures = self._context.decode(packet)
        except av.error.FFmpegError:
            return  # damaged; the next key picture mends it
        for picture in pictures:
            if not picture.is_corrupt:
                yield picture.pts, partial(self._convert, picture)

    def _convert(self, picture: VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        if self._to_bgr is None:
            size = square_pixel_size(picture, self._stream)
            self._to_bgr = BgrConverter(size, read_orientation(picture))
        return self._to_bgr(picture)


class _Delivery:
    """Decodes packets in a thread of its own, so that the connection never fills up.

    A decoder that falls behind hands over fewer pictures: first it only converts the newest, then
    everything up to the next key picture goes.
    """

    def __init__(
        self,
        decoder: PictureDecoder,
        deliver: Callable[[int | None, Callable[[], FrameContent]], None],
    ) -> None:
        self._decoder = decoder
        self._deliver = deliver
        self._packets: deque[VideoPacket] = deque()
        self._changed = threading.Condition()
        self._needs_key = True
        self._closed = False
        self._unsuitable: NvdecUnsuitableError | None = None
        self._thread = threading.Thread(target=self._run, name="source-decoder", daemon=True)
        self._thread.start()

    def put(self, packet: VideoPacket) -> None:
        """Decode this packet when its turn comes.

        Raises
        ------
        NvdecUnsuitableError
            From the decoder, about an earlier one.
        """
        with self._changed:
            if self._unsuitable is not None:
                raise self._unsuitable
            if not self._thread.is_alive():
                raise _CameraLostError("decoding failed; the service's log says why.")
            if len(self._packets) >= _MAX_WAITING_PACKETS:
                self._packets.clear()
                self._needs_key = True
            if self._needs_key and not packet.is_keyframe:
                return
            self._needs_key = False
            self._packets.append(packet)
            self._changed.notify()

    def close(self) -> None:
        """Drop what waits and end the thread."""
        with self._changed:
            self._closed = True
            self._packets.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (packet := self._next()) is not None:
                for stamp, picture in self._decoder.decode(packet):
                    if len(self._packets) <= _BEHIND_PACKETS:
                        self._deliver(stamp, picture)
        except NvdecUnsuitableError as error:
            self._unsuitable = error

    def _next(self) -> VideoPacket | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._packets) or self._closed)
            return None if self._closed else self._packets.popleft()
