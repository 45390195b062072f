"""Facts about NVIDIA GPUs. This is the only module that talks to NVML."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One GPU at one moment; None is what its driver does not tell."""

    index: int
    """As NVML counts; CUDA_VISIBLE_DEVICES does not change it."""
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    """By all processes, not only this one."""
    driver_version: str | None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A program that uses a GPU."""

    pid: int
    used_bytes: int | None
    """None where the driver does not tell, as in most containers."""


@dataclass(frozen=True, slots=True)
class GpuActivity:
    """What one GPU is doing; None is what its driver does not tell."""

    gpu: GpuSnapshot
    utilisation_ratio: float | None
    """Part of the last moment in which a kernel ran."""
    memory_utilisation_ratio: float | None
    """Part of the last moment in which memory was read or written."""
    temperature_c: float | None
    power_w: float | None
    processes: tuple[GpuProcess, ...]


def read_activity() -> tuple[GpuActivity, ...]:
    """What are the GPUs doing, and for whom; empty without an NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver_version = _ask(pynvml.nvmlSystemGetDriverVersion)
        n_gpus = _ask(pynvml.nvmlDeviceGetCount) or 0
        return tuple(_activity(index, driver_version) for index in range(n_gpus))
    finally:
        _ask(pynvml.nvmlShutdown)


def read_gpus() -> tuple[GpuSnapshot, ...]:
    """Which GPUs are there and how full are they.

    Returns
    -------
    tuple of GpuSnapshot
        Empty on a machine without an NVIDIA driver, which is a normal machine.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver_version = _ask(pynvml.nvmlSystemGetDriverVersion)
        n_gpus = _ask(pynvml.nvmlDeviceGetCount) or 0
        return tuple(_snapshot(index, driver_version) for index in range(n_gpus))
    finally:
        _ask(pynvml.nvmlShutdown)


class GpuReader:
    """Reads one GPU again and again; NVML stays open in between, which makes a reading quick.

    Parameters
    ----------
    cuda_index
        As CUDA counts, that is among the GPUs that ``CUDA_VISIBLE_DEVICES`` names.
    visible_devices
        Value of that variable; only lists of numbers are followed.
    """

    def __init__(self, cuda_index: int, visible_devices: str | None = None) -> None:
        visible = (visible_devices or "").split(",")
        numbers = [int(part) for part in visible if part.strip().isdecimal()]
        self._index = numbers[cuda_index] if cuda_index < len(numbers) else cuda_index
        self._open = False

    def read(self) -> GpuSnapshot | None:
        """Facts of this moment; None where there is no such GPU."""
        if not self._open:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return None
            self._open = True
        if self._index >= (_ask(pynvml.nvmlDeviceGetCount) or 0):
            return None
        return _snapshot(self._index, _ask(pynvml.nvmlSystemGetDriverVersion))

    def close(self) -> None:
        """Let NVML go."""
        if self._open:
            _ask(pynvml.nvmlShutdown)
            self._open = False


def _snapshot(index: int, driver_version: str | None) -> GpuSnapshot:
    handle = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return GpuSnapshot(index, None, None, None, driver_version)
    # Not supported where the GPU shares the system's memory.
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuSnapshot(
        index=index,
        name=_ask(pynvml.nvmlDeviceGetName, handle),
        total_bytes=None if memory is None else int(memory.total),
        used_bytes=None if memory is None else int(memory.used),
        driver_version=driver_version,
    )


def _activity(index: int, driver_version: str | None) -> GpuActivity:
    snapshot = _snapshot(index, driver_version)
    handle = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return GpuActivity(snapshot, None, None, None, None, ())
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    temperature_c = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    programs = [
        *(_ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()),
        *(_ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or ()),
    ]
    used = {program.pid: program.usedGpuMemory for program in programs}
    return GpuActivity(
        gpu=snapshot,
        utilisation_ratio=None if rates is None else rates.gpu / 100.0,
        memory_utilisation_ratio=None if rates is None else rates.memory / 100.0,
        temperature_c=None if temperature_c is None else float(temperature_c),
        power_w=None if power_mw is None else power_mw / 1000.0,
        processes=tuple(GpuProcess(pid, used_bytes) for pid, used_bytes in used.items()),
    )


def _ask(query: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - untyped library
    """Answer of NVML; None where this driver or GPU has none."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
