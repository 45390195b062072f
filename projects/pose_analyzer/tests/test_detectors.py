"""What every detector must do, and what only the real networks can show."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pose_analyzer.backends import (
    DETECTOR_NAMES,
    OnnxBackend,
    check_detector,
    create_chunk_detector,
    create_detector,
    export_onnx,
    factory,
)
from pose_analyzer.errors import BackendFailedError, ModelUnavailableError, UnknownNameError
from pose_analyzer.ports import ChunkDetector, PoseDetector
from pose_analyzer.pose_detector import YOLOPoseDetector
from pose_analyzer.settings import Settings

from .builders import pictures_without_people

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def write_onnx(path: Path, input_shape: list[int | str], output_shape: list[int]) -> Path:
    """A network that finds one person in the middle of any image."""
    raw = np.zeros(output_shape, np.float32)
    raw[0, :5, 0] = 320, 192, 100, 200, 0.9
    raw[0, 5:, 0] = 300
    raw[0, 7::3, 0] = 0.8
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, input_shape)
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    constant = helper.make_tensor("raw", TensorProto.FLOAT, output_shape, raw.ravel())
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 1])
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Slice", ["images", "first", "one", "one"], ["red"]),
        helper.make_node("ReduceMean", ["red", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("Mul", ["column", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "raw"], ["output0"]),
    ]
    weights = [constant, zero, axes, shape, first, one]
    graph = helper.make_graph(nodes, "one_person", [images], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def data_settings(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        model_path=(shared_data / "models",),
        model_dir=tmp_path_factory.mktemp("models"),
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture
def no_models(tmp_path: Path) -> Settings:
    return Settings(model_path=(), model_dir=tmp_path / "models", cache_dir=tmp_path / "cache")


@pytest.fixture(
    params=[
        "onnx",
        pytest.param("yolo", marks=pytest.mark.shared_data),
        pytest.param("mediapipe", marks=pytest.mark.shared_data),
        pytest.param("mediapipe, 2 people", marks=pytest.mark.shared_data),
    ]
)
def detector(request: pytest.FixtureRequest, tmp_path: Path):
    """Every kind of detector, for single images."""
    if request.param == "onnx":
        path = write_onnx(tmp_path / "own.onnx", ["n", 3, "h", "w"], [1, 56, 21])
        made = YOLOPoseDetector(OnnxBackend(path))
    else:
        name, _, people = request.param.partition(", ")
        settings = request.getfixturevalue("data_settings")
        made = create_detector(name, settings, mode="image", n_people=2 if people else None)
    yield made
    made.close()


class TestEveryDetector:
    """Conformance to `ports.PoseDetector`."""

    def test_it_is_one(self, detector: PoseDetector) -> None:
        assert isinstance(detector, PoseDetector)
        assert detector.name
        assert detector.device in ("cpu", "cuda:0")

    def test_no_images(self, detector: PoseDetector) -> None:
        assert detector.detect([]) == []

    def test_poses_are_well_formed(self, detector: PoseDetector, images: list[np.ndarray]) -> None:
        people = detector.detect(images)
        assert len(people) == len(images)
        for image, found in zip(images, people, strict=True):
            height, width = image.shape[:2]
            scores = [pose.score for pose in found]
            assert scores == sorted(scores, reverse=True)
            for pose in found:
                assert np.isfinite(pose.keypoints_px).all()
                assert ((pose.confidences >= 0) & (pose.confidences <= 1)).all()
                assert 0 <= pose.score <= 1
                x0, y0, x1, y1 = pose.box_px
                assert 0 <= x0 <= x1 <= width
                assert 0 <= y0 <= y1 <= height

    def test_images_are_independent(self, detector: PoseDetector, images: list[np.ndarray]) -> None:
        together = detector.detect(images)
        for image, found in zip(images, together, strict=True):
            [alone] = detector.detect([image])
            assert len(alone) == len(found)
            for one, other in zip(alone, found, strict=True):
                np.testing.assert_allclose(one.keypoints_px, other.keypoints_px, atol=1e-2)

    def test_a_view_into_a_larger_image(
        self, detector: PoseDetector, images: list[np.ndarray]
    ) -> None:
        crop = images[0][4:-3, 5:-6]
        [in_view], [in_copy] = detector.detect([crop]), detector.detect([crop.copy()])
        assert [p.box_px.tolist() for p in in_view] == [p.box_px.tolist() for p in in_copy]


@pytest.fixture
def images() -> list[np.ndarray]:
    return pictures_without_people()


@pytest.mark.shared_data
def test_library_parity(shared_data: Path, tmp_path: Path) -> None:
    """The figures of docs/reports/detector_parity.md stay within what is required."""
    spec = importlib.util.spec_from_file_location("parity", BENCHMARKS / "detector_parity.py")
    assert spec is not None
    assert spec.loader is not None
    parity = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = parity  # dataclasses look their module up
    spec.loader.exec_module(parity)
    for comparison in parity.compare_all(shared_data, tmp_path):
        yolo = "yolo" in comparison.ours
        assert comparison.n_frames == 50
        assert comparison.n_people >= 40
        assert comparison.n_frames_with_other_count == 0
        assert comparison.deviations[parity.KEYPOINTS][0] <= (1.0 if yolo else 0.0)
        assert comparison.deviations[parity.CONFIDENCES][0] <= (0.01 if yolo else 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tracing a network warns about its code
def test_both_heads_of_yolo26_equal_ultralytics(
    ultralytics: ModuleType, tmp_path: Path, images: list[np.ndarray]
) -> None:
    """Untrained weights show that their outputs are read as Ultralytics reads them."""
    import torch

    from pose_analyzer.backends.yolo_torch import TorchBackend

    torch.manual_seed(0)
    config = Path(ultralytics.__file__).parent / "cfg/models/26/yolo26-pose.yaml"
    (tmp_path / "yolo26-pose.yaml").write_text(config.read_text().replace("nc: 80", "nc: 1"))
    model = ultralytics.YOLO(tmp_path / "yolo26n-pose.yaml")
    for name, parameter in model.model.named_parameters():
        # As initialised, an image leaves no trace in the output and all scores are near 0.
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, a=0.3)
        elif "cv3" in name and name.endswith(".2.bias"):
            torch.nn.init.zeros_(parameter)
    weights = tmp_path / "own26n-pose.pt"
    model.save(weights)
    export_onnx(weights, tmp_path / "own.onnx", tmp_path)
    end_to_end = ultralytics.YOLO(weights).export(
        format="onnx", dynamic=True, simplify=False, nms=False, verbose=False
    )
    for backend, nms in [
        (OnnxBackend(tmp_path / "own.onnx"), None),
        (TorchBackend(weights, tmp_path), None),
        (OnnxBackend(Path(end_to_end)), False),
    ]:
        result = ultralytics.YOLO(weights).predict(
            images[0], conf=0.05, iou=0.45, nms=nms, device="cpu", verbose=False
        )[0]
        [poses] = YOLOPoseDetector(backend, confidence=0.05).detect([images[0]])
        assert len(poses) == len(result) > 20
        np.testing.assert_allclose(
            [pose.score for pose in poses], result.boxes.conf.numpy(), atol=1e-3
        )
        np.testing.assert_allclose(
            np.stack([pose.keypoints_px for pose in poses[:10]]),
            result.keypoints.xy.numpy()[:10],
            atol=0.05,
        )


def test_damaged_network(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(BackendFailedError, match="cannot read"):
        OnnxBackend(path)


@pytest.mark.parametrize("axes", [[2, 3], [0, 2], []], ids=["classes", "one for all", "images"])
def test_network_that_is_no_pose_network(tmp_path: Path, axes: list[int]) -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    weights = [helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)]
    mean = helper.make_node(
        "ReduceMean", ["images", "axes"], ["output"], keepdims=0, noop_with_empty_axes=1
    )
    graph = helper.make_graph([mean], "classifier", [images], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "classifier.onnx")
    detector = YOLOPoseDetector(OnnxBackend(tmp_path / "classifier.onnx"))
    with pytest.raises(BackendFailedError, match=r"classifier.*not a pose network.*shape"):
        detector.detect([np.zeros((64, 64, 3), np.uint8)] * 2)


def test_network_of_one_size_and_batch(no_models: Settings, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "fixed.onnx", [1, 3, 384, 640], [1, 56, 21])
    detector = create_detector(str(path), no_models)
    wide, small = np.zeros((720, 1280, 3), np.uint8), np.zeros((100, 100, 3), np.uint8)

    people = detector.detect([wide, small, wide])

    assert detector.name == "fixed"
    assert [len(found) for found in people] == [1, 1, 1]
    np.testing.assert_allclose(people[2][0].box_px, [540, 160, 740, 560], atol=1e-3)


def test_detectors_for_chunks_can_be_told_to_forget(no_models: Settings, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "person.onnx", ["n", 3, "h", "w"], [1, 56, 21])
    detector = create_chunk_detector(str(path), no_models)
    assert isinstance(detector, ChunkDetector)
    image = np.full((48, 64, 3), 100, np.uint8)
    [first], _ = detector.detect([image], [3.0]), detector.restart()
    [again] = detector.detect([image], [0.0])
    np.testing.assert_array_equal(first[0].keypoints_px, again[0].keypoints_px)
    detector.close()
    with pytest.raises(UnknownNameError):
        create_chunk_detector("openpose", no_models)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mediapipe", "mediapipe-lite"])
def test_mediapipe_for_chunks_forgets_at_fixed_times(name: str, data_settings: Settings) -> None:
    detector = create_chunk_detector(name, data_settings)
    assert isinstance(detector, ChunkDetector)
    images = pictures_without_people()[1:2] * 3
    assert detector.detect(images, [4.9, 5.0, 5.1]) == [[], [], []]
    detector.restart()
    assert detector.detect(images[:1], [0.3]) == [[]]
    detector.close()


class TestNames:
    """From a name to a detector."""

    def test_unknown(self, no_models: Settings) -> None:
        with pytest.raises(UnknownNameError):
            check_detector("openpose")
        for name in (*DETECTOR_NAMES, "/srv/own-pose.onnx"):
            check_detector(name)
        with pytest.raises(UnknownNameError) as caught:
            create_detector("openpose", no_models)
        assert caught.value.known == DETECTOR_NAMES
        assert {"auto", "yolo", "mediapipe", "yolo26x-pose"} <= set(DETECTOR_NAMES)

    @pytest.mark.parametrize("name", ["missing.pt", "missing.onnx"])
    def test_missing_file(self, no_models: Settings, name: str) -> None:
        with pytest.raises(ModelUnavailableError, match="no such file"):
            create_detector(name, no_models)

    def test_weights_without_ultralytics(
        self, no_models: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ultralytics", None)
        (tmp_path / "own-pose.pt").write_bytes(b"weights")
        with pytest.raises(BackendFailedError, match="extra `yolo`"):
            create_detector(str(tmp_path / "own-pose.pt"), no_models)
        assert list((no_models.cache_dir / "onnx").iterdir()) == []

    @pytest.mark.slow
    def test_damaged_weights(
        self, ultralytics: ModuleType, no_models: Settings, tmp_path: Path
    ) -> None:
        (tmp_path / "own-pose.pt").write_bytes(b"weights")
        with pytest.raises(BackendFailedError, match="cannot read"):
            create_detector(str(tmp_path / "own-pose.pt"), no_models)

    @pytest.mark.shared_data
    def test_auto_is_yolo_where_it_can_run(
        self, data_settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Exported by now or exported here; afterwards Ultralytics is not needed any more.
        create_detector("yolo", data_settings).close()
        monkeypatch.setitem(sys.modules, "ultralytics", None)
        detector = create_detector("auto", data_settings)
        assert detector.name == "yolo11n-pose"
        detector.close()

    @pytest.mark.shared_data
    def test_auto_is_mediapipe_elsewhere(
        self, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ultralytics", None)
        settings = Settings(
            model_path=(shared_data / "models",), model_dir=tmp_path, cache_dir=tmp_path
        )
        detector = create_detector("auto", settings)
        assert detector.name == "mediapipe-full"
        detector.close()

    def test_auto_downloads_no_yolo_weights(
        self, no_models: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def fetch(name: str, settings: Settings, progress: object) -> Path:
            asked.append(name)
            raise ModelUnavailableError(name, "Offline.")

        monkeypatch.setattr(factory, "fetch_model", fetch)
        with pytest.raises(ModelUnavailableError):
            create_detector("auto", no_models)
        assert asked == ["mediapipe-full"]
