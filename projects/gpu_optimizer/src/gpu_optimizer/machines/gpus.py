"""Facts about GPUs by name, so that a card need not be there to ask whether something fits it."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.types import Machine

_MIN_RESERVED_BYTES: Final = 512 << 20
_RESERVED_RATIO: Final = 0.01
"""Total as the driver reports it less what CUDA offers: 348 MiB on an RTX 3070 Ti, 454 MiB on an
RTX 4090, 482 MiB on an RTX 5070 Ti; on cards of 80 GB about one percent."""
_MAKER: Final = re.compile(r"nvidia|geforce|tesla|gpu|[^a-z0-9]")


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One kind of GPU."""

    name: str
    total_bytes: int
    """As the driver reports it."""
    compute_capability: tuple[int, int]
    measured: bool
    """Whether the size was read off a driver's report; else it is the maker's figure."""


def known_gpus() -> tuple[GpuFacts, ...]:
    """All kinds of GPU that are known by name, smallest first."""
    return tuple(sorted(_table()[0], key=lambda gpu: (gpu.total_bytes, gpu.name)))


def find_gpu(name: str) -> GpuFacts:
    """GPU by its name, as people or the driver write it.

    Case, spaces, dashes and the maker's names do not matter. Where a name stands for several
    sizes, as in "A100", it means the smallest.

    Raises
    ------
    UnknownNameError
        If no GPU has this name.
    """
    by_name = _table()[1]
    found = by_name.get(_normal(name))
    if found is None:
        raise UnknownNameError("GPU", name[:64], tuple(gpu.name for gpu in known_gpus()))
    return found


def gpu_machine(name: str) -> Machine:
    """Machine with a GPU of this name and nothing else running on it; see `find_gpu`."""
    gpu = find_gpu(name)
    return Machine(
        name=gpu.name,
        gpu=gpu.name,
        total_bytes=gpu.total_bytes,
        reserved_bytes=usual_reserved_bytes(gpu.total_bytes),
        compute_capability=gpu.compute_capability,
    )


def usual_reserved_bytes(total_bytes: int) -> int:
    """What the driver keeps of a card's memory, where nobody has measured it."""
    return max(_MIN_RESERVED_BYTES, round(_RESERVED_RATIO * total_bytes))


@cache
def _table() -> tuple[tuple[GpuFacts, ...], dict[str, GpuFacts]]:
    text = resources.files("gpu_optimizer").joinpath("data/gpus.json").read_text(encoding="utf-8")
    gpus: list[GpuFacts] = []
    by_name: dict[str, GpuFacts] = {}
    for row in json.loads(text)["gpus"]:
        major, minor = row["compute_capability"]
        gpu = GpuFacts(
            name=row["name"],
            total_bytes=row["memory_mib"] << 20,
            compute_capability=(major, minor),
            measured=row["memory_from"] == "nvidia-smi",
        )
        gpus.append(gpu)
        by_name.update({_normal(name): gpu for name in (gpu.name, *row["aliases"])})
    return tuple(gpus), by_name


def _normal(name: str) -> str:
    return _MAKER.sub("", name.lower())
