"""What checkpoint regions save and cost, and whether gradients and buffers stay the same.

    python benchmarks/optimization_checkpoint.py --out OUT.json [--only NAME ...]
        On a machine with a GPU; about two and a half minutes. Written after every case.
    python benchmarks/optimization_checkpoint.py --smoke --out OUT.json
        Tiny sizes on the CPU, to see that it runs.

Per workload the plain step and all variants take turns, a few steps each, every second round the
other way round; slowdowns are medians over rounds against the same round's plain steps. Peaks are
those of steps after the first; that of the first, in which regions learn what to keep, stands
beside it.
"""

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from gpu_optimizer.checkpoint_manager import CheckpointManager
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.plans import CheckpointRegion
from gpu_optimizer.steps.builder import Step, build_step

MIB = 1 << 20
GOAL_RATIO = -0.40
Forwards = dict[nn.Module, Callable[..., Any]]
Regions = tuple[CheckpointRegion, ...]


@dataclass(frozen=True)
class Case:
    name: str
    workload: Workload
    variants: dict[str, Regions]
    max_slowdown_ratio: float
    references: tuple[str, ...] = ()
    """Of PyTorch's own: ``checkpoint`` and ``selective``, around every block."""
    n_rounds: int = 7
    n_steps: int = 3


@dataclass
class Variant:
    name: str
    forwards: Forwards
    first_peak_bytes: int = 0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    steps_s: list[float] = field(default_factory=list)
    launch_s: list[float] = field(default_factory=list)


RESNET_BLOCKS = tuple(
    f"layer{stage}.{number}"
    for stage, n_blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
    for number in range(n_blocks)
)
VIT_BLOCKS = tuple(f"encoder.layers.encoder_layer_{number}" for number in range(12))
LLAMA_BLOCKS = tuple(f"model.layers.{number}" for number in range(22))
WIDE = ("mlp.gate_proj", "mlp.up_proj")


def products(
    blocks: tuple[str, ...], again: tuple[str, ...] = (), n_again: int | None = None
) -> Regions:
    """All blocks with products kept, but those named, in the first so many blocks."""
    n = len(blocks) if n_again is None else n_again
    return tuple(
        CheckpointRegion(block, "products", again if number < n else ())
        for number, block in enumerate(blocks)
    )


def resnet_mixed(n_first: int) -> Regions:
    """Both thin convolutions of the first blocks, the last one of the others."""
    return tuple(
        CheckpointRegion(block, "products", ("conv1", "conv3") if number < n_first else ("conv3",))
        for number, block in enumerate(RESNET_BLOCKS)
    )


def whole(blocks: tuple[str, ...], names: tuple[str, ...]) -> Regions:
    again = tuple(f"{block}.{name}" for block in blocks for name in names)
    return (CheckpointRegion("", "products", again),)


def nothing(blocks: tuple[str, ...]) -> Regions:
    return tuple(CheckpointRegion(block) for block in blocks)


RESNET = {
    "blocks: products": products(RESNET_BLOCKS),
    "stages: products": products(("layer1", "layer2", "layer3", "layer4")),
    "blocks: products but conv3": products(RESNET_BLOCKS, ("conv3",)),
    "blocks: products but conv3, conv1 in layer1": resnet_mixed(3),
    "blocks: products but conv3, conv1 in layer1-2": resnet_mixed(7),
    "whole: products but conv3": whole(RESNET_BLOCKS, ("conv3",)),
    "blocks: nothing": nothing(RESNET_BLOCKS),
}
VIT = {
    "blocks: products": products(VIT_BLOCKS),
    "blocks: products but mlp.0 in 4": products(VIT_BLOCKS, ("mlp.0",), 4),
    "blocks: products but mlp.0 in 6": products(VIT_BLOCKS, ("mlp.0",), 6),
    "blocks: products but mlp.0": products(VIT_BLOCKS, ("mlp.0",)),
    "mlps: nothing": nothing(tuple(f"{block}.mlp" for block in VIT_BLOCKS)),
}
LLAMA = {
    "blocks: products": products(LLAMA_BLOCKS),
    "blocks: products but gate_proj": products(LLAMA_BLOCKS, WIDE[:1]),
    "blocks: products but gate_proj, up_proj in 11": products(LLAMA_BLOCKS, WIDE, 11),
    "blocks: products but gate_proj, up_proj": products(LLAMA_BLOCKS, WIDE),
    "blocks: nothing": nothing(LLAMA_BLOCKS),
}
SGD = {"batch_size": 256, "optimizer": "sgd", "foreach": True}
LLAMA_RUN = {"batch_size": 4, "n_tokens": 2048}
BOTH = ("checkpoint", "selective")
CASES = (
    Case("resnet50 b256 fp32", Workload("resnet50", **SGD), RESNET, 0.12, BOTH),
    Case("resnet50 b256 bf16", Workload("resnet50", autocast="bf16", **SGD), RESNET, 0.12, BOTH),
    Case("vit_b_16 b128 fp32", Workload("vit_b_16", batch_size=128), VIT, 0.15, n_rounds=5),
    Case("vit_b_16 b128 bf16", Workload("vit_b_16", batch_size=128, autocast="bf16"), VIT, 0.15),
    Case(
        "llama-1b b4 s2048 bf16", Workload("llama-1b", dtype="bf16", **LLAMA_RUN), LLAMA, 0.15, BOTH
    ),
)
SMOKE = (
    Case(
        "resnet50 smoke",
        Workload("resnet50", batch_size=2, image_size_px=64, optimizer="sgd"),
        {name: RESNET[name] for name in list(RESNET)[2:6:3]},
        0.12,
        BOTH,
        n_rounds=2,
        n_steps=1,
    ),
    Case(
        "vit smoke",
        Workload("vit_b_16", batch_size=1, image_size_px=32),
        {"blocks: products": VIT["blocks: products"]},
        0.15,
        n_rounds=2,
        n_steps=1,
    ),
)


def use(forwards: Forwards) -> None:
    for module, forward in forwards.items():
        module.forward = forward  # type: ignore[method-assign]


def drop(forwards: Forwards) -> None:
    for module in forwards:
        del module.forward


def region_forwards(model: nn.Module, regions: Regions) -> Forwards:
    manager = CheckpointManager(model)
    manager.apply(regions)
    forwards = {each: each.forward for each in model.modules() if "forward" in vars(each)}
    manager.undo()
    return forwards


def selective_contexts() -> object:
    names = (
        "convolution", "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )  # fmt: skip
    kept = [getattr(torch.ops.aten, name).default for name in names]
    return create_selective_checkpoint_contexts(kept)


def reference_forwards(model: nn.Module, workload: Workload, kind: str) -> Forwards:
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = selective_contexts
    return {
        block: partial(checkpoint, block.forward, **options)
        for block in FAMILIES[workload.family].blocks(model)
    }


class Device:
    """A GPU, or the CPU for smoke runs, which has no peaks."""

    def __init__(self, *, is_gpu: bool) -> None:
        self.is_gpu = is_gpu
        self.device = torch.device("cuda" if is_gpu else "cpu")

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def reset(self) -> None:
        gc.collect()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> tuple[int, int]:
        if not self.is_gpu:
            return 0, 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def measure_peaks(step: Step, variant: Variant, device: Device) -> None:
    use(variant.forwards)
    try:
        device.reset()
        step.run()
        variant.first_peak_bytes, _ = device.peaks()
        device.reset()
        for _ in range(2):
            step.run()
        variant.peak_bytes, variant.reserved_bytes = device.peaks()
    finally:
        drop(variant.forwards)


def timed(step: Step, variant: Variant, device: Device, n_steps: int) -> None:
    use(variant.forwards)
    try:
        step.run()
        device.synchronize()
        began_s = time.perf_counter()
        for _ in range(n_steps):
            step.run()
        launched_s = time.perf_counter()
        device.synchronize()
        variant.steps_s.append((time.perf_counter() - began_s) / n_steps)
        variant.launch_s.append((launched_s - began_s) / n_steps)
    finally:
        drop(variant.forwards)


def parity(case: Case, step: Step, device: Device, *, deterministic: bool) -> dict[str, Any]:
    """Compare gradients and buffers of every variant with the plain step's."""
    family = FAMILIES[case.workload.family]
    dtype = torch.bfloat16 if case.workload.autocast else None

    def backward() -> None:
        with torch.autocast(device.device.type, dtype, enabled=dtype is not None):
            loss = family.loss(step.model, step.inputs)
        loss.backward()

    found = {}
    torch.backends.cudnn.deterministic = deterministic
    try:
        for name, regions in case.variants.items():
            manager = CheckpointManager(step.model)
            manager.apply(regions)
            try:
                compared = manager.check(backward)
                found[name] = {
                    "gradient_difference": compared.gradient_difference,
                    "noise_difference": compared.noise_difference,
                    "buffers_equal": compared.buffers_equal,
                    "bit_equal": compared.bit_equal,
                    "agrees": compared.agrees,
                }
            finally:
                manager.undo()
                step.model.zero_grad(set_to_none=True)
    finally:
        torch.backends.cudnn.deterministic = False
    return found


def reach(case: Case, step: Step, device: Device) -> dict[str, Any]:
    """Let the manager find the first variant that frees 40%, mildest ones first."""
    proposals = iter(case.variants.values())

    def measure() -> int:
        device.reset()
        step.run()
        device.reset()
        step.run()
        return device.peaks()[0]

    manager = CheckpointManager(step.model)
    base_bytes = measure()
    target_bytes = int(base_bytes * (1.0 + GOAL_RATIO))
    reached = manager.reach(target_bytes, lambda _: next(proposals, None), measure)
    manager.undo()
    return {
        "target_bytes": target_bytes,
        "is_met": reached.is_met,
        "peak_bytes": reached.best.peak_bytes,
        "n_trials": len(reached.trials),
    }


def row(variant: Variant, plain: Variant, max_slowdown_ratio: float) -> dict[str, Any]:
    ratios = [one / two - 1.0 for one, two in zip(variant.steps_s, plain.steps_s, strict=True)]
    slowdown = statistics.median(ratios)
    saved = variant.peak_bytes / plain.peak_bytes - 1.0 if plain.peak_bytes else 0.0
    return {
        "name": variant.name,
        "peak_mib": variant.peak_bytes / MIB,
        "first_peak_mib": variant.first_peak_bytes / MIB,
        "reserved_mib": variant.reserved_bytes / MIB,
        "peak_ratio": saved,
        "step_ms": statistics.median(variant.steps_s) * 1e3,
        "launch_ms": statistics.median(variant.launch_s) * 1e3,
        "slowdown_ratio": slowdown,
        "ratios": ratios,
        "reaches": saved <= GOAL_RATIO and slowdown <= max_slowdown_ratio,
    }


def tried(record: dict[str, Any], name: str, part: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Run a part of a case; what goes wrong is written down and the rest goes on."""
    try:
        return part()
    except Exception as error:  # noqa: BLE001 -- one case must not cost the others
        record["errors"].append({"part": name, "error": repr(error), "at": traceback.format_exc()})
        gc.collect()
        return None


def measured(
    case: Case, step: Step, variants: list[Variant], device: Device, record: dict[str, Any]
) -> list[Variant]:
    """Measure all variants; return those that ran every time."""
    for _ in range(2):
        step.run()
    usable = []
    for variant in variants:
        tried(record, variant.name, partial(measure_peaks, step, variant, device))
        if variant.peak_bytes or not device.is_gpu:
            usable.append(variant)
    for number in range(case.n_rounds):
        for variant in usable if number % 2 else usable[::-1]:
            tried(record, variant.name, partial(timed, step, variant, device, case.n_steps))
    return [each for each in usable if len(each.steps_s) == case.n_rounds]


def run_case(case: Case, device: Device, record: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step = build_step(case.workload, device.device)
    model = step.model
    plain = Variant("plain", {})
    variants = [plain]
    for name, regions in case.variants.items():
        forwards = tried(record, name, partial(region_forwards, model, regions))
        if forwards:
            variants.append(Variant(name, forwards))
    variants += [
        Variant(f"PyTorch's {kind}", reference_forwards(model, case.workload, kind))
        for kind in case.references
    ]
    complete = measured(case, step, variants, device, record)
    record["rows"] = [row(each, plain, case.max_slowdown_ratio) for each in complete]
    for variant in variants:
        variant.forwards = {}
    for deterministic in (False, True):
        name = "parity, deterministic" if deterministic else "parity"
        check = partial(parity, case, step, device, deterministic=deterministic)
        record[name] = tried(record, name, check)
        if record[name] and all(each["bit_equal"] for each in record[name].values()):
            break
    record["reach"] = tried(record, "reach", partial(reach, case, step, device))


def show(record: dict[str, Any]) -> None:
    print(f"{record['name']} (allowed {record['max_slowdown_ratio']:+.0%})")
    for each in record.get("rows", []):
        print(
            f"  {each['name']:48} {each['peak_mib']:9,.0f} MiB {each['peak_ratio']:+7.1%}"
            f" {each['step_ms']:8.1f} ms {each['slowdown_ratio']:+7.1%}"
            f" launch {each['launch_ms']:7.1f} ms first {each['first_peak_mib']:9,.0f} MiB"
            f" {'REACHED' if each['reaches'] else ''}"
        )
    for name in ("parity", "parity, deterministic"):
        for variant, found in (record.get(name) or {}).items():
            print(
                f"  {name}: {variant}: differs {found['gradient_difference']:.2e}, "
                f"noise {found['noise_difference']:.2e}, buffers equal {found['buffers_equal']}"
            )
    print(f"  reach: {record.get('reach')}")
    for each in record["errors"]:
        print(f"  ERROR in {each['part']}: {each['error']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("optimization_checkpoint.json"))
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = Device(is_gpu=not arguments.smoke)
    document: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if device.is_gpu else "none",
        "torch": torch.__version__,
        "goal_ratio": GOAL_RATIO,
        "cases": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    began_s = time.perf_counter()
    for case in SMOKE if arguments.smoke else CASES:
        if arguments.only and not any(part in case.name for part in arguments.only):
            continue
        record: dict[str, Any] = {
            "name": case.name,
            "max_slowdown_ratio": case.max_slowdown_ratio,
            "errors": [],
        }
        document["cases"].append(record)
        tried(record, "case", partial(run_case, case, device, record))
        device.reset()
        record["wall_s"] = time.perf_counter() - began_s
        arguments.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
        show(record)
    print(f"{time.perf_counter() - began_s:.0f} s")


if __name__ == "__main__":
    main()
