"""Machines are checked when loaded; any known GPU can be asked for by name."""

from pathlib import Path

import pytest

from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.machines.gpus import find_gpu, gpu_machine, known_gpus
from gpu_optimizer.machines.registry import (
    InvalidMachineFileError,
    default_machines_file,
    find_machine,
    load_machines,
)

GIB = 1 << 30


@pytest.fixture(scope="module")
def machines():
    return load_machines(default_machines_file())


def test_the_project_s_machines(machines):
    desktop, laptop, pc = (
        machines[name] for name in ("desktop-5070ti", "laptop-4070ti", "pc-3070ti")
    )
    assert desktop.machine.compute_capability == (12, 0)
    assert (desktop.machine.total_bytes - desktop.machine.reserved_bytes) / GIB == pytest.approx(
        15.45
    )
    assert desktop.roles[0] == "main"
    assert (laptop.power_limit_w, laptop.batch_limit) == (90.0, None)
    assert laptop.machine.total_bytes == 12_282 << 20
    assert (pc.batch_limit, pc.machine.total_bytes) == (32, 8 * GIB)
    assert (pc.machine.total_bytes - pc.machine.reserved_bytes) / GIB == pytest.approx(7.66)


@pytest.mark.parametrize(
    ("name", "expected", "total_mib", "capability"),
    [
        ("RTX 4090", "RTX 4090", 24_564, (8, 9)),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 24_564, (8, 9)),
        ("rtx4090", "RTX 4090", 24_564, (8, 9)),
        ("A100-40GB", "A100-40GB", 40_960, (8, 0)),
        ("a100", "A100-40GB", 40_960, (8, 0)),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB", 81_920, (8, 0)),
        ("Tesla T4", "T4", 15_360, (7, 5)),
        ("H200", "H200", 143_771, (9, 0)),
        ("NVIDIA H100 80GB HBM3", "H100-80GB", 81_559, (9, 0)),
    ],
)
def test_a_gpu_by_name(name, expected, total_mib, capability, machines):
    machine = find_machine(name, machines)
    assert (machine.gpu, machine.compute_capability) == (expected, capability)
    assert machine.total_bytes == total_mib << 20
    assert 300 << 20 < machine.reserved_bytes < 0.05 * machine.total_bytes


def test_names_are_unambiguous():
    gpus = known_gpus()
    assert len({gpu.name for gpu in gpus}) == len(gpus)
    assert all(find_gpu(gpu.name) == gpu for gpu in gpus)
    assert all(gpu_machine(gpu.name).reserved_bytes < gpu.total_bytes for gpu in gpus)


def test_an_unknown_name_lists_the_known_ones(machines):
    with pytest.raises(UnknownNameError, match=r"pc-3070ti.*RTX 4090"):
        find_machine("RTX 9999", machines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("machines: {a: {gpu: RTX 4090, roles: [main], colour: red}}", "colour"),
        ("machines: {a: {gpu: RTX 4090}}", "roles"),
        ("machines: {a: {gpu: RTX 4090, roles: [king]}}", "roles"),
        ("machines: {a: {gpu: RTX 4090, roles: [main], usable_gib: 25}}", "usable_gib"),
        ("machines: {a: {gpu: RTX 4090, roles: [main], usable_gib: .nan}}", "usable_gib"),
        ("machines: {a: {gpu: RTX 9999, roles: [main]}}", "memory_mib"),
        ("machines: {A b: {gpu: RTX 4090, roles: [main]}}", "machines"),
        ("machines: {}", "machines"),
        ("[", "YAML"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "machines.yml"
    path.write_text(text)
    with pytest.raises(InvalidMachineFileError, match=problem):
        load_machines(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InvalidMachineFileError, match=r"none\.yml"):
        load_machines(tmp_path / "none.yml")
