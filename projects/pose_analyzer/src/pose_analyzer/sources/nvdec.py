"""Video decoded by an NVIDIA GPU's own decoder (NVDEC): pictures that never leave the GPU.

PyAV takes the container or the camera's connection apart, as everywhere, so that times, damage
and refusals are the same; PyNvVideoCodec decodes. Where it cannot, the caller uses PyAV instead
and logs the reason.
"""

import ctypes
import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import av
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.stream import VideoStream

from pose_analyzer.errors import PoseAnalyzerError, UnreadableSourceError
from pose_analyzer.sources.picture_clock import PictureClock
from pose_analyzer.sources.video_file import (
    Orientation,
    VideoFileSource,
    opened,
    video_stream,
)
from pose_analyzer.stream_types import DevicePicture

if TYPE_CHECKING:
    VideoPacket = Packet[VideoStream]
else:
    VideoPacket = Packet  # generic in PyAV's stubs alone

# FFmpeg's name: the decoder's name, and how packets must be rewritten. The decoder wants start
# codes instead of lengths, and in front of key pictures what the container keeps in its header.
_CODECS: Final = {
    "h264": ("H264", "h264_mp4toannexb,dump_extra"),
    "hevc": ("HEVC", "hevc_mp4toannexb,dump_extra"),
    "av1": ("AV1", None),
    "vp9": ("VP9", None),
    "vp8": ("VP8", None),
    "mpeg4": ("MPEG4", "dump_extra"),
    "mpeg2video": ("MPEG2", "dump_extra"),
}
_EIGHT_BIT_420: Final = ("yuv420p", "yuvj420p")
_FULL_RANGE: Final = 2  # FFmpeg's AVCOL_RANGE_JPEG
# Packets of a file between two waits for the GPU. More costs memory and wins little.
_PACKETS_AT_ONCE: Final = 4


class NvdecUnsuitableError(PoseAnalyzerError):
    """NVDEC is not there, or not for this video; PyAV may well read it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"NVDEC is not used: {reason}")
        self.reason = reason


@cache
def nvdec_available() -> str | None:
    """Why videos cannot be decoded on the GPU here; None if they can."""
    try:
        import torch  # noqa: PLC0415 - an optional extra
    except ImportError:
        return "PyTorch is not installed (extra yolo)."
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU."
    for library in ("libnvcuvid.so.1", "libnvidia-encode.so.1"):
        try:
            ctypes.CDLL(library)
        except OSError:
            return (
                f"the driver's {library} is missing; containers need "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video."
            )
    try:
        _library()
    except ImportError:
        return "PyNvVideoCodec is not installed (extra nvdec)."
    except RuntimeError as error:
        return f"PyNvVideoCodec does not start: {str(error).partition(chr(10))[0]}"
    return None


def _library() -> ModuleType:
    return importlib.import_module("PyNvVideoCodec")  # an optional extra, which loads the driver


class NvdecDecoder:
    """Turns the packets of one video track into RGB pictures on the GPU.

    Belongs to one thread. Every picture is a new tensor, complete when it is handed over.

    Parameters
    ----------
    stream
        The track.
    device
        Such as ``cuda:0``.
    orientation
        How to turn the pictures upright.
    low_latency
        Give each picture out at once, for cameras, whose pictures come in order of display.

    Raises
    ------
    NvdecUnsuitableError
        At once, or from `decode`, if it cannot decode this track.
    """

    def __init__(
        self,
        stream: VideoStream,
        device: str,
        orientation: Orientation | None = None,
        *,
        low_latency: bool = False,
    ) -> None:
        if (reason := nvdec_available() or _why_unsuitable(stream)) is not None:
            raise NvdecUnsuitableError(reason)
        import torch  # noqa: PLC0415 - an optional extra

        from pose_analyzer.sources.nv12 import (  # noqa: PLC0415 - imports torch
            Nv12ToRgb,
            open_nv12_kernel,
        )

        codec, rewriting = _CODECS[stream.codec_context.name]
        self._nvc = nvc = _library()
        self._errors = (nvc.PyNvVCException, nvc.PyNvVCExceptionUnsupported, RuntimeError)
        self._rewrite = None if rewriting is None else BitStreamFilterContext(rewriting, stream)
        self._flag = int(nvc.VideoPacketFlag.ENDOFPICTURE) if low_latency else 0
        self._to_rgb = Nv12ToRgb(
            int(stream.codec_context.colorspace),
            full_range=int(stream.codec_context.color_range) == _FULL_RANGE
            or stream.codec_context.pix_fmt == "yuvj420p",
            device=device,
            turned=orientation,
            kernel=open_nv12_kernel(device),
        )
        self._dense_shape: Any = None
        self._torch: Any = torch
        # Not the default stream: decoders would wait there for each other and for the network.
        self._stream = self._torch.cuda.Stream(device)
        # A wait for it lets the processor do something else; one for the stream keeps it busy.
        self._done = self._torch.cuda.Event(blocking=True)
        latency = nvc.DisplayDecodeLatencyType
        try:
            self._decoder = nvc.CreateDecoder(
                gpuid=torch.device(device).index or 0,
                codec=getattr(nvc.cudaVideoCodec, codec),
                cudacontext=0,
                cudastream=self._stream.cuda_stream,
                usedevicememory=True,
                latency=latency.LOW if low_latency else latency.NATIVE,
            )
        except self._errors as error:
            raise NvdecUnsuitableError(_first_line(error)) from error

    def decode(
        self, packets: Iterable[VideoPacket | None]
    ) -> list[tuple[int | None, DevicePicture]]:
        """Pictures that are complete after these packets; those still inside for None.

        Every step of Python here is taken under the lock that all sources share, thousands of
        times a second.

        Returns
        -------
        list of tuple
            Time stamp in the track's time base, None if there is none; the picture.
        """
        found: list[tuple[int | None, DevicePicture]] = []
        try:
            with self._torch.cuda.stream(self._stream):
                for packet in packets:
                    for part in self._rewritten(packet):
                        self._decode(part, found)
                if found:
                    self._done.record(self._stream)
            if found:
                self._done.synchronize()
        except self._errors as error:
            raise NvdecUnsuitableError(_first_line(error)) from error
        return found

    def _rewritten(self, packet: VideoPacket | None) -> list[VideoPacket | None]:
        if packet is not None and not packet.size:
            packet = None
        if self._rewrite is None:
            return [packet]
        try:
            packets: list[Any] = self._rewrite.filter(packet)
        except av.error.FFmpegError:
            return []  # damaged; the next key picture mends it
        return packets if packet is not None else [*packets, None]

    def _decode(
        self, packet: VideoPacket | None, found: list[tuple[int | None, DevicePicture]]
    ) -> None:
        data = self._nvc.PacketData()
        has_stamp = True
        if packet is not None:
            # The decoder copies the bytes before it returns.
            data.bsl_data, data.bsl = packet.buffer_ptr, packet.buffer_size
            stamp = packet.pts
            has_stamp = stamp is not None
            data.pts = stamp or 0
            data.decode_flag = self._flag
        # The next call overwrites the surfaces, in the order of this decoder's stream.
        for surface in self._decoder.Decode(data):
            picture = self._picture(surface)
            found.append((surface.getPTS() if has_stamp else None, picture))

    def _picture(self, surface: Any) -> DevicePicture:  # noqa: ANN401 - torch may not be there
        shape = surface.shape
        if shape == self._dense_shape:
            rgb = self._to_rgb.at(surface.GetPtrToPlane(0), shape[0] * 2 // 3, shape[1])
        else:
            nv12 = self._torch.from_dlpack(surface)
            rgb = self._to_rgb(nv12)
            # A tensor of each surface costs more than the conversion, so only the first is asked.
            dense = nv12.is_contiguous() and nv12.data_ptr() == surface.GetPtrToPlane(0)
            if self._to_rgb.has_kernel and dense:
                self._dense_shape = shape
        return DevicePicture(rgb, rgb.shape[1], rgb.shape[2])


class NvdecFileSource(VideoFileSource):
    """A video file whose pictures are decoded on the GPU, at the times `VideoFileSource` gives.

    Parameters
    ----------
    path
        The file.
    device
        Such as ``cuda:0``.

    Raises
    ------
    UnreadableSourceError
        As `VideoFileSource`.
    NvdecUnsuitableError
        The GPU cannot decode it; `VideoFileSource` can.
    """

    def __init__(self, path: Path, device: str) -> None:
        if (reason := nvdec_available()) is not None:
            raise NvdecUnsuitableError(reason)
        super().__init__(path)
        self._device = device
        self._gpu_problems: tuple[str, ...] = ()
        # Only trying tells whether this GPU decodes this codec and profile.
        if next(self.device_pictures(), None) is None:
            raise NvdecUnsuitableError("it decodes not one picture of this video.")

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in the latest reading; complete once frames are exhausted."""
        return (*super().problems, *self._gpu_problems)

    def device_pictures(self) -> Iterator[tuple[float, DevicePicture]]:
        """Decode all pictures in time order, the first at 0 s, each with its time.

        Raises
        ------
        UnreadableSourceError
            The decoder broke in the middle.
        """
        self._gpu_problems = ()
        period_s = 1 / self._info.fps if self._info.fps > 0 else 0.0
        clock = PictureClock()
        n_pictures = 0
        with opened(self._path) as container:
            stream = video_stream(container, self._path)
            if container.format.name == "avi":
                raise NvdecUnsuitableError("AVI files hold no presentation times.")
            decoder = NvdecDecoder(stream, self._device, self._orientation)
            clock.restart(stream.time_base)
            packets = _packets(container.demux(stream), self._tell)
            try:
                while group := list(islice(packets, _PACKETS_AT_ONCE)):
                    for stamp, picture in decoder.decode(group):
                        time_s = clock.time_s(stamp, n_pictures * period_s)
                        if time_s is not None:
                            n_pictures += 1
                            yield time_s, picture
            except NvdecUnsuitableError as error:
                if n_pictures:
                    raise UnreadableSourceError(self._path.name, error.reason) from error
                raise

    def _tell(self, problem: str) -> None:
        self._gpu_problems = (problem,)


def _packets(
    packets: Iterator[VideoPacket], tell: Callable[[str], None]
) -> Iterator[VideoPacket | None]:
    """All that can be read, and None at the end, which empties the decoder."""
    try:
        for packet in packets:
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        tell(f"reading stops early: {error.strerror}")
    yield None


def _why_unsuitable(stream: VideoStream) -> str | None:
    context = stream.codec_context
    if context.name not in _CODECS:
        return f"it does not decode {context.name}."
    if context.pix_fmt not in _EIGHT_BIT_420:
        return f"pictures are {context.pix_fmt}, not 8-bit 4:2:0."
    if context.width % 2 or context.height % 2:
        return "width or height is odd."
    if (stream.sample_aspect_ratio or 1) != 1:
        return "its pixels are not square."
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
