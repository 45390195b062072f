"""What the service takes of the machine: processor time, memory, GPU memory; and the machine."""

import contextlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml

from shared_utils.gpu import GpuReader

_PACKAGES = (
    "pose-analyzer",
    "torch",
    "torchvision",
    "ultralytics",
    "mediapipe",
    "onnxruntime",
    "opencv-python-headless",
    "uvicorn",
    "uvloop",
    "websockets",
)


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """The service's processes at one moment."""

    main_cpu_s: float
    """Processor time of the main process so far, of all its threads."""
    main_kernel_cpu_s: float
    """What of it was spent in the kernel."""
    loop_cpu_s: float
    """What of it was spent in its first thread, where the event loop runs."""
    all_cpu_s: float
    """The main process with its children."""
    rss_bytes: int
    """Resident memory of all; pages they share count once per process."""
    n_processes: int
    n_threads: int


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The first GPU at one moment."""

    used_bytes: int
    """By everything that runs on it."""
    service_bytes: int | None
    """By the service's processes; None where the driver does not tell, as in many containers."""


def read_processes(pid: int) -> ProcessReading:
    """Add up a process and its children."""
    main = psutil.Process(pid)
    cpu_s, rss_bytes, n_processes, n_threads = 0.0, 0, 0, 0
    for process in (main, *main.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            cpu_s += _cpu_s(process)
            rss_bytes += process.memory_info().rss
            n_threads += process.num_threads()
            n_processes += 1
    loop_cpu_s = sum(t.user_time + t.system_time for t in main.threads() if t.id == pid)
    return ProcessReading(
        main_cpu_s=_cpu_s(main),
        main_kernel_cpu_s=main.cpu_times().system,
        loop_cpu_s=loop_cpu_s,
        all_cpu_s=cpu_s,
        rss_bytes=rss_bytes,
        n_processes=n_processes,
        n_threads=n_threads,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def read_gpu(reader: GpuReader, pid: int | None) -> GpuReading | None:
    """What is taken of a GPU, by all and by a process and its children; None without a GPU."""
    snapshot = reader.read()
    if snapshot is None or snapshot.used_bytes is None:
        return None
    service_bytes = None if pid is None else _process_bytes(snapshot.index, pid)
    return GpuReading(snapshot.used_bytes, service_bytes)


def _process_bytes(index: int, pid: int) -> int | None:
    main = psutil.Process(pid)
    pids = {pid, *(child.pid for child in main.children(recursive=True))}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    taken = [int(p.usedGpuMemory) for p in running if p.pid in pids and p.usedGpuMemory]
    return sum(taken) if taken else None


def gpu_reader() -> GpuReader:
    """Reads the first GPU that CUDA shows."""
    return GpuReader(0, os.environ.get("CUDA_VISIBLE_DEVICES"))


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU and versions."""
    with contextlib.closing(gpu_reader()) as reader:
        gpu = reader.read()
    return {
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": None if gpu is None else gpu.name,
        "gpu_driver": None if gpu is None else gpu.driver_version,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
