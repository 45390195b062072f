r"""The batch finder against the exhaustive answer, on one GPU with the memory of smaller cards.

    python benchmarks/optimization_batch.py --out OUT.json [--only TEXT ...]
        About four minutes on an H200. First the finder, one case after the other, as a user calls
        it, warm: libraries are imported before. Then, four models at once and in processes of their
        own: 50 steps at the size that was found, and the exhaustive answer. --only "ViT-B 12" runs
        the cases that contain one of the texts.
    python benchmarks/optimization_batch.py --smoke --out OUT.json
        The same without a GPU, with a straight line in the place of memory.

Exhaustive is the largest batch that runs 50 steps without running out of memory. It knows nothing
of predictions or of the finder's trials: in an allocator that was emptied, model, optimizer and
batch are built anew for the size that was found, the next one, and so on until three in a row have
failed. Ten steps in a row without a new segment or a retry end a trial early, except at the size
that was found, which runs all 50. How many would have survived three steps is noted beside it
(brief): near the limit some batches run out of memory only later. Where time is up before the next
size was decided, the finder's own log may say that it failed in a fresh process; that is noted (by
log). Caps are set by `set_per_process_memory_fraction`.

Memory alone decides here, for both: the finder's rule for latency is off, which would refuse sizes
that fit only because the allocator gives memory back and asks anew in every step. How large a batch
is without that is noted as well (calm).
"""

import argparse
import gc
import importlib
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gpu_optimizer.batch_optimizer import BatchOptions, find_batch_size, find_in_processes
from gpu_optimizer.batch_probing.process import ProbeJob
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.batch_probing.search import SearchRules
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.builder import build_step
from shared_utils.gpu import read_gpus

GIB = 1 << 30
CAPS_GIB = (8, 12, 24)
WORKLOADS = {
    "Llama-1B": Workload("llama-1b", n_tokens=256, dtype="bf16", optimizer="sgd", foreach=True),
    "ResNet50": Workload("resnet50", optimizer="sgd-momentum", foreach=True),
    "ViT-B": Workload("vit_b_16", autocast="bf16", foreach=True),
    "YOLO11-pose": Workload("yolo11n-pose", optimizer="sgd-momentum", foreach=True),
}
LIBRARIES = ("transformers", "torchvision.models", "ultralytics.nn.tasks")
N_STEPS = 50
N_CALM_STEPS = 10
N_BRIEF_STEPS = 3
N_BEYOND = 3
GOAL_ITEMS, GOAL_RATIO, GOAL_S = 2, 0.01, 20.0
FIND_PART = 0.8
"""Of the whole time, after which no further finder is begun."""
START_S = 60.0


def find(name: str, cap_gib: int, *, smoke: bool) -> dict[str, Any]:
    """Run the finder as a user would; nothing comes from its cache."""
    rules = SearchRules(max_rise_ratio=float("inf"))
    options = BatchOptions(rules, cap_bytes=cap_gib * GIB, cache=False)
    began_s = time.perf_counter()
    if smoke:
        job = ProbeJob("optimization_batch:make_straight", {"cap_gib": cap_gib})
        found = find_in_processes(job, options, lambda _: cap_gib * 11)
    else:
        found = find_batch_size(WORKLOADS[name], 1.0, options=options)
    return {**asdict(found), "wall_s": time.perf_counter() - began_s}


def straight_largest(cap_gib: int) -> int:
    """Largest batch of the model that stands for all in a smoke run."""
    return cap_gib * 12 + 1


def make_straight(payload: dict[str, Any]) -> Callable[[ProbeRequest], ProbeResult]:
    """Trials of a smoke run, in the finder's own process."""
    largest = straight_largest(payload["cap_gib"])

    def try_size(request: ProbeRequest) -> ProbeResult:
        too_large = request.batch_size > largest
        limit_bytes = payload["cap_gib"] * GIB
        return ProbeResult(
            request.batch_size,
            out_of_memory=too_large,
            peak_allocated_bytes=int(0.98 * limit_bytes * min(request.batch_size / largest, 1.0)),
            item_s=1e-3,
            n_steps=request.n_steps,
            limit_bytes=limit_bytes,
        )

    return try_size


def run_steps(
    workload: Workload, batch_size: int, end_s: float, *, all_steps: bool
) -> dict[str, Any]:
    """Run steps of a model that is built anew; running out of memory is a result."""
    torch.cuda.reset_peak_memory_stats()
    times_s: list[float] = []
    out_of_memory, n_calm = False, 0
    try:
        step = build_step(replace(workload, batch_size=batch_size), torch.device("cuda"))
        while len(times_s) < N_STEPS and time.perf_counter() < end_s:
            began_s, before = time.perf_counter(), n_requests()
            step.run()
            torch.cuda.synchronize()
            times_s.append(time.perf_counter() - began_s)
            n_calm = n_calm + 1 if n_requests() == before else 0
            if n_calm >= N_CALM_STEPS and not all_steps:
                break
    except torch.OutOfMemoryError as error:
        out_of_memory = True
        traceback.clear_frames(error.__traceback__)
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    step = None
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
    torch.cuda.empty_cache()
    n_steps = len(times_s)
    calm = not out_of_memory and n_calm >= N_CALM_STEPS
    return {
        "batch_size": batch_size,
        "n_steps": n_steps,
        "out_of_memory": out_of_memory,
        "held": not out_of_memory and (n_steps == N_STEPS or (calm and not all_steps)),
        "calm": calm,
        "step_s": statistics.median(times_s) if times_s else None,
        "peak_allocated_bytes": peaks[0],
        "peak_reserved_bytes": peaks[1],
        "left_bytes": torch.cuda.memory_reserved(),
    }


def n_requests() -> int:
    """How often the allocator has asked the device for memory, or given some back to go on."""
    facts = torch.cuda.memory_stats()
    return int(facts.get("num_alloc_retries", 0)) + int(facts.get("num_device_alloc", 0))


def straight_steps(largest: int, batch_size: int) -> dict[str, Any]:
    """What `run_steps` says in a smoke run."""
    held = batch_size <= largest
    said = {"batch_size": batch_size, "n_steps": N_STEPS * held, "out_of_memory": not held}
    return {**said, "held": held, "calm": held}


def exhaustive(
    try_size: Callable[[int, bool], dict[str, Any]], found: int, is_time_up: Callable[[], bool]
) -> dict[str, Any]:
    """Find the largest size that holds; nothing is known but where to begin."""
    first = try_size(found, True) if found else {"n_steps": 0, "out_of_memory": False}
    trials, held = [first], [found] if first.get("held") or not found else []
    size = found
    while not held and size > 1 and not is_time_up():
        size -= 1
        trials.append(try_size(size, False))
        held += [size] if trials[-1]["held"] else []
    size, n_failed = found, 0
    while n_failed < N_BEYOND and not is_time_up():
        size += 1
        trial = try_size(size, False)
        if not trial["held"] and not trial["out_of_memory"]:
            break
        trials.append(trial)
        held += [size] if trial["held"] else []
        n_failed = 0 if trial["held"] else n_failed + 1
    brief = [each["batch_size"] for each in trials if each["n_steps"] >= N_BRIEF_STEPS]
    calm = [each["batch_size"] for each in trials if each.get("calm")]
    return {
        "steps": first,
        "trials": trials[1:],
        "largest": max(held, default=0),
        "largest_brief": max(brief, default=0),
        "largest_calm": max(calm, default=0),
        "n_decided_beyond": sum(each.get("batch_size", 0) > found for each in trials),
    }


def serve_checks(name: str, *, smoke: bool) -> None:
    """Check cases of one model in this process, one per line of standard input."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if not smoke:
        for library in LIBRARIES:
            importlib.import_module(library)
        total_bytes = torch.cuda.get_device_properties(0).total_memory
    print("{}", file=channel, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began_s = time.perf_counter()
        end_s, cap_gib = began_s + asked["limit_s"], asked["cap_gib"]
        if not smoke:
            torch.cuda.set_per_process_memory_fraction(cap_gib * GIB / total_bytes)

        def try_size(size: int, all_steps: bool) -> dict[str, Any]:
            if smoke:
                return straight_steps(straight_largest(cap_gib), size)  # noqa: B023
            return run_steps(WORKLOADS[name], size, end_s, all_steps=all_steps)  # noqa: B023

        try:
            said = exhaustive(try_size, asked["found"], lambda: time.perf_counter() > end_s)  # noqa: B023
        # Whatever goes wrong with one case is noted, and the next one is run.
        except Exception:  # noqa: BLE001
            said = {"problem": traceback.format_exc()[-800:]}
        said["check_s"] = time.perf_counter() - began_s
        print(json.dumps(said), file=channel, flush=True)


class Checker:
    """A process that checks the cases of one model; it imports its libraries in the meantime."""

    def __init__(self, name: str, *, smoke: bool) -> None:
        command = [sys.executable, __file__, "--check", name, *(["--smoke"] if smoke else [])]
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next answer."""
        try:
            line = self._lines.get(timeout=max(timeout_s, 0.1))
        except queue.Empty:
            return {"problem": f"no answer within {timeout_s:.0f} s"}
        answer: dict[str, Any] = json.loads(line) if line else {"problem": "the process ended"}
        return answer

    def check(self, case: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Check a case for about so long."""
        asked = {"cap_gib": case["cap_gib"], "limit_s": limit_s}
        asked["found"] = case["found"]["batch_size"]
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        # A step that was begun is ended.
        return self.hear(limit_s + 10.0)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def judge(case: dict[str, Any]) -> dict[str, Any]:
    """Compare a case with what is asked."""
    found, check = case["found"], case.get("check", {})
    size = found["batch_size"]
    verdict: dict[str, Any] = {"quick": found["wall_s"] <= GOAL_S}
    if "steps" not in check:
        return verdict
    wanted = N_STEPS if size else 0
    verdict["held"] = not check["steps"]["out_of_memory"] and check["steps"]["n_steps"] == wanted
    log = {each["batch_size"]: each["out_of_memory"] for each in found["checked"]}
    by_log = not check["n_decided_beyond"] and log.get(size + 1, False)
    if check["n_decided_beyond"] or by_log:
        difference = size - check["largest"]
        within = abs(difference) <= max(GOAL_ITEMS, GOAL_RATIO * check["largest"])
        verdict |= {"difference": difference, "within": within, "by_log": by_log}
        # So many sizes were decided beyond the found one; fewer than three: time was up.
        verdict["n_decided_beyond"] = check["n_decided_beyond"]
    return verdict


def run(out: Path, only: list[str], limit_s: float, *, smoke: bool) -> dict[str, Any]:
    """Find, then check, all cases that are asked for."""
    began_s = time.perf_counter()
    document: dict[str, Any] = {
        # From the driver: CUDA shall not be initialised in this process.
        "gpu": "none" if smoke else read_gpus()[0].name,
        "torch": torch.__version__,
        "cases": [
            {"name": name, "cap_gib": cap_gib}
            for name in WORKLOADS
            for cap_gib in CAPS_GIB
            if not only or any(text.lower() in f"{name} {cap_gib} gib".lower() for text in only)
        ],
    }
    cases: list[dict[str, Any]] = document["cases"]
    names = list(dict.fromkeys(case["name"] for case in cases))
    out.parent.mkdir(parents=True, exist_ok=True)

    def save(note: str) -> None:
        document["took_s"] = time.perf_counter() - began_s
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{document['took_s']:5.0f} s {note}", flush=True)

    def check_all(name: str) -> None:
        mine = [case for case in cases if case["name"] == name and "found" in case]
        for index, case in enumerate(mine):
            left_s = began_s + limit_s - time.perf_counter()
            case["check"] = checkers[name].check(case, left_s / (len(mine) - index))
            case["verdict"] = judge(case)
            save(f"{name} {case['cap_gib']} GiB: {case['verdict']}")

    checkers = {name: Checker(name, smoke=smoke) for name in names}
    try:
        for library in () if smoke else LIBRARIES:
            importlib.import_module(library)
        save(f"ready {[checker.hear(START_S) for checker in checkers.values()]}")
        for case in cases:
            if time.perf_counter() - began_s > FIND_PART * limit_s:
                case["error"] = "not begun, time was up"
                continue
            # Whatever goes wrong with one case is noted, and the next one is run.
            try:
                case["found"] = find(case["name"], case["cap_gib"], smoke=smoke)
                note = f"found {case['found']['batch_size']} in {case['found']['wall_s']:.1f} s; "
                note += " ".join(trial_words(case["found"]))
            except Exception as error:  # noqa: BLE001
                case["error"] = f"{type(error).__name__}: {error}"
                note = case["error"]
            save(f"{case['name']} {case['cap_gib']} GiB: {note}")
        with ThreadPoolExecutor(max(len(names), 1)) as pool:
            list(pool.map(check_all, names))
    finally:
        for checker in checkers.values():
            checker.close()
    # What the trials did to the GPU, they did in other processes.
    document["cuda_initialised_here"] = torch.cuda.is_initialized()
    save(table(document))
    return document


def trial_words(found: dict[str, Any]) -> list[str]:
    """Tell each trial: size, how it ended, after how many steps, and its time."""
    words = []
    for stage in ("searched", "checked"):
        words.append(f"{stage}:")
        for trial in found[stage]:
            full = "!" if trial["out_of_memory"] else "?" if trial["failure"] else ""
            steps = f"{trial['n_steps']}{'' if trial['clean'] else ', unclean'}"
            words.append(f"{trial['batch_size']}{full} ({steps}, {trial['took_s']:.1f} s)")
    return words


def table(document: dict[str, Any]) -> str:
    """Write the cases as Markdown."""
    lines = [
        "",
        "| model | cap | predicted | found | exhaustive | brief | calm | found in "
        "| trials, processes | 50 steps | peak reserved |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in document["cases"]:
        found, check = case.get("found"), case.get("check", {})
        if found is None:
            lines.append(f"| {case['name']} | {case['cap_gib']} GiB | {case.get('error')} |")
            continue
        verdict = case.get("verdict", {})
        largest = str(check.get("largest", check.get("problem")))
        if verdict.get("by_log"):
            largest += " (by log)"
        elif "within" not in verdict:
            largest += " or more"
        lines.append(
            f"| {case['name']} | {case['cap_gib']} GiB | {found['predicted']} "
            f"| {found['batch_size']} | {largest} | {check.get('largest_brief', '–')} "
            f"| {check.get('largest_calm', '–')} "
            f"| {found['wall_s']:.1f} s | {found['n_trials']}, {found['n_processes']} "
            f"| {_held_words(verdict.get('held'), check)} "
            f"| {found['peak_reserved_bytes'] / GIB:.2f} GiB |"
        )
    return "\n".join(lines)


def _held_words(held: bool | None, check: dict[str, Any]) -> str:
    if held:
        return "held"
    steps = check.get("steps", {})
    if steps.get("out_of_memory"):
        return f"failed after {steps['n_steps']}"
    return f"not done ({steps.get('n_steps', 0)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("optimization_batch.json"))
    parser.add_argument("--smoke", action="store_true", help="without a GPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help='such as "ViT-B 12"')
    parser.add_argument(
        "--limit-s", type=float, default=235.0, help="what is not done then, is not"
    )
    parser.add_argument("--check", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        serve_checks(arguments.check, smoke=arguments.smoke)
    else:
        run(arguments.out, arguments.only, arguments.limit_s, smoke=arguments.smoke)


if __name__ == "__main__":
    main()
