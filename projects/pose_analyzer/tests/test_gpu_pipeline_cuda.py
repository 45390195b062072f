"""The GPU pipeline on an NVIDIA GPU against the CPU detector, and what only CUDA can break."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

torch = pytest.importorskip("torch", reason="needs the extra yolo")

from pose_analyzer.backends.gpu.calibration import synthetic_jpegs  # noqa: E402
from pose_analyzer.backends.gpu.options import GpuOptions  # noqa: E402
from pose_analyzer.backends.gpu.pipeline import (  # noqa: E402
    GpuFramePipeline,
    create_gpu_pipeline,
)
from pose_analyzer.backends.gpu.yolo_cuda_graph import BUCKETS  # noqa: E402
from pose_analyzer.backends.yolo_torch import TorchBackend  # noqa: E402
from pose_analyzer.pose_detector import YOLOPoseDetector  # noqa: E402
from pose_analyzer.stream_types import (  # noqa: E402
    DevicePicture,
    DropCause,
    FrameContent,
    FrameFailure,
    FrameOutcome,
    FramePoses,
    StreamFrame,
)
from pose_analyzer.types import Pose  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

TIMEOUT_S = 120.0
MIB = 1 << 20
FP16 = GpuOptions(warm_hw=None, measure_batch=0)
FP32 = replace(FP16, half=False)


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Pictures with somebody in them, from the folder POSE_TEST_FRAMES."""
    folder = os.environ.get("POSE_TEST_FRAMES")
    paths = sorted(Path(folder).glob("*.jpg")) if folder else []
    if not paths:
        pytest.skip("POSE_TEST_FRAMES names no folder with JPEGs of people")
    return [cv2.imread(str(path)) for path in paths[:8]]


@pytest.fixture(scope="module")
def expected(weights, people, tmp_path_factory) -> list[list[Pose]]:
    """What the CPU detector sees in them."""
    backend = TorchBackend(weights, tmp_path_factory.mktemp("ultralytics"))
    return YOLOPoseDetector(backend, confidence=0.25).detect(people)


@pytest.fixture
def open_pipeline(weights, tmp_path) -> Iterator:
    made: list[GpuFramePipeline] = []

    def open_(options: GpuOptions = FP16, fault=None) -> GpuFramePipeline:
        made.append(create_gpu_pipeline(weights, "yolo11n-pose", tmp_path, options, fault))
        return made[-1]

    yield open_
    for pipeline in made:
        pipeline.close()


def submitted(pipeline: GpuFramePipeline, contents: Sequence[FrameContent]) -> list[FrameOutcome]:
    frames = [StreamFrame("s", i, float(i), 0.0, content) for i, content in enumerate(contents)]
    return pipeline.submit(frames).result(TIMEOUT_S)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def assert_same_people(
    found: Sequence[FrameOutcome],
    expected: Sequence[Sequence[Pose]],
    within_px: float,
    quantile: float = 1.0,
) -> None:
    """Compare what a network is sure of; weak people and hidden keypoints jump with rounding."""
    assert any(poses and poses[0].score > 0.5 for poses in expected)
    for outcome, poses in zip(found, expected, strict=True):
        assert isinstance(outcome, FramePoses)
        for pose in (one for one in poses if one.score > 0.5):
            middles = [other.box_px.reshape(2, 2).mean(0) for other in outcome.poses]
            assert middles, "somebody was not found"
            away = np.linalg.norm(middles - pose.box_px.reshape(2, 2).mean(0), axis=1)
            other = outcome.poses[int(away.argmin())]
            seen = pose.confidences > 0.5
            difference = np.abs(other.keypoints_px[seen] - pose.keypoints_px[seen])
            assert np.quantile(difference, quantile, method="higher") <= within_px
            assert abs(other.score - pose.score) < 0.03


@pytest.mark.parametrize(("options", "within_px"), [(FP32, 1.0), (FP16, 3.0)])
def test_people_equal_those_of_the_cpu(
    open_pipeline, people, expected, options: GpuOptions, within_px: float
) -> None:
    assert_same_people(submitted(open_pipeline(options), people), expected, within_px)


def test_half_precision_is_within_two_pixels_on_average(open_pipeline, people, expected) -> None:
    found = submitted(open_pipeline(FP16), people)
    differences = [
        np.abs(outcome.poses[0].keypoints_px - poses[0].keypoints_px)[poses[0].confidences > 0.5]
        for outcome, poses in zip(found, expected, strict=True)
        if poses and poses[0].score > 0.5
    ]
    assert np.concatenate(differences).mean() < 2.0


def test_jpegs_decoded_on_the_gpu_show_the_same_people(open_pipeline, people, weights, tmp_path):
    files = [jpeg(image) for image in people]
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in files]
    detector = YOLOPoseDetector(TorchBackend(weights, tmp_path), confidence=0.25)
    # nvJPEG and libjpeg-turbo round colours differently, and an ankle in the dark may jump by it.
    found = submitted(open_pipeline(FP32), files)
    assert_same_people(found, detector.detect(images), 3.0, quantile=0.9)


@pytest.mark.parametrize("n_frames", [*BUCKETS, 3, 33])
def test_every_batch_size_gives_what_one_frame_gives(open_pipeline, people, n_frames) -> None:
    pipeline = open_pipeline(FP32)
    alone = [submitted(pipeline, [image])[0].poses for image in people]
    found = submitted(pipeline, [people[i % len(people)] for i in range(n_frames)])
    assert_same_people(found, [alone[i % len(people)] for i in range(n_frames)], 0.5)


def test_graphs_equal_single_launches(open_pipeline, people) -> None:
    graph, eager = open_pipeline(FP16), open_pipeline(replace(FP16, engine="eager"))
    for outcome, other in zip(submitted(graph, people), submitted(eager, people), strict=True):
        assert len(outcome.poses) == len(other.poses)
        for pose, same in zip(outcome.poses, other.poses, strict=True):
            np.testing.assert_allclose(pose.keypoints_px, same.keypoints_px, atol=0.5)


def test_other_engines_work_or_fall_back(open_pipeline, people) -> None:
    reference = submitted(open_pipeline(FP16), people)
    for engine in ("tensorrt", "eager"):
        found = submitted(open_pipeline(replace(FP16, engine=engine)), people)
        assert_same_people(found, [outcome.poses for outcome in reference], 3.0)


def test_mixed_sizes_turned_and_damaged_pictures_in_one_batch(open_pipeline, people, expected):
    image = people[0]
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored as turned to the left
    stored = np.ascontiguousarray(np.rot90(image)[:, :, ::-1])
    Image.fromarray(stored).save(turned, "JPEG", exif=exif, quality=95)
    small = cv2.resize(image, (640, 640 * image.shape[0] // image.shape[1]))
    portrait = np.ascontiguousarray(np.rot90(image))
    on_gpu = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).cuda()
    torch.cuda.synchronize()
    contents: list[FrameContent] = [
        turned.getvalue(),
        jpeg(image)[:-5000],
        cv2.imencode(".png", image)[1].tobytes(),
        jpeg(small),
        b"junk",
        jpeg(portrait),
        cv2.imencode(".webp", image)[1].tobytes(),
        DevicePicture(on_gpu, *image.shape[:2]),
    ]

    outcomes = submitted(open_pipeline(FP32), contents)

    assert [index for index, one in enumerate(outcomes) if isinstance(one, FrameFailure)] == [1, 4]
    assert outcomes[1].cause is DropCause.UNDECODABLE
    upright = [outcomes[index] for index in (0, 2, 6, 7)]
    assert all((one.height_px, one.width_px) == image.shape[:2] for one in upright)
    assert_same_people(upright[1:2], expected[:1], 1.0)
    assert_same_people(upright[3:4], expected[:1], 1.0)
    assert_same_people([upright[0], upright[2]], [expected[0]] * 2, 6.0)
    assert (outcomes[5].height_px, outcomes[5].width_px) == portrait.shape[:2]


def test_injected_out_of_memory_loses_no_frame(open_pipeline, people, expected) -> None:
    failures = [torch.OutOfMemoryError("CUDA out of memory."), None]

    def fault(stage: str, n_frames: int) -> None:
        if stage == "infer" and n_frames > 2 and failures:
            error = failures.pop()
            if error is not None:
                raise error

    pipeline = open_pipeline(FP32, fault)
    assert_same_people(submitted(pipeline, people), expected, 1.0)
    assert_same_people(submitted(pipeline, people), expected, 1.0)  # this one fails
    assert not failures
    assert pipeline.max_batch == len(people) // 2
    assert_same_people(submitted(pipeline, people[:2]), expected[:2], 1.0)


def test_real_lack_of_memory_is_survived(open_pipeline, people) -> None:
    pipeline = open_pipeline(FP16)
    file = jpeg(people[0])
    assert submitted(pipeline, [file])[0].poses is not None
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    allowed_bytes = torch.cuda.memory_reserved() + 60 * MIB
    torch.cuda.set_per_process_memory_fraction(allowed_bytes / total_bytes)
    try:
        outcomes = submitted(pipeline, [file] * 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(outcomes) == 64
    for outcome in outcomes:
        assert isinstance(outcome, FramePoses) or outcome.cause is DropCause.OVERLOAD
    assert pipeline.max_batch < 64
    assert isinstance(submitted(pipeline, [file])[0], FramePoses)


def test_limit_gives_memory_back(open_pipeline) -> None:
    pipeline = open_pipeline()
    pipeline.warm_up((1080, 1920), BUCKETS)
    before_bytes = torch.cuda.memory_reserved()
    pipeline.limit_batch(4)
    files = synthetic_jpegs(1, 1920, 1080)
    assert isinstance(submitted(pipeline, files * 4)[0], FramePoses)
    assert pipeline.max_batch == 4
    assert torch.cuda.memory_reserved() < before_bytes


def test_memory_does_not_grow(open_pipeline) -> None:
    pipeline = open_pipeline()
    files = synthetic_jpegs(2, 1920, 1080)
    sizes = (1, 4, 2, 8)
    for n_frames in sizes:
        submitted(pipeline, (files * 4)[:n_frames])
    torch.cuda.synchronize()
    before_bytes = torch.cuda.memory_allocated()
    futures = [
        pipeline.submit(
            [StreamFrame("s", i, 0.0, 0.0, files[i % 2]) for i in range(sizes[batch % 4])]
        )
        for batch in range(200)
    ]
    for future in futures:
        future.result(TIMEOUT_S)
    torch.cuda.synchronize()
    # Nothing but the last batch may still be let go of.
    assert torch.cuda.memory_allocated() <= before_bytes + 8 * 6 * MIB
