"""The parts of the GPU path that can be proven on a CPU: resizing, people, headers, limits."""

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

torch = pytest.importorskip("torch", reason="needs the extra yolo")

from pose_analyzer.backends._ultralytics import load_pose_network  # noqa: E402
from pose_analyzer.backends.gpu.images import PictureDecoder  # noqa: E402
from pose_analyzer.backends.gpu.jpeg_header import JpegHeader, read_jpeg_header  # noqa: E402
from pose_analyzer.backends.gpu.letterbox import Letterboxer  # noqa: E402
from pose_analyzer.backends.gpu.memory import (  # noqa: E402
    GROW_AFTER_S,
    BatchLimit,
    Throughput,
    is_out_of_memory,
)
from pose_analyzer.backends.gpu.people import (  # noqa: E402
    MAX_PEOPLE,
    DecodedHead,
    RawHead,
    check_against_decoded,
    find_people,
    rows_of,
)
from pose_analyzer.backends.gpu.yolo_network import prepare_head  # noqa: E402
from pose_analyzer.pose_detector import decode_people, fill_batch, plan_letterbox  # noqa: E402
from pose_analyzer.stream_types import DropCause, FrameFailure, StreamFrame  # noqa: E402

SIZES = [(1080, 1920), (926, 1920), (720, 1280), (640, 480), (200, 300), (33, 700), (3, 5), (1, 1)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rgb_tensor(image_bgr: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_bgr[:, :, ::-1].copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_equals_opencv_to_the_bit(size: tuple[int, int]) -> None:
    image = noise(*size)
    box = plan_letterbox(size)
    expected = fill_batch([image], [box])
    batch = torch.full(expected.shape, torch.nan)

    Letterboxer().fill([rgb_tensor(image)], [box], batch)

    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)


def test_letterbox_takes_views() -> None:
    image = noise(300, 400)
    turned = np.ascontiguousarray(image.transpose(1, 0, 2)[20:380, 10:210])
    box = plan_letterbox(turned.shape[:2])
    expected = fill_batch([turned], [box])
    batch = torch.empty(expected.shape)

    Letterboxer().fill([rgb_tensor(image).transpose(1, 2)[:, 20:380, 10:210]], [box], batch)

    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)


@st.composite
def outputs(draw: st.DrawFn) -> np.ndarray:
    """Raw output of a network that sees crowds; no two scores of an image are equal."""
    n_anchors = draw(st.sampled_from([21, 84, 1050]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    raw = rng.normal(size=(2, 56, n_anchors)).astype(np.float32)
    raw[:, :2] = rng.uniform(0, 300, (2, 2, n_anchors))
    raw[:, 2:4] = rng.uniform(1, draw(st.sampled_from([20, 200])), (2, 2, n_anchors))
    scores = np.linspace(0, draw(st.sampled_from([0.2, 0.4, 0.95])), n_anchors)
    raw[:, 4] = rng.permuted(np.tile(scores, (2, 1)), axis=1)
    return raw


@given(raw=outputs(), iou=st.sampled_from([0.3, 0.45, 0.7]))
def test_people_equal_those_of_the_cpu_detector(raw: np.ndarray, iou: float) -> None:
    found = find_people(DecodedHead(), torch.from_numpy(raw), 0.25, iou).numpy()

    rows, n_people = rows_of(found)
    of_images = np.split(rows, np.cumsum(n_people)[:-1])
    for people, output in zip(of_images, raw, strict=True):
        # Only the best 512 of the candidates are looked at, which is enough for 64 people.
        expected = decode_people(output, 0.25, iou)[:MAX_PEOPLE]
        np.testing.assert_allclose(people, expected, atol=1e-4)


KERNELS_AGAINST_TORCH = """
import torch
from pose_analyzer.backends.gpu import kernels as gpu_kernels
from pose_analyzer.backends.gpu.letterbox import Letterboxer
from pose_analyzer.backends.gpu.people import KernelSuppress, suppress
from pose_analyzer.pose_detector import plan_letterbox

torch.manual_seed(0)
pictures = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in [(90, 160), (45, 77)]]
pictures.append(torch.randint(0, 256, (200, 110, 3), dtype=torch.uint8).permute(2, 1, 0)[:, 8:, 3:])
boxes = [plan_letterbox(tuple(picture.shape[1:]), 64) for picture in pictures]
assert {box.padded_hw for box in boxes} == {(64, 64)} or len({b.padded_hw for b in boxes}) == 1
expected = torch.full((3, 3, *boxes[0].padded_hw), float("nan"))
found = expected.clone()
Letterboxer().fill(pictures, boxes, expected)
Letterboxer(gpu_kernels.letterbox_kernel).fill(pictures, boxes, found)
assert torch.allclose(found, expected, atol=1e-6), (found - expected).abs().max()

for n_candidates, spread in [(21, 50.0), (300, 400.0), (512, 2000.0)]:
    corner = torch.rand((2, n_candidates, 2)) * spread
    corners = torch.cat([corner, corner + 20 + 30 * torch.rand((2, n_candidates, 2))], dim=2)
    scores = torch.linspace(0.9, 0.1, n_candidates).expand(2, -1)
    kept, n_kept = suppress(corners, scores, 0.25, 0.45)
    other, n_other = KernelSuppress(gpu_kernels.suppress_kernel)(corners, scores, 0.25, 0.45)
    assert n_kept.tolist() == n_other.tolist()
    for a, b, n in zip(kept, other, n_kept.tolist()):
        assert a[:n].tolist() == b[:n].tolist()
"""


@pytest.mark.slow
def test_kernels_equal_torch_in_tritons_interpreter() -> None:
    pytest.importorskip("triton", reason="needs triton")
    source = Path(find_people.__code__.co_filename).parents[2]
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", KERNELS_AGAINST_TORCH],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        check=True,
    )


@pytest.mark.shared_data
def test_own_decoding_equals_the_networks(shared_data: Path, tmp_path: Path) -> None:
    model = load_pose_network(shared_data / "models" / "yolo11n-pose.pt", tmp_path).model
    module = model.fuse(verbose=False).eval().float()
    picture = cv2.VideoCapture(str(shared_data / "videos" / "squat_air_34view_360p24.mp4")).read()
    image = picture[1]
    images = torch.from_numpy(fill_batch([image], [plan_letterbox(image.shape[:2])]))
    with torch.inference_mode():
        decoded, raw = module(images)

    head = prepare_head(module)

    assert isinstance(head, RawHead)
    # Relative to 640 pixels this is the last digit of FP32.
    assert check_against_decoded(head, raw, decoded) < 2e-4
    with torch.inference_mode():
        people = find_people(head, module(images)[1], 0.25, 0.45).numpy()
    expected = decode_people(decoded[0].numpy(), 0.25, 0.45)
    assert len(expected) >= 1
    np.testing.assert_allclose(rows_of(people[:1])[0], expected, atol=2e-4)


class UnknownHead(torch.nn.Module):
    """Ends in a head whose undecoded output is not what it seems to be."""

    def __init__(self, raw: object) -> None:
        super().__init__()
        self.model = [torch.nn.Identity()]
        self.model[0].reg_max, self.model[0].stride = 1, torch.tensor([8.0])
        self.raw = raw

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, object]:
        return torch.zeros((1, 56, 96)), self.raw


@pytest.mark.parametrize(
    "raw",
    [
        {"other": torch.zeros(1)},
        {
            "feats": [torch.zeros((1, 8, 8, 12))],
            "boxes": torch.ones((1, 4, 96)),
            "scores": torch.zeros((1, 1, 96)),
            "kpts": torch.zeros((1, 51, 96)),
        },
    ],
)
def test_heads_that_decode_otherwise_keep_doing_so(raw: object) -> None:
    assert isinstance(prepare_head(UnknownHead(raw)), DecodedHead)


def jpeg(image: np.ndarray, *parameters: int) -> bytes:
    return cv2.imencode(".jpg", image, list(parameters))[1].tobytes()


def test_header_of_usual_jpegs() -> None:
    image = noise(50, 70)
    assert read_jpeg_header(jpeg(image)) == JpegHeader(70, 50, 1)
    assert read_jpeg_header(jpeg(image, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)) == JpegHeader(70, 50, 1)


def test_header_of_anything_else_is_left_to_others() -> None:
    data = jpeg(noise(50, 70))
    assert read_jpeg_header(jpeg(noise(50, 70)[:, :, 0])) is None  # grey
    cmyk = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
    assert read_jpeg_header(cmyk.getvalue()) is None
    assert read_jpeg_header(cv2.imencode(".png", noise(5, 7))[1].tobytes()) is None
    assert read_jpeg_header(b"") is None
    assert all(read_jpeg_header(data[:length]) is None for length in range(len(data) - 1))


@given(data=st.binary(max_size=200), begin=st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe1"]))
def test_header_never_fails(data: bytes, begin: bytes) -> None:
    assert read_jpeg_header(begin + data) is None


def frame(content: object, roi: tuple[float, float, float, float] | None = None) -> StreamFrame:
    return StreamFrame("stream", 0, 0.0, 0.0, content, roi)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_opencv_does(orientation: int) -> None:
    smooth = cv2.resize(noise(4, 6), (96, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    header = read_jpeg_header(data)
    assert header is not None
    assert header.orientation == orientation

    [picture] = PictureDecoder(torch.device("cpu"), 10**6).decode([frame(data)])

    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert not isinstance(picture, FrameFailure)
    assert (picture.height_px, picture.width_px) == expected.shape[:2]
    # The two libraries decode chroma differently by a level or two.
    difference = picture.rgb.int() - rgb_tensor(expected).int()
    assert difference.abs().max() <= 3


def test_decoder_answers_every_frame_of_a_mixture() -> None:
    image = noise(60, 80)
    png = cv2.imencode(".png", image)[1].tobytes()
    damaged = jpeg(image)[:-200]
    frames = [
        frame(png),
        frame(damaged),
        frame(jpeg(image)),
        frame(b"junk"),
        frame(image),
        frame(jpeg(noise(200, 200))),
        frame(image, (0.25, 0.5, 0.75, 1.0)),
    ]

    answers = PictureDecoder(torch.device("cpu"), 60 * 80).decode(frames)

    failures = [index for index, one in enumerate(answers) if isinstance(one, FrameFailure)]
    assert failures == [1, 3, 5]
    assert all(answers[index].cause is DropCause.UNDECODABLE for index in failures)
    expected = rgb_tensor(image)
    assert torch.equal(answers[0].rgb, expected)
    assert torch.equal(answers[4].rgb, expected)
    assert answers[2].rgb.shape == expected.shape
    assert torch.equal(answers[6].rgb, expected[:, 30:, 20:60])
    assert (answers[6].x0_px, answers[6].y0_px, answers[6].width_px) == (20, 30, 80)


def test_batches_shrink_when_memory_runs_out_and_grow_again() -> None:
    now_s = 0.0
    limit = BatchLimit(64, lambda: now_s)
    assert limit.halve(40) == 20
    assert limit.halve(1) == 1
    now_s = GROW_AFTER_S
    assert limit.current() == 2
    assert limit.current() == 2
    now_s = 10 * GROW_AFTER_S
    limit.impose(3)
    assert limit.current() == 3
    limit.impose(1000)
    assert limit.current() == 4


def test_rate_is_learnt_from_full_batches_only() -> None:
    rate = Throughput()
    rate.set(100.0, n_frames=16)
    rate.add(16, 64, began_s=0.0, ended_s=1.0)  # nothing before it
    rate.add(2, 64, began_s=0.5, ended_s=1.5)  # small
    rate.add(64, 64, began_s=3.0, ended_s=4.0)  # after a pause
    assert rate.frames_per_s == 100.0
    rate.add(60, 64, began_s=3.5, ended_s=4.5)
    assert 100.0 < rate.frames_per_s < 120.0


def test_out_of_memory_is_known_in_all_its_forms() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("Error while decoding JPEG images: CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("Failed to decode batch: 2"))
    assert not is_out_of_memory(MemoryError("out of memory"))
