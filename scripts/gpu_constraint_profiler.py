"""What fits on our machines: write docs/reports/system_constraints.md from predictions.

No GPU is needed. 16-bit runs are predicted. For int8 and int4 the weights are computed from the
numbers of parameters and put in the place of the 16-bit ones; nothing was quantized or run.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from gpu_optimizer.layers.views import own_layers
from gpu_optimizer.machines.registry import MachineEntry, default_machines_file, load_machines
from gpu_optimizer.memory_predictor import Fit, calibration, fits, predict_from
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.runs.fitting import (
    BatchSearch,
    ModelRun,
    card_constants,
    largest_batch,
    record_on,
    safe_margin_bytes,
)
from gpu_optimizer.types import LayerMemory, Machine, Mode, Prediction

GIB = 1 << 30
MAX_BATCH = 8192
REPORT = Path(__file__).resolve().parents[1] / "docs" / "reports" / "system_constraints.md"
QUANTIZED_KINDS = frozenset(
    {"Conv2d", "Linear", "MultiheadAttention", "NonDynamicallyQuantizableLinear"}
)
# Quantizers leave the output layer of a language model in 16 bits.
KEPT_NAMES = frozenset({"lm_head"})
# int8 has a scale per output channel, which is nothing; int4 a 16-bit scale and a 16-bit zero
# point for every 128 weights (torchao's default group), hence 4.25 bits.
BITS = {"fp16": 16.0, "int8": 8.0, "int4": 4.25}
MODELS = (
    ("ResNet50", Workload("resnet50", Mode.INFER, dtype="fp16")),
    ("ViT-B/16", Workload("vit_b_16", Mode.INFER, dtype="fp16")),
    ("YOLO11n-pose, 640 px", Workload("yolo11n-pose", Mode.INFER, dtype="fp16")),
    ("Llama-7B, 2,048 tokens", Workload("llama-7b", Mode.INFER, n_tokens=2048, dtype="fp16")),
)


def saved_bytes(layers: LayerMemory, bits: float) -> int:
    """How much smaller the weights get when those of large layers are stored in so many bits."""
    quantized = sum(
        layer.parameter_bytes
        for layer in own_layers(layers)
        if layer.kind in QUANTIZED_KINDS and layer.name not in KEPT_NAMES
    )
    return int(quantized * (1.0 - bits / BITS["fp16"]))


@cache
def recorded(workload: Workload, machine: Machine) -> tuple[Prediction, LayerMemory]:
    """Prediction and layers of a 16-bit run."""
    print(f"{machine.name}: {workload.family}, batch {workload.batch_size:,}", file=sys.stderr)
    recording = record_on(ModelRun(workload), machine)
    return predict_from(recording, card_constants(machine)), recording.layers


def predicted(workload: Workload, machine: Machine, bits: float) -> Prediction:
    """Predict a run with weights of so many bits."""
    prediction, layers = recorded(workload, machine)
    saved = saved_bytes(layers, bits)
    total = prediction.total_bytes - saved
    return replace(
        prediction,
        allocated_peak_bytes=prediction.allocated_peak_bytes - saved,
        reserved_peak_bytes=prediction.reserved_peak_bytes - saved,
        total_bytes=total,
        # The error is that of the run, in bytes; it does not shrink with the weights.
        error_ratio=prediction.error_ratio * prediction.total_bytes / total,
    )


@dataclass(frozen=True)
class Cell:
    """One run on one machine."""

    prediction: Prediction
    verdict: Fit
    search: BatchSearch

    def __str__(self) -> str:
        words = {Fit.YES: "yes", Fit.TIGHT: "perhaps", Fit.NO: "no"}
        needed = f"{self.prediction.total_bytes / GIB:.2f} GiB"
        text = f"{words[self.verdict]}, {needed}"
        if not self.search.largest:
            return text
        more = "" if self.search.complete else " or more"
        return f"{text}; batch {self.search.largest:,}{more}"


def fill(workload: Workload, machine: Machine, bits: float) -> Cell:
    """Say whether one item fits, and how many do."""

    def margin_bytes(batch: int) -> int:
        run = replace(workload, batch_size=batch)
        return safe_margin_bytes(predicted(run, machine, bits), machine)

    prediction = predicted(workload, machine, bits)
    known = (1, safe_margin_bytes(prediction, machine))
    search = largest_batch(margin_bytes, known, limit=MAX_BATCH, tolerance_ratio=0.01)
    return Cell(prediction, fits(prediction, machine), search)


def machine_lines(machines: dict[str, MachineEntry]) -> Iterator[str]:
    """One line per machine."""
    yield "| machine | GPU | usable | limits |"
    yield "| --- | --- | --- | --- |"
    for name, entry in machines.items():
        usable = entry.machine.total_bytes - entry.machine.reserved_bytes
        limits = [f"{entry.power_limit_w:.0f} W"] if entry.power_limit_w else []
        limits += [f"batches up to {entry.batch_limit}"] if entry.batch_limit else []
        yield f"| {name} | {entry.machine.gpu} | {usable / GIB:.2f} GiB | {', '.join(limits)} |"


def report(machines: dict[str, MachineEntry]) -> str:
    """Write the whole page."""
    lines = [
        "# What fits on which machine",
        "",
        "Made again by `make gpu-profiler`; no GPU is needed. Inference: what the process takes of",
        "the card for one item, CUDA context included; then the largest batch that fits, to 1%",
        f"(searched up to {MAX_BATCH:,}). `yes` holds with the whole error bound added "
        f"({calibration().error_ratio:.1%}, and",
        "the whole CUDA context where that was not measured on the card), `perhaps` within it.",
        "",
        "fp16 is predicted. **int8 and int4 are computed, not run**: the weights of convolutions,",
        "linear and attention layers at 8 and 4.25 bits (a scale and a zero point for every 128",
        "weights) in the place of 16; embeddings, norms, a language model's output layer and all",
        "activations stay in 16 bits; scratch memory for unpacking is left out.",
        "",
        *machine_lines(machines),
        "",
        f"| model | weights | {' | '.join(machines)} |",
        "| --- | --- |" + " --- |" * len(machines),
    ]
    for label, workload in MODELS:
        for precision, bits in BITS.items():
            cells = [str(fill(workload, each.machine, bits)) for each in machines.values()]
            lines.append(f"| {label} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Predict and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPORT, help="file to write")
    out = parser.parse_args(arguments).out
    text = report(load_machines(default_machines_file()))
    out.write_text(text, encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
