"""The GPU pipeline: its bookkeeping with a made-up network on a CPU, its numbers on both."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog

torch = pytest.importorskip("torch", reason="needs the extra yolo")

from pose_analyzer.backends.gpu import yolo_tensorrt  # noqa: E402
from pose_analyzer.backends.gpu.detector import PipelineDetector  # noqa: E402
from pose_analyzer.backends.gpu.images import PictureDecoder  # noqa: E402
from pose_analyzer.backends.gpu.letterbox import Letterboxer  # noqa: E402
from pose_analyzer.backends.gpu.options import GpuOptions  # noqa: E402
from pose_analyzer.backends.gpu.people import DecodedHead  # noqa: E402
from pose_analyzer.backends.gpu.pipeline import (  # noqa: E402
    MAX_BATCHES,
    GpuFramePipeline,
    create_gpu_pipeline,
)
from pose_analyzer.backends.gpu.stages import DetectionStages, Fault  # noqa: E402
from pose_analyzer.backends.gpu.yolo_cuda_graph import EagerRunner  # noqa: E402
from pose_analyzer.backends.gpu.yolo_network import NetworkOptions, PoseNetwork  # noqa: E402
from pose_analyzer.backends.onnx import OnnxBackend, export_onnx  # noqa: E402
from pose_analyzer.errors import BackendFailedError  # noqa: E402
from pose_analyzer.ports import FramePipeline, PoseDetector  # noqa: E402
from pose_analyzer.pose_detector import YOLOPoseDetector  # noqa: E402
from pose_analyzer.stream_types import (  # noqa: E402
    DropCause,
    FrameContent,
    FrameOutcome,
    StreamFrame,
)

CPU = torch.device("cpu")
TIMEOUT_S = 120.0
ON_CPU = GpuOptions(device="cpu", warm_hw=None, measure_batch=0)


def brightness_network(images: torch.Tensor) -> torch.Tensor:
    """One person in every image, as far to the right as the image is bright."""
    output = torch.zeros((len(images), 56, 21))
    output[:, 0, 0] = images.mean(dim=(1, 2, 3)) * 255
    output[:, 1:4, 0] = torch.tensor([40.0, 20.0, 20.0])
    output[:, 4, 0] = 0.9
    return output


@pytest.fixture
def open_pipeline() -> Iterator:
    """Makes pipelines around the made-up network."""
    made = []

    def open_(fault: Fault | None = None, max_batch: int = 8) -> GpuFramePipeline:
        network = PoseNetwork(brightness_network, DecodedHead(), NetworkOptions(CPU))
        stages = DetectionStages(
            EagerRunner(network), PictureDecoder(CPU, 10**6), Letterboxer(), fault
        )
        made.append(GpuFramePipeline("made-up", stages, max_batch=max_batch))
        return made[-1]

    yield open_
    for pipeline in made:
        pipeline.close()


def grey_frames(levels: Sequence[int]) -> list[StreamFrame]:
    """Pictures that go through the network as they are."""
    return [
        StreamFrame("s", index, float(index), 0.0, np.full((640, 640, 3), level, np.uint8))
        for index, level in enumerate(levels)
    ]


def levels_of(outcomes: Sequence[FrameOutcome]) -> list[int]:
    # The left edge may be cut off.
    return [round(one.poses[0].box_px[2] - 10) for one in outcomes]


def submitted(pipeline: FramePipeline, contents: Sequence[FrameContent]) -> list[FrameOutcome]:
    frames = [StreamFrame("s", i, float(i), 0.0, content) for i, content in enumerate(contents)]
    return pipeline.submit(frames).result(TIMEOUT_S)


def test_batches_are_answered_in_order(open_pipeline) -> None:
    pipeline = open_pipeline()
    assert isinstance(pipeline, FramePipeline)
    done: list[int] = []
    futures = []
    for batch in range(6):
        futures.append(pipeline.submit(grey_frames([10 * batch + k for k in range(4)])))
        futures[-1].add_done_callback(lambda _, batch=batch: done.append(batch))

    answers = [levels_of(future.result(TIMEOUT_S)) for future in futures]

    assert answers == [[10 * batch + k for k in range(4)] for batch in range(6)]
    assert done == list(range(6))


def test_a_lone_batch_is_inferred_by_the_thread_that_decodes(open_pipeline) -> None:
    threads: dict[str, set[str]] = {"decode": set(), "infer": set()}

    def note(stage: str, n_frames: int) -> None:
        threads[stage].add(threading.current_thread().name)

    pipeline = open_pipeline(note)
    for _ in range(3):
        pipeline.submit(grey_frames([1])).result(TIMEOUT_S)
    assert threads == {"decode": {"detector-decode"}, "infer": {"detector-decode"}}


def test_stages_are_timed(open_pipeline) -> None:
    [outcome] = open_pipeline().submit(grey_frames([7])).result(TIMEOUT_S)
    assert (outcome.width_px, outcome.height_px) == (640, 640)
    assert min(outcome.decode_s, outcome.infer_s, outcome.postprocess_s) > 0


def test_bad_pictures_do_not_harm_the_others(open_pipeline) -> None:
    good = np.full((640, 640, 3), 50, np.uint8)
    data = cv2.imencode(".jpg", good)[1].tobytes()
    too_large = cv2.imencode(".jpg", np.zeros((1100, 1000), np.uint8))[1].tobytes()

    outcomes = submitted(open_pipeline(), [good, b"junk", data, data[:300], too_large])

    assert levels_of([outcomes[0], outcomes[2]]) == [50, 50]
    for index in (1, 3, 4):
        assert outcomes[index].cause is DropCause.UNDECODABLE
        assert outcomes[index].detail
    assert [one.cause for one in submitted(open_pipeline(), [b"", b"junk"])] == [
        DropCause.UNDECODABLE
    ] * 2


def test_people_in_a_region_have_coordinates_of_the_whole_picture(open_pipeline) -> None:
    picture = np.full((1000, 800, 3), 255, np.uint8)
    picture[300:, 100:] = 90
    region = StreamFrame("s", 0, 0.0, 0.0, picture[:940, :740].copy(), None)
    region = replace(region, roi=(100 / 740, 300 / 940, 1.0, 1.0))

    [outcome] = open_pipeline().submit([region]).result(TIMEOUT_S)

    assert (outcome.width_px, outcome.height_px) == (740, 940)
    np.testing.assert_allclose(outcome.poses[0].box_px, [180, 330, 200, 350], atol=0.01)


def test_idle_means_one_more_batch_would_begin_at_once(open_pipeline) -> None:
    go_on = {"decode": threading.Event(), "infer": threading.Event()}
    reached = threading.Semaphore(0)
    told = threading.Semaphore(0)

    def wait(stage: str, n_frames: int) -> None:
        reached.release()
        assert go_on[stage].wait(TIMEOUT_S)

    pipeline = open_pipeline(wait)
    pipeline.on_idle(told.release)
    assert pipeline.n_idle() == 1
    futures = [pipeline.submit(grey_frames([n])) for n in range(MAX_BATCHES - 1)]
    assert reached.acquire(timeout=TIMEOUT_S)
    assert pipeline.n_idle() == 0
    go_on["decode"].set()
    assert told.acquire(timeout=TIMEOUT_S)
    assert pipeline.n_idle() == 1
    futures.append(pipeline.submit(grey_frames([2])))
    assert reached.acquire(timeout=TIMEOUT_S)
    assert pipeline.n_idle() == 0  # however many of them are decoded by now
    go_on["infer"].set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert told.acquire(timeout=TIMEOUT_S)
    assert pipeline.n_idle() == 1


def out_of_memory_above(n_fit: int, stage: str) -> Fault:
    def fault(at: str, n_frames: int) -> None:
        if at == stage and n_frames > n_fit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return fault


@pytest.mark.parametrize("stage", ["decode", "infer"])
@pytest.mark.parametrize(("n_fit", "max_batch"), [(1, 1), (2, 2), (3, 3), (7, 4)])
def test_a_batch_that_does_not_fit_is_done_in_parts(
    open_pipeline, stage: str, n_fit: int, max_batch: int
) -> None:
    pipeline = open_pipeline(out_of_memory_above(n_fit, stage))

    with structlog.testing.capture_logs() as logs:
        outcomes = pipeline.submit(grey_frames(range(8))).result(TIMEOUT_S)

    assert levels_of(outcomes) == list(range(8))
    assert pipeline.max_batch <= max_batch
    assert logs[0]["event"] == "out_of_gpu_memory"
    assert levels_of(pipeline.submit(grey_frames([5])).result(TIMEOUT_S)) == [5]


def test_frames_that_do_not_fit_alone_are_overload(open_pipeline) -> None:
    fits = [0]

    def fault(stage: str, n_frames: int) -> None:
        out_of_memory_above(fits[0], "infer")(stage, n_frames)

    pipeline = open_pipeline(fault)
    outcomes = pipeline.submit(grey_frames(range(3))).result(TIMEOUT_S)
    assert [one.cause for one in outcomes] == [DropCause.OVERLOAD] * 3
    assert pipeline.max_batch == 1
    fits[0] = 8
    assert levels_of(pipeline.submit(grey_frames([1, 2])).result(TIMEOUT_S)) == [1, 2]


def test_a_broken_detector_is_an_error_of_its_batch_only(open_pipeline) -> None:
    broken = [True]

    def fault(stage: str, n_frames: int) -> None:
        if broken[0] and stage == "infer":
            raise ValueError("something broke")

    pipeline = open_pipeline(fault)
    with structlog.testing.capture_logs(), pytest.raises(BackendFailedError, match="broke"):
        pipeline.submit(grey_frames([1])).result(TIMEOUT_S)
    broken[0] = False
    assert levels_of(pipeline.submit(grey_frames([3])).result(TIMEOUT_S)) == [3]


def test_limit_is_obeyed_and_lifted(open_pipeline) -> None:
    pipeline = open_pipeline()
    for limit, expected in ((2, 2), (0, 1), (100, 8)):
        pipeline.limit_batch(limit)
        assert pipeline.max_batch == expected
    assert levels_of(pipeline.submit(grey_frames([1])).result(TIMEOUT_S)) == [1]


def test_closing_finishes_what_is_in_progress(open_pipeline) -> None:
    pipeline = open_pipeline()
    futures = [pipeline.submit(grey_frames([level])) for level in range(4)]
    pipeline.close()
    assert [levels_of(future.result(0)) for future in futures] == [[0], [1], [2], [3]]
    with pytest.raises(BackendFailedError, match="closed"):
        pipeline.submit(grey_frames([1])).result(0)


def test_recordings_are_looked_at_as_live_streams_are(open_pipeline) -> None:
    frames = grey_frames([50, 90])
    live = [open_pipeline().submit([frame]).result(TIMEOUT_S)[0] for frame in frames]
    recorded: PoseDetector = PipelineDetector(open_pipeline())
    found = recorded.detect([frame.content for frame in frames], [0.0, 1.0])
    for poses, outcome in zip(found, live, strict=True):
        np.testing.assert_array_equal(poses[0].keypoints_px, outcome.poses[0].keypoints_px)
        np.testing.assert_array_equal(poses[0].box_px, outcome.poses[0].box_px)
    assert PipelineDetector(open_pipeline(), n_people=0).detect([frames[0].content]) == [[]]


def test_a_recorded_picture_without_memory_is_an_error(open_pipeline) -> None:
    def fault(stage: str, n_frames: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(BackendFailedError, match="no GPU memory"):
        PipelineDetector(open_pipeline(fault)).detect([grey_frames([50])[0].content])


def test_rate_is_measured(open_pipeline) -> None:
    pipeline = open_pipeline()
    assert pipeline.frames_per_second() == 0
    # Pictures of 1920x1080 are above this pipeline's limit; refusing them takes time, too.
    pipeline.calibrate(2)
    assert pipeline.frames_per_second() > 0


def video_frames(path: Path, n_frames: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(15 * n_frames)]
    return frames[::15]


@pytest.mark.shared_data
@pytest.mark.slow
def test_people_equal_those_of_the_cpu_path(shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "models" / "yolo11n-pose.pt"
    export_onnx(weights, tmp_path / "n.onnx", tmp_path)
    images = video_frames(shared_data / "videos" / "jumpingjack_front_720p30.mp4", 2)
    images += video_frames(shared_data / "videos" / "squat_air_34view_360p24.mp4", 1)
    expected = YOLOPoseDetector(OnnxBackend(tmp_path / "n.onnx"), confidence=0.25).detect(images)
    with structlog.testing.capture_logs() as logs:
        pipeline = create_gpu_pipeline(weights, "yolo11n-pose", tmp_path, ON_CPU)

    found = submitted(pipeline, images)
    pipeline.close()

    assert [(one["engine"], one["event"]) for one in logs] == [
        ("cuda_graph", "engine_unavailable"),
        ("eager", "detector_opened"),
    ]
    for outcome, poses in zip(found, expected, strict=True):
        assert len(outcome.poses) == len(poses)
        for pose, other in zip(poses, outcome.poses, strict=True):
            np.testing.assert_allclose(other.keypoints_px, pose.keypoints_px, atol=1.0)
            np.testing.assert_allclose(other.confidences, pose.confidences, atol=0.01)


def test_reason_for_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert yolo_tensorrt.tensorrt_missing() == "no CUDA device is available"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(yolo_tensorrt.importlib.util, "find_spec", lambda name: None)
    assert yolo_tensorrt.tensorrt_missing() == "the package tensorrt is missing"


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with structlog.testing.capture_logs(), pytest.raises(BackendFailedError, match="not exist"):
        create_gpu_pipeline(tmp_path / "none.pt", "none", tmp_path, ON_CPU)
