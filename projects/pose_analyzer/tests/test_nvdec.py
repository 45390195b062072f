"""Video decoded on the GPU: colours and times against PyAV, with a stand-in and with the GPU."""

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.sources import (
    AllowedSource,
    SourceKind,
    VideoFileSource,
    nvdec,
    nvdec_available,
    open_live_source,
)
from pose_analyzer.sources.nvdec import NvdecFileSource, NvdecUnsuitableError
from pose_analyzer.sources.video_file import Orientation

torch = pytest.importorskip("torch", reason="needs the extra yolo")

from pose_analyzer.sources import nv12  # noqa: E402 - imports torch
from pose_analyzer.sources.nv12 import Nv12ToRgb, open_nv12_kernel  # noqa: E402 - imports torch

WIDTH, HEIGHT = 96, 64


def write_clip(path, *, n_frames=60, pixel_format="yuv420p", codec="libx264", rotation=None):
    """A brightening picture with a red corner; pictures stored out of order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        if codec == "libx264":
            stream.options = {"g": "12", "bf": "2", "crf": "10"}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(n_frames):
            image = np.full((HEIGHT, WIDTH, 3), 20 + 3 * index % 220, dtype=np.uint8)
            image[: HEIGHT // 4, : WIDTH // 4] = (20, 20, 200)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("matrix", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_those_of_the_recorded_path(matrix, full_range):
    low, high = (0, 256) if full_range else (16, 236)
    rng = np.random.default_rng(matrix)
    luma = rng.integers(low, high, (HEIGHT, WIDTH), dtype=np.uint8)
    chroma = rng.integers(low, high, (2, HEIGHT // 2, WIDTH // 2), dtype=np.uint8)
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    for plane, values in zip(frame.planes, (luma, *chroma), strict=True):
        rows = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    expected = frame.to_ndarray(format="bgr24")

    pairs = np.moveaxis(chroma, 0, -1).reshape(HEIGHT // 2, WIDTH)
    nv12 = torch.from_numpy(np.concatenate([luma, pairs]))
    found = Nv12ToRgb(matrix, full_range=full_range, device="cpu")(nv12)

    difference = np.abs(bgr(found).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.7


TURNS = [
    Orientation(transposed, mirror_x, mirror_y)
    for transposed in (False, True)
    for mirror_x in (False, True)
    for mirror_y in (False, True)
]


class StandInKernel:
    """What `nv12_kernel` does, one picture at once in host memory."""

    def __init__(self):
        self.n_launches = 0

    def __getitem__(self, grid):
        return self.launch

    def launch(self, address, rgb, table, *geometry):
        start, step_y, step_x, height, width, _ = geometry
        self.n_launches += 1
        memory = (ctypes.c_uint8 * (height * width * 3 // 2)).from_address(address)
        nv12 = np.frombuffer(memory, dtype=np.uint8).reshape(-1, width).astype(np.int64)
        pairs = nv12[height:].reshape(height // 2, width // 2, 2).repeat(2, 0).repeat(2, 1)
        luma, *rows = table.tolist()
        places = start + step_y * np.arange(height)[:, None] + step_x * np.arange(width)
        for channel, plane in enumerate(rgb.view(3, -1).numpy()):
            of_cb, of_cr, constant = rows[3 * channel : 3 * channel + 3]
            sums = nv12[:height] * luma + pairs[..., 0] * of_cb + pairs[..., 1] * of_cr + constant
            plane[places] = (sums >> 16).clip(0, 255)


@pytest.mark.parametrize("turned", TURNS)
def test_the_kernel_is_told_where_upright_pixels_go(turned):
    nv12 = torch.randint(0, 256, (48 * 3 // 2, 34), dtype=torch.uint8)
    plain = Nv12ToRgb(9, full_range=False, device="cpu", turned=turned)
    quick = Nv12ToRgb(9, full_range=False, device="cpu", turned=turned, kernel=StandInKernel())
    assert torch.equal(quick(nv12), plain(nv12))


@pytest.mark.parametrize("full_range", [False, True])
def test_grey_stays_grey_and_reaches_black_and_white(full_range):
    black, white = (0, 255) if full_range else (16, 235)
    for luma, level in [(black, 0), (white, 255), (0, 0), (255, 255)]:
        nv12 = torch.full((6, 4), 128, dtype=torch.uint8)
        nv12[:4] = luma
        for matrix in (1, 2, 4, 7, 9):
            found = Nv12ToRgb(matrix, full_range=full_range, device="cpu")(nv12)
            assert (found == level).all()


KERNEL_AGAINST_TORCH = """
import torch
from pose_analyzer.sources.nv12 import Nv12ToRgb
from pose_analyzer.sources.nv12_kernel import nv12_kernel
from pose_analyzer.sources.video_file import Orientation

torch.manual_seed(0)
for n, (height, width) in enumerate([(32, 48), (50, 70)]):
    for matrix in (1, 2, 7, 9):
        for full_range in (False, True):
            n += 1
            turned = Orientation(bool(n & 1), bool(n & 2), bool(n & 4))
            nv12 = torch.randint(0, 256, (height * 3 // 2, width), dtype=torch.uint8)
            options = {"full_range": full_range, "device": "cpu", "turned": turned}
            expected = Nv12ToRgb(matrix, **options)(nv12)
            found = Nv12ToRgb(matrix, **options, kernel=nv12_kernel)(nv12)
            assert torch.equal(found, expected), (height, matrix, full_range, turned)
"""


@pytest.mark.slow
def test_the_kernel_equals_torch_in_tritons_interpreter():
    pytest.importorskip("triton", reason="needs triton")
    source = Path(nvdec.__file__).parents[2]
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", KERNEL_AGAINST_TORCH],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        check=True,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("turned", [None, *TURNS])
def test_the_kernel_equals_torch_on_the_gpu(turned):
    pytest.importorskip("triton", reason="needs triton")
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU")
    kernel = open_nv12_kernel("cuda:0")
    assert kernel is not None
    for matrix, full_range, height, width in [(1, False, 1080, 1920), (2, True, 722, 406)]:
        nv12 = torch.randint(0, 256, (height * 3 // 2, width), dtype=torch.uint8, device="cuda:0")
        options = {"full_range": full_range, "device": "cuda:0", "turned": turned}
        expected = Nv12ToRgb(matrix, **options)(nv12)
        assert torch.equal(Nv12ToRgb(matrix, **options, kernel=kernel)(nv12), expected)


def bgr(rgb):
    return rgb.cpu().numpy()[::-1].transpose(1, 2, 0)


class StandIn:
    """PyNvVideoCodec's interface on top of FFmpeg's decoder, without its header bytes."""

    PyNvVCException = type("PyNvVCException", (Exception,), {})
    PyNvVCExceptionUnsupported = type("PyNvVCExceptionUnsupported", (Exception,), {})
    DisplayDecodeLatencyType = SimpleNamespace(LOW=1, NATIVE=0)
    VideoPacketFlag = SimpleNamespace(ENDOFPICTURE=1)
    cudaVideoCodec = SimpleNamespace(H264="h264")  # noqa: N815 - its name there

    def __init__(self, breaks_after=None):
        self.breaks_after = breaks_after

    def PacketData(self):  # noqa: N802 - its name there
        return SimpleNamespace(bsl_data=0, bsl=0, pts=0, decode_flag=0)

    def CreateDecoder(self, codec, **_):  # noqa: N802 - its name there
        context = av.CodecContext.create(codec, "r")
        n_packets = 0
        # One buffer for all, as the real one reuses its surfaces.
        surface = torch.empty((HEIGHT * 3 // 2, WIDTH), dtype=torch.uint8)
        surface.GetPtrToPlane = lambda plane: surface.data_ptr()

        def decode(data):
            nonlocal n_packets
            n_packets += 1
            if self.breaks_after is not None and n_packets > self.breaks_after:
                raise self.PyNvVCException("broken\nin C++")
            packet = None
            if data.bsl:
                packet = av.Packet(ctypes.string_at(data.bsl_data, data.bsl))
                packet.pts = data.pts
            for frame in context.decode(packet):
                picture = frame.reformat(format="nv12").to_ndarray()
                surface.copy_(torch.from_numpy(picture))
                surface.getPTS = lambda stamp=frame.pts: stamp
                yield surface

        return SimpleNamespace(Decode=decode)


@pytest.fixture
def stand_in(monkeypatch):
    def install(**options):
        stream = SimpleNamespace(cuda_stream=1, synchronize=lambda: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
        monkeypatch.setattr(nvdec, "nvdec_available", lambda: None)
        monkeypatch.setattr(nvdec, "_library", lambda: StandIn(**options))

    return install


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.parametrize("rotation", [None, 90.0])
def test_times_and_pictures_are_those_of_the_recorded_path(tmp_path, stand_in, name, rotation):
    stand_in()
    path = write_clip(tmp_path / name, rotation=rotation)
    source = NvdecFileSource(path, "cpu")

    assert_same(list(source.device_pictures()), list(VideoFileSource(path).frames()))
    assert source.problems == ()


def test_surfaces_are_converted_where_they_are(tmp_path, stand_in, monkeypatch):
    stand_in()
    kernel = StandInKernel()
    monkeypatch.setattr(nv12, "open_nv12_kernel", lambda device: kernel)
    path = write_clip(tmp_path / "clip.mp4", rotation=-90.0)

    assert_same(
        list(NvdecFileSource(path, "cpu").device_pictures()), list(VideoFileSource(path).frames())
    )
    assert kernel.n_launches >= 60


def assert_same(pictures, frames):
    assert [time_s for time_s, _ in pictures] == [frame.time_s for frame in frames]
    for (_, picture), frame in zip(pictures, frames, strict=True):
        assert frame.image_bgr.shape == (picture.height_px, picture.width_px, 3)
        assert np.abs(bgr(picture.rgb).astype(int) - frame.image_bgr).max() <= 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, "mjpeg"),
        ({"pixel_format": "yuv444p"}, "4:2:0"),
    ],
)
def test_videos_it_does_not_decode(tmp_path, stand_in, options, reason):
    stand_in()
    path = write_clip(tmp_path / "clip.mp4", n_frames=5, **options)
    with pytest.raises(NvdecUnsuitableError, match=reason):
        NvdecFileSource(path, "cpu")


def test_a_decoder_that_breaks(tmp_path, stand_in):
    path = write_clip(tmp_path / "clip.mp4")
    stand_in(breaks_after=0)
    with pytest.raises(NvdecUnsuitableError, match=r"broken$"):
        NvdecFileSource(path, "cpu")
    stand_in(breaks_after=20)
    with pytest.raises(UnreadableSourceError, match=r"clip.mp4: broken$"):
        list(NvdecFileSource(path, "cpu").device_pictures())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_why():
    nvdec_available.cache_clear()
    assert nvdec_available() == "there is no NVIDIA GPU."


@pytest.mark.gpu
def test_on_the_gpu(tmp_path):
    if (reason := nvdec_available()) is not None:
        pytest.skip(reason)
    path = write_clip(tmp_path / "clip.mp4", n_frames=120, rotation=90.0)
    source = NvdecFileSource(path, "cuda:0")
    # All are kept: none may be overwritten by those decoded after it.
    assert_same(list(source.device_pictures()), list(VideoFileSource(path).frames()))


@pytest.mark.gpu
def test_many_files_at_once_on_the_gpu(tmp_path):
    if (reason := nvdec_available()) is not None:
        pytest.skip(reason)
    path = write_clip(tmp_path / "clip.mp4", n_frames=120)
    expected = [frame.image_bgr.mean() for frame in VideoFileSource(path).frames()]
    found = [[] for _ in range(8)]
    ended = threading.Barrier(9)

    class Means:
        def __init__(self, into):
            self.into = into

        def on_rate(self, fps):
            assert fps > 0

        def on_frame(self, time_s, content):
            self.into.append(content.rgb.float().mean())

        def on_problem(self, problem):
            raise AssertionError(problem)

        def on_end(self, problem):
            assert problem is None
            ended.wait(60)

    source = AllowedSource(SourceKind.FILE, path.name, str(Path(path)))
    readers = [open_live_source(source, Means(into), device="cuda:0") for into in found]
    for reader in readers:
        reader.start()
    ended.wait(60)
    for means in found:
        np.testing.assert_allclose([float(mean) for mean in means], expected, atol=1.5)
