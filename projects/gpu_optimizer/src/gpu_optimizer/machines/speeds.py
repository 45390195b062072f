"""How fast GPUs compute and move data, by name: for estimates where nothing can be measured."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from gpu_optimizer.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """One kind of GPU."""

    name: str
    fp32_flops_per_s: float
    """Without tensor cores."""
    tf32_flops_per_s: float
    """fp32 values on tensor cores; where there are none for it, as `fp32_flops_per_s`."""
    half_flops_per_s: float
    """bf16 and fp16 on tensor cores."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Of pinned copies to or from the host, one way."""


def gpu_speed(gpu: str) -> GpuSpeed:
    """Look up a card by its name or a longer name that contains it.

    Raises
    ------
    UnknownNameError
        If no known card is meant.
    """
    known = _table()
    meant = [name for name in known if name.casefold() in gpu.casefold()]
    if not meant:
        raise UnknownNameError("GPU", gpu[:64], tuple(known))
    return known[max(meant, key=len)]


@cache
def _table() -> dict[str, GpuSpeed]:
    path = resources.files("gpu_optimizer").joinpath("data/device_speeds.json")
    return {
        row["name"]: GpuSpeed(
            name=row["name"],
            fp32_flops_per_s=row["fp32_tflops"] * 1e12,
            tf32_flops_per_s=row["tf32_tflops"] * 1e12,
            half_flops_per_s=row["half_tflops"] * 1e12,
            memory_bytes_per_s=row["memory_tb_per_s"] * 1e12,
            link_bytes_per_s=row["link_gb_per_s"] * 1e9,
        )
        for row in json.loads(path.read_text(encoding="utf-8"))["devices"]
    }
