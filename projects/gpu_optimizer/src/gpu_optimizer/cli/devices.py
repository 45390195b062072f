"""``gpu-optimizer devices``: the GPUs here, and the machines that are known."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from gpu_optimizer.cli.options import Json
from gpu_optimizer.cli.output import print_json, result_console, say
from gpu_optimizer.machines.detection import recognise
from gpu_optimizer.machines.registry import MachineEntry, default_machines_file, load_machines
from shared_utils.gpu import GpuActivity, read_activity
from shared_utils.units import format_bytes

_NO_GPU = "There is no NVIDIA GPU here; estimates work without one."


def show_devices(*, as_json: Json = False) -> None:
    """Show the GPUs of this machine and the machines of config/machines.yml."""
    machines = load_machines(default_machines_file())
    gpus = read_activity()
    here = {
        one.gpu.index: recognise(one.gpu.name, one.gpu.total_bytes, machines)
        for one in gpus
        if one.gpu.name is not None
    }
    if as_json:
        print_json(_document(gpus, machines, here))
        return
    console = result_console()
    if gpus:
        console.print(_gpu_table(gpus, here))
    else:
        say(_NO_GPU)
    console.print(_machine_table(machines, frozenset(here.values())))


def _gpu_table(gpus: tuple[GpuActivity, ...], here: Mapping[int, str | None]) -> Table:
    table = Table("GPU", "name", "memory in use", "of", "busy", "°C", "W", "programs", "machine")
    for column in table.columns[2:8]:
        column.justify = "right"
    for one in gpus:
        gpu = one.gpu
        table.add_row(
            str(gpu.index),
            gpu.name or "?",
            "?" if gpu.used_bytes is None else format_bytes(gpu.used_bytes),
            "?" if gpu.total_bytes is None else format_bytes(gpu.total_bytes),
            "?" if one.utilisation_ratio is None else f"{one.utilisation_ratio:.0%}",
            "?" if one.temperature_c is None else f"{one.temperature_c:.0f}",
            "?" if one.power_w is None else f"{one.power_w:.0f}",
            str(len(one.processes)),
            here.get(gpu.index) or "not in the list",
        )
    return table


def _machine_table(machines: Mapping[str, MachineEntry], here: frozenset[str | None]) -> Table:
    table = Table("machine", "GPU", "memory", "usable", "compute", "roles", "limits")
    for column in table.columns[2:5]:
        column.justify = "right"
    for key, entry in machines.items():
        machine = entry.machine
        limits = [
            f"{entry.power_limit_w:.0f} W" if entry.power_limit_w is not None else "",
            f"batch {entry.batch_limit}" if entry.batch_limit is not None else "",
        ]
        table.add_row(
            f"{key} (this one)" if key in here else key,
            machine.gpu,
            format_bytes(machine.total_bytes),
            format_bytes(machine.total_bytes - machine.reserved_bytes),
            ".".join(map(str, machine.compute_capability)),
            ", ".join(entry.roles),
            ", ".join(filter(None, limits)),
        )
    return table


def _document(
    gpus: tuple[GpuActivity, ...],
    machines: Mapping[str, MachineEntry],
    here: Mapping[int, str | None],
) -> dict[str, Any]:
    return {
        "gpus": [
            {
                "index": one.gpu.index,
                "name": one.gpu.name,
                "total_bytes": one.gpu.total_bytes,
                "used_bytes": one.gpu.used_bytes,
                "driver_version": one.gpu.driver_version,
                "utilisation_ratio": one.utilisation_ratio,
                "temperature_c": one.temperature_c,
                "power_w": one.power_w,
                "processes": [
                    {"pid": each.pid, "used_bytes": each.used_bytes} for each in one.processes
                ],
                "machine": here.get(one.gpu.index),
            }
            for one in gpus
        ],
        "machines": [
            {
                "name": key,
                "gpu": entry.machine.gpu,
                "total_bytes": entry.machine.total_bytes,
                "reserved_bytes": entry.machine.reserved_bytes,
                "compute_capability": list(entry.machine.compute_capability),
                "roles": list(entry.roles),
                "power_limit_w": entry.power_limit_w,
                "batch_limit": entry.batch_limit,
            }
            for key, entry in machines.items()
        ],
    }
