r"""Predicted GPU memory against measured: allocated, reserved and device total, case by case.

    python benchmarks/prediction_accuracy.py --measure OUT.json
        Runs every case of `CASES` on this machine's GPU, each in a fresh process, and notes the
        peaks. Three steps each (inference: two), so that the optimizer's state exists. What the
        device uses before a process starts is taken off its total.
    python benchmarks/prediction_accuracy.py --compare benchmarks/data/prediction_cases_h200.json \
        benchmarks/data/prediction_cases.json --report docs/reports/prediction_accuracy.md \
        --calibration projects/gpu_optimizer/src/gpu_optimizer/data/prediction_calibration.json
        Predicts the same cases, here, without a GPU.

Every third case is held out: its measurement must never be used to change the predictor.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from gpu_optimizer.memory_predictor import predict
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import build_step
from gpu_optimizer.types import Mode
from shared_utils.gpu import read_gpus

MIB = 2**20
N_STEPS = {Mode.TRAIN: 3, Mode.INFER: 2}
CASE_LIMIT_S = 120
N_AHEAD = 3
# What the project asks of the predictor: median and worst.
LIMITS = {"allocated": (0.01, 0.04), "reserved": (0.04, 0.10), "device": (None, 0.05)}


_train = partial(Workload, mode=Mode.TRAIN)
_infer = partial(Workload, mode=Mode.INFER)

CASES = (
    _train("resnet50", batch_size=64, optimizer="sgd-momentum"),
    _train("resnet50", batch_size=256, optimizer="sgd-momentum", autocast="bf16"),
    _train("resnet50", batch_size=128, foreach=True),
    _train("resnet50", batch_size=256, optimizer="sgd-momentum", checkpointing=True),
    _infer("resnet50", batch_size=128, dtype="bf16"),
    _train("vit_b_16", batch_size=64),
    _train("vit_b_16", batch_size=128, autocast="bf16", optimizer="sgd"),
    _train("vit", batch_size=64, checkpointing=True),
    _infer("vit", batch_size=64, autocast="bf16"),
    _train("bert-base", batch_size=16, n_tokens=512),
    _train("bert-base", batch_size=64, n_tokens=128, autocast="bf16", foreach=True),
    _train("bert-base", batch_size=64, n_tokens=256, checkpointing=True),
    _infer("bert-base", batch_size=64, n_tokens=512, dtype="fp16"),
    _train("gpt2", batch_size=8, n_tokens=1024),
    _train("gpt2", batch_size=16, n_tokens=1024, autocast="bf16", optimizer="sgd-momentum"),
    _train("gpt2", batch_size=8, n_tokens=1024, autocast="bf16", checkpointing=True),
    _infer("gpt2", batch_size=8, n_tokens=512, dtype="bf16", n_new_tokens=64),
    _train("llama-1b", batch_size=4, n_tokens=2048, dtype="bf16"),
    _train("llama-1b", batch_size=2, n_tokens=2048, autocast="bf16", foreach=True),
    _train("llama-1b", batch_size=8, n_tokens=2048, dtype="bf16", checkpointing=True),
    _infer("llama-7b", batch_size=1, n_tokens=2048, dtype="bf16"),
    _infer("llama-7b", batch_size=4, n_tokens=1024, dtype="bf16", n_new_tokens=32),
    _train("llama-7b", batch_size=1, n_tokens=512, dtype="bf16", optimizer="sgd"),
    _train("llama-7b", batch_size=1, n_tokens=2048, dtype="bf16", checkpointing=True),
    _train("qwen", batch_size=2, n_tokens=2048, dtype="bf16"),
    _infer("mistral", batch_size=2, n_tokens=2048, dtype="bf16"),
    _train("unet", batch_size=32),
    _train("unet", batch_size=64, autocast="bf16"),
    _train("unet", batch_size=64, checkpointing=True),
    _infer("unet", batch_size=64, dtype="bf16"),
    _train("yolo11n-pose", batch_size=16, optimizer="sgd-momentum"),
    _infer("yolo11n-pose", batch_size=32, dtype="fp16"),
)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    held_out: bool
    measured_mib: dict[str, float]
    predicted_mib: dict[str, float]
    predict_s: float

    def error(self, kind: str) -> float | None:
        if kind not in self.measured_mib:
            return None
        return self.predicted_mib[kind] / self.measured_mib[kind] - 1


def measure(out: Path) -> None:
    """Run every case in its own process, the imports of the next ones going on meanwhile."""
    cases = []
    waiting: deque[subprocess.Popen[str]] = deque()
    started = iter(range(len(CASES)))
    for number, workload in enumerate(CASES):
        waiting += [_start(each) for each in islice(started, 1 + N_AHEAD - len(waiting))]
        result = _finish(waiting.popleft())
        print(number, name_of(workload), result)
        cases.append(
            {
                "name": name_of(workload),
                "workload": asdict(workload),
                "held_out": number % 3 == 2,
                **result,
            }
        )
        environment = {"torch": torch.__version__, "cuda": torch.version.cuda}
        content = {"gpu": torch.cuda.get_device_name(0), "environment": environment}
        out.write_text(json.dumps({**content, "cases": cases}, indent=1) + "\n")


def _start(number: int) -> subprocess.Popen[str]:
    """Start a case, which imports what it needs and then waits."""
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, "--one", str(number)]
    return subprocess.Popen(  # noqa: S603 -- this very file
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let a case run, and return its peaks or why it failed."""
    try:
        output, errors = process.communicate("go\n", timeout=CASE_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"took over {CASE_LIMIT_S} s"}
    if process.returncode:
        return {"failed": errors[-800:]}
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def measure_one(number: int) -> None:
    """Run one case here, once a line comes in, and print its peaks as JSON."""
    for name in ("torchvision", "transformers", "ultralytics.nn.tasks"):
        importlib.import_module(name)
    sys.stdin.readline()
    before = read_gpus()[0].used_bytes or 0
    started = time.perf_counter()
    workload = CASES[number]
    step = build_step(workload, torch.device("cuda"))
    for _ in range(N_STEPS[workload.mode]):
        step.run()
    torch.cuda.synchronize()
    after = read_gpus()[0].used_bytes or 0
    peaks = {
        "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        "reserved_mib": torch.cuda.max_memory_reserved() / MIB,
        "device_mib": (after - before) / MIB,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(peaks))


def name_of(workload: Workload) -> str:
    """Describe a workload in a few words."""
    fields = asdict(workload)
    words = [str(workload.family), str(workload.mode), f"b{workload.batch_size}"]
    words += [f"s{workload.n_tokens}"] if workload.n_tokens else []
    words += [workload.dtype] + ([f"{workload.autocast} autocast"] if workload.autocast else [])
    if workload.mode is Mode.TRAIN:
        words += [workload.optimizer] + (["foreach"] if workload.foreach else [])
    words += ["checkpointed"] if workload.checkpointing else []
    words += [f"+{fields['n_new_tokens']} tokens"] if workload.n_new_tokens else []
    return " ".join(words)


def compare(content: dict[str, Any]) -> list[Row]:
    """Predict every measured case."""
    rows = []
    for case in content["cases"]:
        if "allocated_mib" not in case:
            continue
        fields = dict(case["workload"])
        workload = Workload(**{**fields, "mode": Mode(fields.get("mode", "train"))})
        started = time.perf_counter()
        prediction = predict(workload, content["gpu"])
        predicted = {
            "allocated": prediction.allocated_peak_bytes / MIB,
            "reserved": prediction.reserved_peak_bytes / MIB,
            "device": prediction.total_bytes / MIB,
        }
        measured = {kind: case[f"{kind}_mib"] for kind in predicted if f"{kind}_mib" in case}
        took_s = time.perf_counter() - started
        held_out = case.get("held_out", False)
        rows.append(Row(case["name"], held_out, measured, predicted, took_s))
        print(case["name"], {kind: _percent(rows[-1].error(kind)) for kind in predicted})
    return rows


def report(groups: Sequence[tuple[dict[str, Any], list[Row]]]) -> str:
    """Write the comparison as Markdown, a section for each file of measurements."""
    lines = ["# Predicted GPU memory against measured", ""]
    for content, rows in groups:
        lines += [f"## {len(rows)} cases", "", str(content.get("source", "")), ""]
        lines += [f"Used for {content['used_for']}.", ""] if "used_for" in content else []
        lines += [*_summary(rows), "", *_table(rows), ""]
    return "\n".join([*lines, _NOTES])


def _summary(rows: Sequence[Row]) -> list[str]:
    lines = ["| | cases | median error | worst error | asked |", "| --- | --- | --- | --- | --- |"]
    for group, chosen in (
        ("all", rows),
        ("held out", [row for row in rows if row.held_out]),
    ):
        for kind, (median, worst) in LIMITS.items():
            errors = [abs(e) for row in chosen if (e := row.error(kind)) is not None]
            if not errors:
                continue
            asked = f"≤ {worst:.0%}" if median is None else f"≤ {median:.0%}, ≤ {worst:.0%}"
            middle = statistics.median(errors)
            lines.append(
                f"| {kind}, {group} | {len(errors)} | {middle:.2%} | {max(errors):.2%} | {asked} |"
            )
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Measured / predicted MiB and error; device: all that the process takes of the card.",
        "",
        "| case | allocated | reserved | device | predicted in |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [_cell(row, kind) for kind in LIMITS]
        name = f"{row.name} (held out)" if row.held_out else row.name
        lines.append(f"| {name} | {' | '.join(cells)} | {row.predict_s:.1f} s |")
    return lines


def _cell(row: Row, kind: str) -> str:
    if kind not in row.measured_mib:
        return "–"
    measured, predicted = row.measured_mib[kind], row.predicted_mib[kind]
    return f"{measured:,.0f} / {predicted:,.0f} {_percent(row.error(kind))}"


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:+.2%}"


_NOTES = """## What makes the numbers

Corrections of the bare fake-tensor run are rules read in the sources of PyTorch, but for the last
two:

- the attention kernel CUDA picks, and what it keeps (`sdp_utils.cpp`);
- CUDA's autocast list instead of the CPU's, dropout with a mask of one byte per value;
- a cuBLAS workspace per thread: 32 MiB on Hopper, and 1 MiB for cuBLASLt where a bias is added
  (`CublasHandlePool.cpp`);
- the buffer in which thread blocks of a sum meet, as for bias gradients (`Reduce.cuh`): 24 MiB in
  BERT-base, 74 MiB in ViT-B;
- blocks of the caching allocator that are not split count in full (the replay);
- convolutions: cuDNN publishes no sizes of workspaces. The rules in `kernels/convolutions.py`
  were read off 343 single convolutions measured on the same card
  (`benchmarks/convolution_workspaces.py`, `benchmarks/data/convolution_workspaces_h200.json`), of
  models and batches that are not held out;
- what a process takes beside the allocator: 764 MiB where it trains, 692 MiB where it only runs
  forward, medians of the cases that are not held out. The earlier rows come from one process that
  trained first, which is why inference has 771 MiB there.

The first comparison with the 32 cases, before the last two rules and before inference was recorded
for two steps, was off by 8.6% (allocated), 39.8% (reserved) and 28.7% (device) at worst; the
held-out ones by 0.4%, 9.8% and 8.5%. Their errors were seen in that table, but no rule was derived
from them. They share their families with the others, so they do not show how well a model of
another kind is predicted.

Earlier rows: a bare run (CPU kernels, no workspaces) gave 4,793 MiB for BERT and 8,314 MiB for ViT
when they were measured. BERT with a sequence classifier and transformers' ViT with its default two
labels give exactly these; torchvision's ViT-B gives 8,325. What is off in the Llama rows is mostly
what other models left behind in the same process.

Not modelled: blocks that building a model leaves in the cache (up to 90 MiB, GPT-2), cuDNN's
batch-norm reserve space, its workspaces for grouped convolutions, and exceptions of its heuristics
for single shapes: of the measured convolutions a tenth are off by more than a MiB in the forward
pass, a thirtieth in the input's gradient, a third in the weight's, the latter mostly by a few MiB.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--one", type=int)
    parser.add_argument("--compare", type=Path, nargs="+", metavar="MEASURED")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--calibration", type=Path, help="write the predictor's error bound there")
    options = parser.parse_args()
    if options.one is not None:
        measure_one(options.one)
    if options.measure:
        measure(options.measure)
    if options.compare:
        contents = [json.loads(path.read_text()) for path in options.compare]
        groups = [(content, compare(content)) for content in contents]
        if options.report:
            options.report.write_text(report(groups))
        if options.calibration:
            rows = [row for _, of_file in groups for row in of_file]
            options.calibration.write_text(json.dumps(_calibration(rows), indent=2) + "\n")


def _calibration(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the worst error of the device total, as part of the prediction."""
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for row in rows:
        if "device" in row.measured_mib:
            ratio = row.measured_mib["device"] / row.predicted_mib["device"]
            ratios[row.held_out].append(abs(ratio - 1))
    return {
        "error_ratio": round(max(ratios[False]), 4),
        "n_cases": len(ratios[False]),
        "held_out_error_ratio": round(max(ratios[True], default=0.0), 4),
        "n_held_out": len(ratios[True]),
        "source": "worst errors of the device total in benchmarks/prediction_accuracy.py; the "
        "bound is that of the cases that are not held out",
    }


if __name__ == "__main__":
    main()
