"""Which of the known machines is this, and what can it run: from NVML, with or without a GPU."""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.machines.gpus import gpu_machine, usual_reserved_bytes
from gpu_optimizer.machines.registry import (
    MachineEntry,
    default_machines_file,
    find_machine,
    load_machines,
)
from gpu_optimizer.types import Machine
from shared_utils.gpu import GpuReader, GpuSnapshot

_SAME_SIZE_RATIO: Final = 0.03
"""Drivers differ by so much in what they call the total memory of one card."""
_NO_CAPABILITY: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Host:
    """What a machine has for running models; None: it has none, or does not tell."""

    machine: str | None
    """Key in ``config/machines.yml``; None: not recognised."""
    gpu: str | None
    """As the driver names it."""
    vram_bytes: int | None
    compute_capability: tuple[int, int] | None
    pytorch_version: str | None
    cuda_version: str | None
    """Of the installed PyTorch; None: it is one for CPUs."""
    device: str
    """``cuda`` if PyTorch can use the GPU, else ``cpu``."""

    def as_document(self) -> dict[str, Any]:
        """Content of ``~/.ml_pipeline_gpu.json``."""
        capability = self.compute_capability
        return {
            "gpu": self.gpu,
            "vram_gb": None if self.vram_bytes is None else round(self.vram_bytes / 2**30, 2),
            "compute_capability": capability and f"{capability[0]}.{capability[1]}",
            "pytorch_version": self.pytorch_version,
            "cuda_version": self.cuda_version,
            "machine": self.machine,
            "device": self.device,
        }


def recognise(
    gpu: str, total_bytes: int | None, machines: Mapping[str, MachineEntry]
) -> str | None:
    """Return the machine with this GPU; None if none has it, or several have.

    Parameters
    ----------
    gpu
        As the driver names it, such as ``NVIDIA GeForce RTX 3070 Ti``.
    total_bytes
        As the driver reports it; None: not known, then the name decides.
    machines
        From `load_machines`.
    """
    wanted = _words(gpu)
    found = [
        key
        for key, entry in machines.items()
        if _words(entry.machine.gpu) == wanted and _same_size(entry.machine, total_bytes)
    ]
    return found[0] if len(found) == 1 else None


def this_gpu() -> Machine | None:
    """Machine with the GPU that CUDA would use here; None without one."""
    gpu = _first_gpu()
    if gpu is None or gpu.name is None:
        return None
    machines = load_machines(default_machines_file())
    key = recognise(gpu.name, gpu.total_bytes, machines)
    if key is not None:
        return find_machine(key, machines)
    try:
        return gpu_machine(gpu.name)
    except UnknownNameError:
        if gpu.total_bytes is None:
            return None
    reserved_bytes = usual_reserved_bytes(gpu.total_bytes)
    capability = _torch_facts()[2] or _NO_CAPABILITY
    return Machine(gpu.name, gpu.name, gpu.total_bytes, reserved_bytes, capability)


def detect_host(machines: Mapping[str, MachineEntry]) -> Host:
    """Tell what this machine has for running models; never fails for want of a GPU."""
    gpu = _first_gpu()
    cuda_version, usable, capability = _torch_facts()
    name = None if gpu is None else gpu.name
    if gpu is not None and name is not None and capability is None:
        capability = _known_capability(name, gpu.total_bytes, machines)
    return Host(
        machine=recognise(name, gpu.total_bytes, machines) if gpu and name else None,
        gpu=name,
        vram_bytes=None if gpu is None else gpu.total_bytes,
        compute_capability=capability,
        pytorch_version=_version("torch"),
        cuda_version=cuda_version,
        device="cuda" if gpu is not None and usable else "cpu",
    )


def _first_gpu() -> GpuSnapshot | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return None
    reader = GpuReader(0, visible)
    try:
        return reader.read()
    finally:
        reader.close()


def _torch_facts() -> tuple[str | None, bool, tuple[int, int] | None]:
    """CUDA version of PyTorch, whether it sees a GPU, and that one's compute capability."""
    if importlib.util.find_spec("torch") is None:
        return None, False, None
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return torch.version.cuda, False, None
    return torch.version.cuda, True, torch.cuda.get_device_capability(0)


def _known_capability(
    gpu: str, total_bytes: int | None, machines: Mapping[str, MachineEntry]
) -> tuple[int, int] | None:
    key = recognise(gpu, total_bytes, machines)
    try:
        return find_machine(key or gpu, machines).compute_capability
    except UnknownNameError:
        return None


def _words(name: str) -> frozenset[str]:
    """What of a card's name tells it from others, whoever wrote it."""
    spelled = name.lower().replace("mobile", "laptop").replace("-", " ")
    return frozenset(spelled.split()) - {"nvidia", "geforce", "tesla", "gpu"}


def _same_size(machine: Machine, total_bytes: int | None) -> bool:
    if total_bytes is None:
        return True
    return abs(total_bytes / machine.total_bytes - 1.0) <= _SAME_SIZE_RATIO


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
