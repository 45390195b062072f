"""Live frames on a CPU: pictures, threads, detectors of their own, and what is no picture."""

import io
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pose_analyzer.backends import create_detector
from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline, default_workers
from pose_analyzer.backends.picture_files import UnreadablePictureError, decode_picture
from pose_analyzer.errors import BackendFailedError
from pose_analyzer.ports import FramePipeline
from pose_analyzer.settings import Settings
from pose_analyzer.sources import VideoFileSource
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import (
    DevicePicture,
    DropCause,
    FrameFailure,
    FramePoses,
    StreamFrame,
)
from pose_analyzer.types import Frame

from .builders import FakeDetector, squat_exercise, squat_pose

WAIT_S = 30.0
MAX_PIXELS = 1 << 20
PICTURE = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)


def written(extension: str, picture=PICTURE) -> bytes:
    return cv2.imencode(extension, picture)[1].tobytes()


def frame(content=PICTURE, stream_id="a", index=0, **values) -> StreamFrame:
    return StreamFrame(stream_id, index, index / 10, 0.0, content, **values)


class GatedDetector(FakeDetector):
    """Waits for `gate` in each picture."""

    def __init__(self):
        super().__init__(lambda _: [squat_pose(0.5)])
        self.gate = threading.Event()

    def detect(self, images_bgr, times_s=None):
        assert self.gate.wait(WAIT_S)
        assert not self.closed
        return super().detect(images_bgr, times_s)


class Made:
    """Makes detectors and remembers them."""

    def __init__(self, *, open_gate=True):
        self.detectors: list[GatedDetector] = []
        self._open_gate = open_gate

    def __call__(self):
        detector = GatedDetector()
        if self._open_gate:
            detector.gate.set()
        self.detectors.append(detector)
        return detector


def pipeline_of(make, *, per_stream=False, n_workers=2):
    return CpuFramePipeline(make, per_stream=per_stream, n_workers=n_workers, max_pixels=MAX_PIXELS)


def answer(pipeline, *frames):
    (outcome,) = pipeline.submit(list(frames)).result(WAIT_S)
    return outcome


@pytest.mark.parametrize("extension", [".png", ".webp", ".jpg"])
def test_pictures_come_as_files_or_decoded(extension):
    pipeline = pipeline_of(make := Made())
    outcome = answer(pipeline, frame(written(extension)))
    decoded = answer(pipeline, frame(index=1))
    pipeline.close()
    assert isinstance(pipeline, FramePipeline)
    assert isinstance(outcome, FramePoses)
    assert (outcome.width_px, outcome.height_px) == (64, 48)
    assert outcome.decode_s > 0
    assert isinstance(decoded, FramePoses)
    assert make.detectors[0].shapes == [PICTURE.shape] * 2
    assert make.detectors[0].times_s == [0.0, 0.1]


def test_region_as_in_a_recording():
    roi = (0.25, 0.5, 0.75, 1.0)
    config = AnalysisConfig((squat_exercise(),), roi=roi)
    pipeline = pipeline_of(make := Made())
    outcome = answer(pipeline, frame(roi=roi))
    pipeline.close()
    (person,) = StreamAnalyzer(Made()(), config).analyse(Frame(0, 0.0, PICTURE))
    assert make.detectors[0].shapes == [(24, 32, 3)]
    np.testing.assert_array_equal(outcome.poses[0].box_px, person.box_px)


def test_upright_as_the_exif_tag_says():
    image = Image.fromarray(PICTURE[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file := io.BytesIO(), "JPEG", exif=exif, quality=100, subsampling=0)
    upright = decode_picture(file.getvalue(), MAX_PIXELS)
    plain = decode_picture(written(".png"), MAX_PIXELS)
    assert upright.shape == (64, 48, 3)
    assert np.abs(upright.astype(int) - np.rot90(plain, -1)).mean() < 8


def huge_png() -> bytes:
    """A header that promises more pixels than are allowed, and no picture behind it."""
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def with_thumbnail(data: bytes) -> bytes:
    thumbnail = written(".jpg", PICTURE[:8, :8])
    return data[:2] + b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "readable"),
        (b"not a picture", "readable"),
        (b"\xff\xd8\xff" + b"a" * 100, "readable"),
        (written(".bmp"), "readable"),
        (written(".jpg")[:100], "readable|truncated"),
        (written(".jpg")[:-100], "truncated"),
        (with_thumbnail(written(".jpg"))[:-100], "truncated"),
        (written(".png")[:-100], "truncated"),
        (written(".webp")[:-100], "readable|truncated"),
        (written(".png", np.zeros((1025, 1024, 3), np.uint8)), "1048576 pixels"),
        (huge_png(), "1048576 pixels"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_picture_is_an_outcome(data, reason):
    pipeline = pipeline_of(make := Made())
    outcome = answer(pipeline, frame(data))
    pipeline.close()
    assert isinstance(outcome, FrameFailure)
    assert outcome.cause is DropCause.UNDECODABLE
    with pytest.raises(UnreadablePictureError, match=reason) as caught:
        decode_picture(data, MAX_PIXELS)
    assert outcome.detail == str(caught.value)
    assert make.detectors[0].shapes == []


def test_a_thumbnail_and_padding_do_no_harm():
    data = written(".jpg")
    padded = with_thumbnail(data) + b"\0" * 500
    np.testing.assert_array_equal(
        decode_picture(padded, MAX_PIXELS), decode_picture(data, MAX_PIXELS)
    )


def test_free_threads_are_counted_and_announced():
    make = Made(open_gate=False)
    pipeline = pipeline_of(make)
    idle = []
    all_done = threading.Event()

    def listen():
        idle.append(pipeline.n_idle())
        if len(idle) == 3:
            all_done.set()

    pipeline.on_idle(listen)
    assert (pipeline.n_idle(), pipeline.max_batch, pipeline.max_in_flight_per_stream) == (2, 1, 1)
    futures = [pipeline.submit([frame(stream_id=stream)]) for stream in "abc"]
    assert pipeline.n_idle() == 0
    make.detectors[0].gate.set()
    assert all(len(future.result(WAIT_S)) == 1 for future in futures)
    assert all_done.wait(WAIT_S)
    assert pipeline.n_idle() == 2
    assert len(make.detectors) == 1
    pipeline.close()
    assert make.detectors[0].closed


def test_each_stream_has_its_own_detector_until_it_is_forgotten():
    pipeline = pipeline_of(make := Made(), per_stream=True)
    for stream, index in (("a", 0), ("b", 5), ("a", 1), ("b", 6)):
        answer(pipeline, frame(stream_id=stream, index=index))
    first, second = make.detectors
    assert (first.times_s, second.times_s) == ([0.0, 0.1], [0.5, 0.6])
    pipeline.forget("a")
    pipeline.forget("unknown")
    answer(pipeline, frame(stream_id="a"))
    assert (len(make.detectors), second.closed) == (3, False)
    pipeline.close()
    assert all(detector.closed for detector in make.detectors)


def test_a_detector_in_use_is_closed_after_its_frame():
    make = Made(open_gate=False)
    pipeline = pipeline_of(make, per_stream=True)
    future = pipeline.submit([frame()])
    pipeline.forget("a")
    assert not make.detectors[0].closed
    make.detectors[0].gate.set()
    assert isinstance(future.result(WAIT_S)[0], FramePoses)
    assert make.detectors[0].closed
    pipeline.close()


def test_a_broken_detector_fails_the_batch_and_frees_its_thread():
    def break_down(_):
        raise BackendFailedError("fake", "it broke")

    pipeline = pipeline_of(lambda: FakeDetector(break_down), n_workers=1)
    for index in range(2):
        with pytest.raises(BackendFailedError, match="it broke"):
            answer(pipeline, frame(index=index))
        assert pipeline.n_idle() == 1
    pipeline.close()


def test_misuse():
    pipeline = pipeline_of(Made())
    with pytest.raises(TypeError, match="GPU"):
        pipeline.submit([frame(DevicePicture(None, 48, 64))])
    with pytest.raises(ValueError, match="unpack"):
        pipeline.submit([frame(), frame()])
    assert pipeline.n_idle() == 2
    pipeline.close()


def test_rate_follows_what_is_measured():
    pipeline = pipeline_of(Made())
    guessed = pipeline.frames_per_second()
    for index in range(20):
        answer(pipeline, frame(b"bad", index=index))
    assert pipeline.frames_per_second() == guessed
    for index in range(20):
        answer(pipeline, frame(index=index))
    assert pipeline.frames_per_second() > 1.5 * guessed
    pipeline.close()


@pytest.mark.parametrize("model", ["mediapipe-lite", "yolo11n-pose"])
def test_workers_for_any_number_of_cores(model):
    workers = [default_workers(model, n_cores) for n_cores in (1, 2, 4, 16)]
    assert workers == sorted(workers)
    assert workers[0] == 1
    assert default_workers(model) >= 1


@pytest.mark.shared_data
@pytest.mark.parametrize("model", ["mediapipe-lite", "yolo11n-pose"])
def test_the_same_poses_as_in_a_recording(model, shared_data, tmp_path):
    settings = Settings(model_path=(shared_data / "models",), cache_dir=tmp_path)
    clip = shared_data / "videos" / "squat_air_34view_360p24.mp4"
    pictures = [one for _, one in zip(range(20), VideoFileSource(clip).frames(), strict=False)]
    recorded = create_detector(model, settings)
    expected = [recorded.detect([one.image_bgr], [one.time_s])[0] for one in pictures]
    recorded.close()
    pipeline = CpuFramePipeline(
        lambda: create_detector(model, settings),
        per_stream=model.startswith("mediapipe"),
        n_workers=2,
        max_pixels=MAX_PIXELS,
    )
    for one, poses in zip(pictures, expected, strict=True):
        contents = (one.image_bgr, written(".png", one.image_bgr))
        futures = [
            pipeline.submit([StreamFrame(stream, one.index, one.time_s, 0.0, content)])
            for stream, content in zip("ab", contents, strict=True)
        ]
        for future in futures:
            (outcome,) = future.result(WAIT_S)
            assert len(outcome.poses) == len(poses)
            for found, other in zip(outcome.poses, poses, strict=True):
                np.testing.assert_array_equal(found.keypoints_px, other.keypoints_px)
                np.testing.assert_array_equal(found.confidences, other.confidences)
    pipeline.close()
    assert any(expected)
