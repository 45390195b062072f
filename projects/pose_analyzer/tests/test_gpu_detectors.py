"""The CUDA path of the YOLO detector against the CPU path."""

import numpy as np
import pytest

from pose_analyzer.backends.yolo_torch import TorchBackend
from pose_analyzer.pose_detector import YOLOPoseDetector

torch = pytest.importorskip("torch", reason="needs the extra yolo")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 384, 640), dtype=np.float32)


def test_single_precision_equals_the_cpu(weights, batch, tmp_path, monkeypatch):
    # On noise, which this is, TF32 moves boxes by pixels.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = TorchBackend(weights, tmp_path)
    on_gpu = TorchBackend(weights, tmp_path, device="cuda:0")
    assert on_gpu.device == "cuda:0"
    expected, found = on_cpu.infer(batch), on_gpu.infer(batch)
    assert found.shape == expected.shape
    # Boxes and keypoints in pixels, the score as a fraction.
    assert np.abs(found - expected).max() < 0.5
    assert np.abs(found[:, 4] - expected[:, 4]).max() < 0.01


def test_half_precision_is_close(weights, batch, tmp_path):
    full = TorchBackend(weights, tmp_path, device="cuda:0").infer(batch)
    half = TorchBackend(weights, tmp_path, device="cuda:0", half=True).infer(batch)
    assert np.isfinite(half).all()
    assert np.abs(half[:, 4] - full[:, 4]).max() < 0.05


def test_detects_through_the_same_interface(weights, tmp_path):
    detector = YOLOPoseDetector(TorchBackend(weights, tmp_path, device="cuda:0"))
    grey = np.full((480, 640, 3), 114, dtype=np.uint8)
    assert detector.detect([grey, grey]) == [[], []]
    detector.close()
