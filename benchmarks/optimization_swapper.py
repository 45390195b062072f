"""What offloading to the host's memory gains and costs, over this link and over a slower one.

    python benchmarks/optimization_swapper.py --out OUT.json [--only TEXT] [--smoke]

On a machine with a GPU; about two minutes, or part by part: ``--only`` takes parts of names,
several of them with semicolons between. After ``--seconds`` no further case is begun. Every case
stands for itself: an error is written down and the next one runs. ``--smoke`` runs tiny models, on
the CPU if there is no GPU.

Each case lets the swapper choose, time and test itself (`prepare`), then compares whole training
steps with and without it in turn: times (median of pairs), allocated and reserved peak, gradients
with deterministic kernels, and the losses of a few steps. Where plain steps do not repeat their own
bits, gradients and losses may differ as plain ones do (see `gradient_parity`).
"""

import argparse
import copy
import gc
import json
import math
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpu_optimizer.gradient_parity import NOISE_FACTOR, compare_steps
from gpu_optimizer.models.registered import FAMILIES
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.offload.eight_bit import eight_bit_optimizer
from gpu_optimizer.offload.links import CudaLink, HostLink, Link
from gpu_optimizer.offload.optimizer_states import OptimizerStateOffload
from gpu_optimizer.offload.schedule import LinkSpeed
from gpu_optimizer.plans import Offload
from gpu_optimizer.steps.builder import Step, build_step
from gpu_optimizer.steps.recorder import record_step
from gpu_optimizer.tensor_swapper import SwapSettings, TensorSwapper

MIB = 1 << 20
SLOW_BYTES_PER_S = 12e9
N_STEPS = 6
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

RESNET = Workload("resnet50", batch_size=256, optimizer="sgd-momentum")
RESNET_BF16 = replace(RESNET, autocast="bf16")
VIT = Workload("vit_b_16", batch_size=128, optimizer="adamw")
VIT_BF16 = replace(VIT, autocast="bf16")
LLAMA = Workload("llama-1b", batch_size=4, n_tokens=2048, dtype="bf16", optimizer="adamw")
STEM = Offload(("conv1", "bn1", "relu", "maxpool"))


@dataclass(frozen=True)
class Case:
    name: str
    workload: Workload
    kind: str
    """swap, planned, state, 8bit."""
    slow_link: bool = False
    n_pairs: int = 5


CASES = (
    Case("ViT-B b128 fp32", VIT, "swap", n_pairs=3),
    Case("Llama-1B b4 s2048 bf16", LLAMA, "swap", n_pairs=3),
    Case("ResNet50 b256 fp32, stem planned", RESNET, "planned", n_pairs=3),
    Case("Llama-1B AdamW state on the host", LLAMA, "state", n_pairs=2),
    Case("Llama-1B AdamW in 8 bits", LLAMA, "8bit"),
    Case("ResNet50 b256 fp32", RESNET, "swap", n_pairs=3),
    Case("ResNet50 b256 bf16", RESNET_BF16, "swap", n_pairs=3),
    Case("ViT-B b128 bf16", VIT_BF16, "swap", n_pairs=3),
    Case("Llama-1B b4 s2048 bf16, 12 GB/s", LLAMA, "swap", slow_link=True, n_pairs=3),
    Case("ResNet50 b256 fp32, 12 GB/s", RESNET, "swap", slow_link=True, n_pairs=3),
    Case("ResNet50 b256 bf16, 12 GB/s", RESNET_BF16, "swap", slow_link=True, n_pairs=3),
    Case("ViT-B b128 fp32, 12 GB/s", VIT, "swap", slow_link=True, n_pairs=3),
)


def smoke(case: Case) -> Case:
    small = replace(case.workload, batch_size=2)
    if small.family.startswith("llama"):
        small = Workload("resnet50", batch_size=2, image_size_px=32, optimizer="adamw")
    else:
        small = replace(small, image_size_px=32)
    return replace(case, workload=small, n_pairs=1)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def link_for(case: Case) -> Link:
    slow = SLOW_BYTES_PER_S if case.slow_link else None
    if device().type == "cuda":
        return CudaLink(torch.device("cuda", 0), simulated_bytes_per_s=slow)
    return HostLink(speed=LinkSpeed(slow, slow) if slow else LinkSpeed(55e9, 55e9))


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, int]:
    if not torch.cuda.is_available():
        return {"allocated": 0, "reserved": 0}
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def built(workload: Workload) -> Step:
    torch.manual_seed(0)
    step = build_step(workload, device())
    if "labels" in step.inputs:
        step.inputs["labels"].random_(0, 1000)
    if "input_ids" in step.inputs:
        step.inputs["input_ids"].random_(0, 32000)
    return step


def autocast(workload: Workload) -> AbstractContextManager[object]:
    if workload.autocast is None:
        return nullcontext()
    return torch.autocast(device().type, DTYPES[workload.autocast])


def loss_of(workload: Workload, step: Step) -> torch.Tensor:
    with autocast(workload):
        return FAMILIES[workload.family].loss(step.model, step.inputs)


def train(workload: Workload, step: Step) -> torch.Tensor:
    step.optimizer.zero_grad(set_to_none=True)
    loss = loss_of(workload, step)
    loss.backward()
    step.optimizer.step()
    return loss.detach()


def timed_s(run: Callable[[], object]) -> float:
    wait()
    began_s = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began_s


def compare(
    plain: Callable[[], object], changed: Callable[[], object], n_pairs: int, n_steps: int = 2
) -> dict[str, Any]:
    """Bouts of a few steps each in turn; every second pair the other way round."""

    def bout(run: Callable[[], object]) -> float:
        return timed_s(lambda: [run() for _ in range(n_steps)]) / n_steps

    for _ in range(2):
        changed()
        plain()
    pairs = []
    for number in range(n_pairs):
        if number % 2:
            second, first = bout(changed), bout(plain)
        else:
            first, second = bout(plain), bout(changed)
        pairs.append((first, second))
    results = {}
    for name, run in (("plain", plain), ("changed", changed)):
        release()
        wait()
        reset_peaks()
        for _ in range(2):
            run()
        wait()
        results[f"{name}_peak_bytes"] = peaks()
    ratios = [second / first - 1.0 for first, second in pairs]
    return results | {
        "plain_s": statistics.median(first for first, _ in pairs),
        "changed_s": statistics.median(second for _, second in pairs),
        "slowdown_ratio": statistics.median(ratios),
        "slowdown_ratios": ratios,
        "peak_ratio": results["changed_peak_bytes"]["allocated"]
        / max(results["plain_peak_bytes"]["allocated"], 1)
        - 1.0,
    }


def with_pause(swapper: TensorSwapper, run: Callable[[], object], *, paused: bool) -> object:
    swapper.paused = paused
    try:
        return run()
    finally:
        swapper.paused = False


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits twice, where there are such; slower."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(workload: Workload, step: Step, swapper: TensorSwapper) -> dict[str, Any]:
    """Gradients and buffers against those of plain steps, with deterministic kernels."""

    def offload() -> None:
        swapper.paused = False

    swapper.paused = True
    step.optimizer.zero_grad(set_to_none=True)
    with deterministic():
        parity = compare_steps(step.model, lambda: loss_of(workload, step).backward(), offload)
    return asdict(parity) | {
        "plain_bit_equal": parity.noise_difference == 0.0,
        "bit_equal": parity.bit_equal,
        "agrees": parity.agrees,
    }


def loss_curves(workload: Workload, step: Step, swapper: TensorSwapper) -> dict[str, Any]:
    """Losses of some steps, twice plainly and once with offloading, from the same weights."""
    start = [each.detach().clone() for each in step.model.state_dict().values()]
    optimizer_start = copy.deepcopy(step.optimizer.state_dict())
    curves = []
    for paused in (True, True, False):
        with torch.no_grad():
            for target, value in zip(step.model.state_dict().values(), start, strict=True):
                target.copy_(value)
        step.optimizer.load_state_dict(copy.deepcopy(optimizer_start))
        torch.manual_seed(11)
        losses = [
            with_pause(swapper, lambda: train(workload, step), paused=paused)
            for _ in range(N_STEPS)
        ]
        curves.append([float(each) for each in losses])
    plain, again, offloaded = curves
    noise, difference = worst_difference(plain, again), worst_difference(plain, offloaded)
    finite = all(bool(each.isfinite().all()) for each in step.model.parameters())
    return {
        "losses_plain": plain,
        "losses_offloaded": offloaded,
        "noise_loss_difference": noise,
        "worst_loss_difference": difference,
        "same_losses": difference <= NOISE_FACTOR * noise,
        "finite": finite and all(map(math.isfinite, offloaded)),
    }


def worst_difference(one: list[float], two: list[float]) -> float:
    return max(abs(left - right) for left, right in zip(one, two, strict=True))


def link_figures(link: Link) -> dict[str, float]:
    speed = link.speed
    return {
        "out_gb_per_s": speed.out_bytes_per_s / 1e9 if speed else 0.0,
        "in_gb_per_s": speed.in_bytes_per_s / 1e9 if speed else 0.0,
    }


def swapped(case: Case, result: dict[str, Any]) -> None:
    workload, step = case.workload, built(case.workload)
    for _ in range(3):
        train(workload, step)
    settings = SwapSettings(min_bytes=4 << 10) if device().type == "cpu" else SwapSettings()
    link = link_for(case)
    result["link"] = link_figures(link)
    swapper = TensorSwapper(step.model, settings, link)
    if case.kind == "planned":
        swapper.apply(STEM)
        for _ in range(5):
            train(workload, step)
        predicted = record_step(
            workload, prepare=lambda model, _: TensorSwapper(model).apply(STEM)
        ).timeline
        result["predicted_peak_bytes"] = int(predicted.size_bytes.cumsum().max())
    else:
        began_s = time.perf_counter()
        report = swapper.prepare(lambda: loss_of(workload, step).backward(), case.n_pairs)
        result["prepare_s"] = time.perf_counter() - began_s
        result["report"] = asdict(report)
        if not report.enabled:
            link.close()
            return
    result["timeline"] = timeline_figures(swapper)
    result["whole_steps"] = compare(
        lambda: with_pause(swapper, lambda: train(workload, step), paused=True),
        lambda: with_pause(swapper, lambda: train(workload, step), paused=False),
        case.n_pairs,
    )
    result["offloaded_bytes"] = swapper.last_offloaded_bytes
    result["parity"] = gradients(workload, step, swapper)
    result |= loss_curves(workload, step, swapper)
    swapper.undo()
    link.close()


def timeline_figures(swapper: TensorSwapper) -> dict[str, Any]:
    """What the choice was made on."""
    learned, schedule = swapper.learned, swapper.schedule
    if learned is None or schedule is None:
        return {}
    timeline = learned.timeline
    return {
        "forward_s": timeline.time_s[timeline.forward_end],
        "backward_s": timeline.time_s[-1] - timeline.time_s[timeline.forward_end],
        "step_s": timeline.step_s,
        "n_ticks": len(timeline.time_s),
        "n_storages": len(timeline.storages),
        "saved_bytes": sum(each.size_bytes for each in timeline.storages),
        "base_peak_bytes": schedule.base_peak_bytes,
        "expected_peak_bytes": schedule.peak_bytes,
        "expected_stall_s": schedule.stall_s,
        "bound_bytes": schedule.bound_bytes,
        "trips": [
            [timeline.storages[trip.storage].size_bytes, trip.release, trip.fetch]
            for trip in schedule.trips
        ],
    }


def state_on_host(case: Case, result: dict[str, Any]) -> None:
    workload, step = case.workload, built(case.workload)
    link = link_for(case)
    result["link"] = link_figures(link)
    offload = OptimizerStateOffload(step.optimizer, link)
    for _ in range(2):
        train(workload, step)

    def changed() -> None:
        offload.apply()
        train(workload, step)

    def plain() -> None:
        offload.undo()
        train(workload, step)

    offload.apply()
    result["away_bytes"] = offload.away_bytes
    # Moving all state there and back between the bouts would count, so each is warmed first.
    result["whole_steps"] = bouts_apart(plain, changed, case.n_pairs)
    result["finite"] = bool(torch.isfinite(train(workload, step)))
    offload.undo()
    link.close()


def eight_bit(case: Case, result: dict[str, Any]) -> None:
    workload = case.workload
    step = built(workload)
    for _ in range(2):
        train(workload, step)
    plain = single(lambda: train(workload, step))
    del step
    release()
    step = built(workload)
    step = replace(step, optimizer=eight_bit_optimizer(step.optimizer))
    for _ in range(2):
        train(workload, step)
    changed = single(lambda: train(workload, step))
    result["plain"], result["changed"] = plain, changed
    losses = [float(train(workload, step)) for _ in range(N_STEPS)]
    result["losses"] = losses
    result["finite"] = all(map(math.isfinite, losses))


def bouts_apart(
    plain: Callable[[], object], changed: Callable[[], object], n_pairs: int
) -> dict[str, Any]:
    found = {"plain": [], "changed": []}
    for _ in range(n_pairs):
        for name, run in (("plain", plain), ("changed", changed)):
            run()
            found[name].append(single(run, 3))
    return {
        f"{name}_{key}": statistics.median(each[key] for each in each_found)
        for name, each_found in found.items()
        for key in ("s", "allocated", "reserved")
    }


def single(run: Callable[[], object], n_steps: int = 5) -> dict[str, Any]:
    release()
    run()
    wait()
    reset_peaks()
    seconds = timed_s(lambda: [run() for _ in range(n_steps)]) / n_steps
    return {"s": seconds, **peaks()}


KINDS = {"swap": swapped, "planned": swapped, "state": state_on_host, "8bit": eight_bit}


def summary(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"]
    whole, report = result.get("whole_steps"), result.get("report")
    if whole and "slowdown_ratio" in whole:
        before, after = (whole[f"{each}_peak_bytes"] for each in ("plain", "changed"))
        parity = result.get("parity", {})
        text = (
            f"{before['allocated'] / MIB:,.0f} -> {after['allocated'] / MIB:,.0f} MiB "
            f"({whole['peak_ratio']:+.1%}), {whole['plain_s'] * 1e3:.1f} ms "
            f"{whole['slowdown_ratio']:+.1%}, bit-equal {parity.get('bit_equal')} (plain "
            f"{parity.get('plain_bit_equal')}), agrees {parity.get('agrees')}, losses differ by "
            f"{result.get('worst_loss_difference')} (plain {result.get('noise_loss_difference')})"
        )
        return text + (f"; {report['reason']}" if report else "")
    return report["reason"] if report else json.dumps(whole or result.get("changed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("swapper.json"))
    parser.add_argument("--only", default="", help="parts of names, with semicolons between")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cases": [],
    }
    began_s = time.perf_counter()
    for case in CASES:
        if not any(part in case.name.lower() for part in arguments.only.lower().split(";")):
            continue
        if time.perf_counter() - began_s > arguments.seconds:
            document.setdefault("left_out", []).append(case.name)
            continue
        result: dict[str, Any] = {"name": case.name}
        document["cases"].append(result)
        try:
            KINDS[case.kind](smoke(case) if arguments.smoke else case, result)
        except Exception as error:  # noqa: BLE001 -- written down; the other cases still count
            result["error"] = f"{type(error).__name__}: {error}"
            result["traceback"] = traceback.format_exc()
        release()
        arguments.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
        elapsed_s = time.perf_counter() - began_s
        print(f"{elapsed_s:5.0f} s {case.name}: {summary(result)}", flush=True)


if __name__ == "__main__":
    main()
