"""Facts about NVIDIA GPUs. This is the only module that talks to NVML."""

from dataclasses import dataclass

import pynvml


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One GPU at one moment."""

    index: int
    """As NVML counts; CUDA_VISIBLE_DEVICES does not change it."""
    name: str
    total_bytes: int
    used_bytes: int
    """By all processes, not only this one."""
    driver_version: str


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
        driver_version = pynvml.nvmlSystemGetDriverVersion()
        return tuple(
            _snapshot(index, driver_version) for index in range(pynvml.nvmlDeviceGetCount())
        )
    finally:
        pynvml.nvmlShutdown()


def _snapshot(index: int, driver_version: str) -> GpuSnapshot:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuSnapshot(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        driver_version=driver_version,
    )
