from types import SimpleNamespace

import pynvml
import pytest

from shared_utils.gpu import GpuSnapshot, read_gpus


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert read_gpus() == ()


def test_each_gpu_is_a_snapshot_and_nvml_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name, answer in {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=100, used=30),
    }.items():
        monkeypatch.setattr(
            pynvml, name, lambda *_, name=name, answer=answer: calls.append(name) or answer
        )
    assert read_gpus() == (GpuSnapshot(0, "NVIDIA H200", 100, 30, "570.1"),)
    assert calls[-1] == "nvmlShutdown"


@pytest.mark.gpu
def test_a_real_gpu_has_memory() -> None:
    gpus = read_gpus()
    if not gpus:
        pytest.skip("no NVIDIA GPU here")
    assert all(0 <= gpu.used_bytes <= gpu.total_bytes for gpu in gpus)
