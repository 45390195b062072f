"""How many items at a time: the largest batch that fits and stays quick, found by trying.

A prediction says where to begin. Real steps in another process decide, where running out of memory
is an answer; a size that is found is run once more in a fresh process until no step takes anything
more from the device. The caller's own process and its GPU memory are not touched.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from gpu_optimizer.batch_probing.answers import (
    default_folder,
    fingerprint,
    read_answer,
    write_answer,
)
from gpu_optimizer.batch_probing.cases import (
    ModuleCase,
    ModuleUse,
    ProbeCase,
    RepeatedBatch,
    WorkloadCase,
    refers_to_script,
)
from gpu_optimizer.batch_probing.errors import ProbeFailedError
from gpu_optimizer.batch_probing.hints import capped_bytes, hint_for, limit_of, predict_case
from gpu_optimizer.batch_probing.on_gpu import MAKER, payload_of
from gpu_optimizer.batch_probing.process import ProbeJob, ProbeProcess
from gpu_optimizer.batch_probing.results import (
    BatchAnswer,
    ProbeRequest,
    ProbeResult,
    StopReason,
)
from gpu_optimizer.batch_probing.search import (
    Goal,
    SearchResult,
    SearchRules,
    first_size,
    is_good,
    search_batch_size,
)
from gpu_optimizer.batch_probing.trials import MemoryCap
from gpu_optimizer.errors import NoGpuError, UnknownNameError
from gpu_optimizer.machines.gpus import find_gpu, gpu_machine
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.runs.fitting import largest_batch
from gpu_optimizer.types import Machine
from shared_utils.gpu import GpuReader

__all__ = [
    "BatchAnswer",
    "BatchOptions",
    "Goal",
    "ModuleUse",
    "SearchRules",
    "StopReason",
    "auto_batch_size",
    "find_batch_size",
    "predict_batch_size",
]

_N_PROBE_STEPS: Final = 3
_HINT_S: Final = 8.0
"""Predictions are made while the other process starts and tries a first size; what was measured
is the better guide then."""
_N_RAISES: Final = 3
_N_RESTLESS: Final = 5
"""Trials until a size that does not settle is taken all the same."""
_PREDICTED_TO_RATIO: Final = 0.01
"""Closer than that predictions are not; each guess takes seconds."""
_SAME_BYTES: Final = 256 << 20
"""If other programs use so much more than when an answer was found, it is found anew."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch size is looked for."""

    rules: SearchRules = field(default_factory=SearchRules)
    cap_bytes: int | None = None
    """Find what a card with this much for PyTorch's allocator would take; None: the card here."""
    device: int = 0
    """As CUDA counts."""
    n_verify_steps: int = 50
    """Steps of the fresh process in which a size must not run out of memory."""
    n_steady_steps: int = 6
    """So many of them in a row without a new request to the device suffice, or three times as many
    with the same ones: all further ones would be like them. 0: all are run."""
    allocator: str | None = None
    """PYTORCH_ALLOC_CONF of the trials, such as ``expandable_segments:True``, which must then be
    set for the training as well; None: as in this process."""
    raise_until_s: float = 14.0
    """So long after the beginning a larger size is still begun in the fresh process, where the
    search refused it: near the limit a few steps may go either way."""
    cache: bool = True
    """Whether answers are kept on disk, and found there."""
    cache_dir: Path | None = None
    """None: a folder of this user's."""
    wall_s: float = 300.0
    """A single trial may take so long."""


def auto_batch_size(
    model: nn.Module | Workload | str,
    max_vram_percent: float = 0.9,
    *,
    inputs: Any = None,  # noqa: ANN401 -- whatever the model takes
    use: ModuleUse | None = None,
    options: BatchOptions | None = None,
) -> int:
    """Find the largest batch that fits this GPU; 0 if not even one item does.

    Parameters are those of `find_batch_size`, which also tells how it came about.
    """
    found = find_batch_size(model, max_vram_percent, inputs=inputs, use=use, options=options)
    return found.batch_size


def find_batch_size(
    model: nn.Module | Workload | str | WorkloadCase,
    max_vram_percent: float = 0.9,
    *,
    inputs: Any = None,  # noqa: ANN401
    use: ModuleUse | None = None,
    options: BatchOptions | None = None,
) -> BatchAnswer:
    """Find a batch size by real steps on this machine's GPU.

    Parameters
    ----------
    model
        A module of your own, best still on the CPU: what this process has of the GPU is not free
        for the trials. Its structure is handed to another process, the values of its large weights
        are not. Or the name of a registered model, or a `Workload`.
    max_vram_percent
        Part of the GPU's memory, 0 to 1, that all programs together may use; the CUDA context is
        counted.
    inputs
        For a module: one batch, of which batches of other sizes are made by repeating its items, or
        a function from the number of items to a batch.
    use
        For a module: loss, optimizer, autocast. Functions in it must have a name to be found by.
    options
        How to look.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU; `predict_batch_size` needs none.
    ProbeFailedError
        The model fails for another reason than memory, or cannot be handed over.
    """
    options = options or BatchOptions()
    case = case_of(model, inputs, use)
    if not torch.cuda.is_available():
        raise NoGpuError("Finding a batch size by trial")
    cap = MemoryCap(max_vram_percent, options.cap_bytes)
    machine = _machine_here(options.device)
    folder = options.cache_dir or default_folder()
    settings = {"gpu": machine.name, "bytes": machine.total_bytes, "cap": asdict(cap)}
    settings |= {"rules": asdict(options.rules), "allocator": options.allocator}
    key = fingerprint(case, settings) if options.cache else None
    known = None if key is None else read_answer(folder, key)
    if known is not None and known["used_bytes"] + _SAME_BYTES >= machine.reserved_bytes:
        return replace(_answer_kept(known["answer"]), cached=True)
    payload = payload_of(case, cap, options.device)
    script = refers_to_script(payload["case"])
    job = ProbeJob(MAKER, payload, script, options.wall_s, options.allocator)
    found = find_in_processes(
        job,
        options,
        lambda go_on: hint_for(case, machine, cap, options.rules.largest, go_on),
    )
    if key is not None:
        answer = {"answer": asdict(found), "used_bytes": machine.reserved_bytes}
        write_answer(folder, key, answer)
    return found


def find_in_processes(
    job: ProbeJob,
    options: BatchOptions,
    hint_of: Callable[[Callable[[], bool]], int | None] = lambda _: None,
) -> BatchAnswer:
    """Search in one process and verify what was found in another.

    Parameters
    ----------
    job
        What the processes try.
    options
        Rules and number of steps; the rest is not looked at.
    hint_of
        Predicts the answer while the processes start; is given what says whether to go on.

    Raises
    ------
    ProbeFailedError
        If no batch size runs, and memory is not why.
    """
    began_s = time.monotonic()
    # The second process imports its libraries meanwhile; it takes nothing of the GPU until asked.
    with ProbeProcess(job) as searcher, ProbeProcess(job) as verifier:
        searcher.begin(ProbeRequest(first_size(options.rules), _N_PROBE_STEPS))
        hint = hint_of(lambda: searcher.is_busy() and time.monotonic() < began_s + _HINT_S)

        def probe(batch_size: int) -> ProbeResult:
            return searcher.probe(ProbeRequest(batch_size, _N_PROBE_STEPS))

        found = search_batch_size(probe, options.rules, hint)
        # What it has of the GPU belongs to the fresh one now.
        searcher.close()
        held, checks = _verify(found, verifier, options)
        if held is not None and held.steady:
            held, checks = _raise(found, checks, verifier, options, began_s)
        n_processes = searcher.n_started + verifier.n_started
    answer = _answer(found, held, checks)
    return replace(
        answer, predicted=hint, n_processes=n_processes, took_s=time.monotonic() - began_s
    )


def predict_batch_size(
    model: Workload | str | WorkloadCase,
    machine: Machine | str,
    max_vram_percent: float = 0.9,
    options: BatchOptions | None = None,
) -> BatchAnswer:
    """Predict the batch size that another GPU would take, without any GPU; nothing is verified.

    Parameters
    ----------
    model, max_vram_percent, options
        As for `find_batch_size`. Only memory is looked at, not time.
    machine
        The GPU, or its name.

    Raises
    ------
    UnknownNameError, InvalidModelError
        If there is no such model or GPU, or the model cannot be run as asked.
    """
    options = options or BatchOptions()
    began_s = time.monotonic()
    case = case_of(model, None, None)
    card = gpu_machine(machine) if isinstance(machine, str) else machine
    cap = MemoryCap(max_vram_percent, options.cap_bytes)
    # A share of a card counts what the driver keeps of it, as the card itself would show it.
    limit_bytes = limit_of(card, cap)

    def margin_bytes(batch_size: int) -> int:
        return limit_bytes - capped_bytes(predict_case(case, card, batch_size), cap)

    search = largest_batch(
        margin_bytes,
        (1, margin_bytes(1)),
        limit=options.rules.largest,
        tolerance_ratio=max(options.rules.tolerance_ratio, _PREDICTED_TO_RATIO),
        budget_s=options.rules.budget_s,
    )
    stop = StopReason.MEMORY if search.complete else StopReason.LIMIT
    if not search.complete and search.largest < options.rules.largest:
        stop = StopReason.TIME
    return BatchAnswer(
        batch_size=search.largest,
        stop=stop,
        verified=False,
        predicted=search.largest,
        limit_bytes=limit_bytes,
        took_s=time.monotonic() - began_s,
    )


def case_of(
    model: nn.Module | Workload | str | WorkloadCase,
    inputs: Any,  # noqa: ANN401
    use: ModuleUse | None,
) -> ProbeCase:
    """Put together what is run.

    Raises
    ------
    ProbeFailedError
        If a module has no inputs, or another model has some.
    """
    if isinstance(model, nn.Module):
        if inputs is None:
            raise ProbeFailedError(
                f"A batch of {type(model).__name__} is needed: give one as inputs, or a function "
                "that makes one of so many items."
            )
        return ModuleCase(
            model, inputs if callable(inputs) else RepeatedBatch(inputs), use or ModuleUse()
        )
    if inputs is not None or use is not None:
        raise ProbeFailedError("Inputs and use are for modules; a workload says all that itself.")
    if isinstance(model, WorkloadCase):
        return model
    return WorkloadCase(Workload(model) if isinstance(model, str) else model)


def _verify(
    found: SearchResult, verifier: ProbeProcess, options: BatchOptions
) -> tuple[ProbeResult | None, list[ProbeResult]]:
    """Run the size that was found, and smaller ones until one holds.

    A size whose every step makes the allocator give memory back and take it again may run out of
    it at any step: it is taken only if none of some smaller ones settles either. The process begins
    with the first; where a size fails and all its memory comes back, the same process goes on with
    an allocator as empty as a new one's. Returns the trial of the size that holds, and all.
    """
    size, back, checks = found.batch_size, 1, list[ProbeResult]()
    restless: ProbeResult | None = None
    while size > 0 and (restless is None or len(checks) < _N_RESTLESS):
        check = verifier.probe(ProbeRequest(size, options.n_verify_steps, options.n_steady_steps))
        checks.append(check)
        if check.ran and check.steady:
            return check, checks
        if check.ran and restless is None:
            restless = check
        size, back = size - back, 2 * back
    return restless, checks


def _raise(
    found: SearchResult,
    checks: list[ProbeResult],
    verifier: ProbeProcess,
    options: BatchOptions,
    began_s: float,
) -> tuple[ProbeResult, list[ProbeResult]]:
    """Try again what the search refused, or what `_verify` left out on its way down.

    Ends at the first size that does not run all the steps of a verification. Returns what
    `_verify` does, which ended with a size that holds.
    """
    held, refused, n_tried = checks[-1], {each.batch_size for each in checks}, len(checks)
    if found.stop is not StopReason.MEMORY:
        return held, checks
    seen = {each.batch_size: each for each in found.probes}
    end_s = began_s + options.raise_until_s
    step = max(int(options.rules.tolerance_ratio * held.batch_size), 1)
    while len(checks) < n_tried + _N_RAISES and time.monotonic() < end_s:
        size = held.batch_size + step
        if size > options.rules.largest or size in refused:
            break
        check = verifier.probe(ProbeRequest(size, options.n_verify_steps, options.n_steady_steps))
        checks.append(check)
        if not check.steady or not is_good(size, {**seen, size: check}, options.rules):
            break
        held = check
    return held, checks


def _answer_kept(kept: dict[str, Any]) -> BatchAnswer:
    """Read an answer from its plain form."""
    trials = {
        name: tuple(ProbeResult(**each) for each in kept.get(name, ()))
        for name in ("searched", "checked")
    }
    return BatchAnswer(**{**kept, "stop": StopReason(kept["stop"]), **trials})


def _answer(
    found: SearchResult, held: ProbeResult | None, checks: Sequence[ProbeResult]
) -> BatchAnswer:
    failures = [each.failure for each in (*found.probes, *checks) if each.failure]
    limit_bytes = max((each.limit_bytes for each in found.probes), default=0)
    n_trials = len(found.probes) + len(checks)
    if held is None:
        if failures and not any(each.out_of_memory for each in (*found.probes, *checks)):
            raise ProbeFailedError(f"No batch size runs: {failures[-1]}")
        return BatchAnswer(
            0, found.stop, verified=False, limit_bytes=limit_bytes, n_trials=n_trials,
            failure=failures[-1] if failures else "",
            searched=found.probes, checked=tuple(checks),
        )  # fmt: skip
    quickest = next((each for each in found.probes if each.batch_size == held.batch_size), held)
    return BatchAnswer(
        batch_size=held.batch_size,
        stop=found.stop if held.batch_size == found.batch_size else StopReason.MEMORY,
        verified=True,
        limit_bytes=limit_bytes,
        peak_allocated_bytes=held.peak_allocated_bytes,
        peak_reserved_bytes=held.peak_reserved_bytes,
        item_s=min(filter(None, (held.item_s, quickest.item_s)), default=None),
        n_verified_steps=held.n_steps,
        steady=held.steady,
        n_trials=n_trials,
        failure=failures[0] if failures and found.stop is StopReason.FAILURE else "",
        searched=found.probes,
        checked=tuple(checks),
    )


def _machine_here(device: int) -> Machine:
    """GPU of this machine as CUDA counts; `reserved_bytes` is what is in use now.

    Asks NVML where that knows enough: PyTorch would initialise CUDA in this process.
    """
    reader = GpuReader(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        snapshot = reader.read()
    finally:
        reader.close()
    used_bytes = 0 if snapshot is None else snapshot.used_bytes or 0
    if snapshot is not None and snapshot.name and snapshot.total_bytes:
        name, total_bytes = snapshot.name, snapshot.total_bytes
        try:
            capability = find_gpu(name).compute_capability
        except UnknownNameError:
            capability = torch.cuda.get_device_capability(device)
    else:
        facts = torch.cuda.get_device_properties(device)
        name, total_bytes = facts.name, facts.total_memory
        capability = (facts.major, facts.minor)
    return Machine(name, name, total_bytes, used_bytes, capability)
