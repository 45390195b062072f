"""Does the simulated allocator do exactly what PyTorch's does? Without a GPU.

`allocator_parity.cpp` runs the caching allocator of the installed PyTorch on a device that only
counts. Random runs and the three workloads of `fragmentation.py` go through it and through the
simulation, under many settings and with enough, scarce and too little memory; allocated and
reserved bytes must be equal after every event, and so must the calls to the device and the event at
which memory runs out. Needs g++; the CUDA headers come with PyTorch's CUDA packages and Triton.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from fragmentation_workloads import WORKLOADS

from gpu_optimizer.allocator.config import MIB, AllocatorConfig
from gpu_optimizer.allocator_replay import ReplayOptions, replay
from gpu_optimizer.types import MemoryTimeline

UNLIMITED_BYTES: Final = 1 << 42
SETTINGS: Final = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "max_split_size_mb:64,max_non_split_rounding_mb:32",
    "max_split_size_mb:256",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[64:8,256:4,>:1]",
    "roundup_power2_divisions:[1:0,4:8,>:2],expandable_segments:True",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9",
    "garbage_collection_threshold:0.3,per_process_memory_fraction:0.7,max_split_size_mb:40",
    "expandable_segments:True,max_split_size_mb:64",
    "expandable_segments:True,garbage_collection_threshold:0.4,per_process_memory_fraction:0.8",
)


@dataclass(frozen=True)
class Run:
    name: str
    timeline: MemoryTimeline
    empty_cache_before: tuple[int, ...]


@dataclass
class Tally:
    """Sums over the runs under one setting."""

    n_runs: int = 0
    n_equal: int = 0
    n_events: int = 0
    n_oom: int = 0


def compile_allocator(folder: Path) -> Path:
    source = Path(__file__).with_suffix(".cpp")
    packages = Path(sysconfig.get_paths()["purelib"])
    libraries = Path(torch.__file__).parent / "lib"
    includes = [
        Path(torch.__file__).parent / "include",
        packages / "nvidia" / "cuda_runtime" / "include",
        packages / "triton" / "backends" / "nvidia" / "include",
    ]
    runtime = packages / "nvidia" / "cuda_runtime" / "lib"
    program = folder / "allocator_parity"
    subprocess.run(  # noqa: S603  (paths of this environment)
        [  # noqa: S607  (whichever compiler is installed)
            "g++",
            "-std=c++17",
            "-O1",
            "-w",
            "-rdynamic",
            *(f"-I{path}" for path in includes),
            str(source),
            "-o",
            str(program),
            f"-L{libraries}",
            "-lc10_cuda",
            "-lc10",
            f"-Wl,-rpath,{libraries}:{runtime}",
            "-Wl,--unresolved-symbols=ignore-all",
        ],
        check=True,
    )
    return program


def random_run(seed: int) -> Run:
    """Sizes from 32 bytes to 256 MiB, up to three streams, up to 80 live blocks."""
    chance = random.Random(seed)  # noqa: S311  (a fixed choice, no secret)
    n_events = chance.choice([200, 1500])
    n_live = chance.choice([20, 80])
    largest = chance.choice([22, 26, 28])
    n_streams = chance.choice([1, 1, 3])
    live: list[tuple[int, int, int]] = []
    rows: list[tuple[int, int, int]] = []
    while len(rows) < n_events:
        if live and (len(live) >= n_live or chance.random() < 0.45):
            size, block, stream = live.pop(chance.randrange(len(live)))
            rows.append((-size, block, stream))
            continue
        size = int(2 ** chance.uniform(5, largest))
        if chance.random() < 0.3:
            size = size // MIB * MIB or size
        row = (size, len(rows), chance.randrange(n_streams))
        live.append(row)
        rows.append(row)
    marks = sorted(chance.sample(range(n_events), chance.choice([0, 2])))
    table = np.array(rows, dtype=np.int64)
    timeline = MemoryTimeline(
        size_bytes=table[:, 0].copy(),
        block=table[:, 1].copy(),
        module=np.zeros(n_events, dtype=np.int32),
        phase=np.zeros(n_events, dtype=np.int8),
        category=np.zeros(n_events, dtype=np.int8),
        modules=("",),
        module_types=("",),
        stream=table[:, 2].astype(np.int32),
    )
    return Run(f"random {seed}", timeline, tuple(marks))


def runs(n_random: int) -> Iterator[Run]:
    yield from (random_run(seed) for seed in range(n_random))
    for make in WORKLOADS:
        workload = make()
        yield Run(workload.name, workload.timeline, ())
        yield Run(f"{workload.name}, empty_cache", workload.timeline, workload.step_starts)


def run_pytorch(
    program: Path, run: Run, setting: str, device_bytes: int
) -> tuple[np.ndarray, bool]:
    """Return the four columns that the program prints, and whether memory ran out."""
    marks = set(run.empty_cache_before)
    lines = []
    columns = (run.timeline.size_bytes, run.timeline.block, run.timeline.stream)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for event, (size, block, stream) in enumerate(rows):
        if event in marks:
            lines.append("e")
        lines.append(f"a {block} {size} {stream}" if size > 0 else f"f {block}")
    environment = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    if setting:
        environment["PYTORCH_ALLOC_CONF"] = setting
    answer = subprocess.run(  # noqa: S603  (the program compiled above)
        [program, str(device_bytes)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    printed = answer.stdout.splitlines()
    is_oom = bool(printed) and printed[-1] == "oom"
    table = [[int(number) for number in line.split()] for line in printed if line != "oom"]
    return np.array(table, dtype=np.int64).reshape(-1, 4), is_oom


def is_equal(program: Path, run: Run, setting: str, device_bytes: int, tally: Tally) -> bool:
    table, is_oom = run_pytorch(program, run, setting, device_bytes)
    config = AllocatorConfig.parse(setting, device_bytes=device_bytes)
    options = ReplayOptions(empty_cache_before=run.empty_cache_before)
    result = replay(run.timeline, config, options)
    equal = (
        is_oom == (result.out_of_memory is not None)
        and np.array_equal(table[:, 0], result.allocated_bytes)
        and np.array_equal(table[:, 1], result.reserved_bytes)
    )
    if equal and not is_oom and len(table):
        equal = table[-1, 2:].tolist() == [result.n_cuda_mallocs, result.n_cuda_frees]
    tally.n_runs += 1
    tally.n_equal += int(equal)
    tally.n_events += len(table)
    tally.n_oom += int(is_oom)
    return equal


def device_sizes(run: Run) -> Sequence[int]:
    """Without end; scarce; too little for many runs."""
    needed = replay(run.timeline).allocated_peak_bytes
    return (UNLIMITED_BYTES, needed * 5 // 2 // MIB * MIB, needed * 23 // 20 // MIB * MIB)


def report(tallies: dict[str, Tally], n_random: int) -> str:
    lines = [
        "# The simulated allocator against PyTorch's own",
        "",
        "Reproduce: `python benchmarks/allocator_parity.py`.",
        "",
        f"The caching allocator of PyTorch {torch.__version__}, as compiled, runs without a GPU on "
        f"a device that only counts. {n_random} random runs and the three workloads of "
        "[fragmentation.md](fragmentation.md), with and without `empty_cache` at every step, go "
        "through it and through the simulation, each on devices with endless, 2.5 times and 1.15 "
        "times the memory needed. A run is equal if allocated and reserved bytes agree after every "
        "event, to the byte, and the calls to the device and the event at which memory runs out "
        "too.",
        "",
        "| setting | runs | equal | events | ran out of memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting, tally in tallies.items():
        lines.append(
            f"| {setting or 'default'} | {tally.n_runs} | {tally.n_equal} | {tally.n_events:,} "
            f"| {tally.n_oom} |"
        )
    total = Tally(
        *(
            sum(getattr(tally, name) for tally in tallies.values())
            for name in ("n_runs", "n_equal", "n_events", "n_oom")
        )
    )
    lines += [
        f"| all | {total.n_runs} | {total.n_equal} | {total.n_events:,} | {total.n_oom} |",
        "",
        "Not in this comparison: the driver's choice of addresses, which decides between free "
        "blocks of equal size; memory that another stream is still using when it is freed; private "
        "pools; CUDA graphs. What a GPU's statistics say: `benchmarks/fragmentation.py --record`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/reports"))
    parser.add_argument("--runs", type=int, default=60, help="random runs")
    arguments = parser.parse_args()
    tallies = {setting: Tally() for setting in SETTINGS}
    n_different = 0
    with tempfile.TemporaryDirectory() as folder:
        program = compile_allocator(Path(folder))
        for run in runs(arguments.runs):
            for device_bytes in device_sizes(run):
                for setting, tally in tallies.items():
                    if not is_equal(program, run, setting, device_bytes, tally):
                        n_different += 1
                        print(f"different: {run.name}, {setting!r}, {device_bytes:,} bytes")
    text = report(tallies, arguments.runs)
    (arguments.out / "allocator_parity.md").write_text(text, encoding="utf-8")
    print(f"{n_different} runs differ, on Python {platform.python_version()}")
    sys.exit(1 if n_different else 0)


if __name__ == "__main__":
    main()
