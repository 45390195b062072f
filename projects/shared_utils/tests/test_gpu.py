from types import SimpleNamespace

import pynvml
import pytest

from shared_utils.gpu import (
    GpuActivity,
    GpuProcess,
    GpuReader,
    GpuSnapshot,
    read_activity,
    read_gpus,
)


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert read_gpus() == ()
    assert read_activity() == ()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the queries made to a driver with one GPU."""
    calls: list[str] = []
    for name, answer in {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=100, used=30),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=50, memory=25),
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetPowerUsage": 123_400,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7, usedGpuMemory=20)],
        "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=9, usedGpuMemory=None)],
    }.items():
        monkeypatch.setattr(
            pynvml, name, lambda *_, name=name, answer=answer: calls.append(name) or answer
        )
    return calls


def test_each_gpu_is_a_snapshot_and_nvml_is_shut_down(calls: list[str]) -> None:
    assert read_gpus() == (GpuSnapshot(0, "NVIDIA H200", 100, 30, "570.1"),)
    assert calls[-1] == "nvmlShutdown"


H200 = GpuSnapshot(0, "NVIDIA H200", 100, 30, "570.1")


def test_activity_is_told_with_the_programs_behind_it(calls: list[str]) -> None:
    programs = (GpuProcess(7, 20), GpuProcess(9, None))
    assert read_activity() == (GpuActivity(H200, 0.5, 0.25, 41.0, 123.4, programs),)
    assert calls[-1] == "nvmlShutdown"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("nvmlDeviceGetUtilizationRates", (None, None, 41.0, 123.4)),
        ("nvmlDeviceGetTemperature", (0.5, 0.25, None, 123.4)),
        ("nvmlDeviceGetPowerUsage", (0.5, 0.25, 41.0, None)),
    ],
)
def test_activity_the_driver_does_not_tell_is_none(
    monkeypatch: pytest.MonkeyPatch, query: str, expected: tuple[float | None, ...]
) -> None:
    def refuse(*_: object) -> None:
        raise pynvml.NVMLError_NotSupported

    monkeypatch.setattr(pynvml, query, refuse)
    (one,) = read_activity()
    found = one.utilisation_ratio, one.memory_utilisation_ratio, one.temperature_c, one.power_w
    assert found == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("nvmlDeviceGetMemoryInfo", (GpuSnapshot(0, "NVIDIA H200", None, None, "570.1"),)),
        ("nvmlDeviceGetName", (GpuSnapshot(0, None, 100, 30, "570.1"),)),
        ("nvmlDeviceGetHandleByIndex", (GpuSnapshot(0, None, None, None, "570.1"),)),
        ("nvmlSystemGetDriverVersion", (GpuSnapshot(0, "NVIDIA H200", 100, 30, None),)),
        ("nvmlDeviceGetCount", ()),
        ("nvmlShutdown", (GpuSnapshot(0, "NVIDIA H200", 100, 30, "570.1"),)),
    ],
)
def test_what_the_driver_does_not_tell_is_none(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    expected: tuple[GpuSnapshot, ...],
) -> None:
    def refuse(*_: object) -> None:
        calls.append(query)
        raise pynvml.NVMLError_NotSupported

    monkeypatch.setattr(pynvml, query, refuse)
    assert read_gpus() == expected
    assert calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize(
    ("cuda_index", "visible", "found"),
    [(0, None, True), (1, None, False), (0, "3", False), (1, "2,0", True), (0, "GPU-1a2b", True)],
)
def test_a_reader_counts_as_cuda_does(
    calls: list[str], cuda_index: int, visible: str | None, *, found: bool
) -> None:
    reader = GpuReader(cuda_index, visible)
    first, second = reader.read(), reader.read()
    assert (first is not None) is (second is not None) is found
    reader.close()
    assert calls.count("nvmlInit") == calls.count("nvmlShutdown") == 1


def test_a_reader_without_a_driver_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert GpuReader(0).read() is None


@pytest.mark.gpu
def test_a_real_gpu_has_memory() -> None:
    gpus = read_gpus()
    if not gpus:
        pytest.skip("no NVIDIA GPU here")
    assert all(
        gpu.total_bytes is None or 0 <= gpu.used_bytes <= gpu.total_bytes  # the two come together
        for gpu in gpus
    )
