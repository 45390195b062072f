"""Explains why a CUDA run is out of memory: who asked, what holds the memory, and what helps."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn

from gpu_optimizer.allocator.segments import BlockState
from gpu_optimizer.cuda_analyzer import analyze
from gpu_optimizer.memory_tracer import Capture, MemoryTrace, MemoryTracer, cuda_index
from gpu_optimizer.remedies.out_of_memory import Fix, Situation, rank_fixes
from gpu_optimizer.snapshots.history import AllocatorHistory, CudaHistory
from gpu_optimizer.types import Category, Phase
from shared_utils.units import format_bytes

_MAX_ENTRIES: Final = 300_000
"""Events that are kept; of a longer run the last ones, and of older blocks what lies where."""
_N_MODULES: Final = 5
_N_FIXES: Final = 6


@dataclass(frozen=True, slots=True)
class Holder:
    """A module and the memory it has allocated that is still live."""

    module: str
    n_bytes: int
    mostly: Category


@dataclass(frozen=True, slots=True)
class OomReport:
    """State of the device when memory ran out."""

    module: str
    """Who asked; empty: outside of all modules."""
    phase: Phase
    requested_bytes: int
    """0: not known."""
    device_bytes: int
    """Of the whole card; 0: not known."""
    free_bytes: int
    """On the card, for anyone; 0 also where it is not known."""
    allocated_bytes: int
    reserved_bytes: int
    largest_free_bytes: int
    """Largest piece of what is reserved and not allocated."""
    outside_bytes: int
    """CUDA contexts, libraries and other processes."""
    by_category_bytes: Mapping[Category, int]
    """Live blocks, largest first."""
    holders: tuple[Holder, ...]
    """Modules that hold most."""
    fixes: tuple[Fix, ...]
    """Best first."""

    @property
    def unallocated_bytes(self) -> int:
        """Reserved by PyTorch and not allocated: fragmentation."""
        return self.reserved_bytes - self.allocated_bytes

    def text(self) -> str:
        """Explain in a few lines."""
        where = f"{self.module or 'code outside of the modules'}, {self.phase} phase"
        lines = [
            f"Out of memory in {where}: {format_bytes(self.requested_bytes)} more were asked for."
        ]
        if self.device_bytes:
            lines.append(
                f"The card has {format_bytes(self.device_bytes)}, "
                f"{format_bytes(self.free_bytes)} free; PyTorch holds "
                f"{format_bytes(self.reserved_bytes)}, CUDA contexts and other processes "
                f"{format_bytes(self.outside_bytes)}."
            )
        lines.append(
            f"PyTorch has {format_bytes(self.unallocated_bytes)} reserved but not allocated, "
            f"the largest piece {format_bytes(self.largest_free_bytes)}."
        )
        held = [
            f"{name.replace('_', ' ')} {format_bytes(n)}"
            for name, n in self.by_category_bytes.items()
        ]
        lines.append("Held: " + (", ".join(held) or "nothing") + ".")
        for holder in self.holders:
            name = holder.module or "outside of the modules"
            kind = holder.mostly.replace("_", " ")
            lines.append(f"  {name}: {format_bytes(holder.n_bytes)}, mostly {kind}")
        lines.append("What helps (gains are upper bounds and do not add up):")
        for number, fix in enumerate(self.fixes[:_N_FIXES], start=1):
            verdict = "enough" if fix.enough else "not enough alone"
            lines.append(f"  {number}. {fix.how}: up to {format_bytes(fix.gain_bytes)}, {verdict}")
        return "\n".join(lines)


class oom_report:  # noqa: N801 -- reads as a function where it is used
    """Explain an out-of-memory error that leaves the ``with`` block.

    The error goes on, with the explanation as a note, which Python prints beneath it, and as its
    attribute ``oom_report``. Costs what `MemoryTracer` costs in ``history`` mode.

    Parameters
    ----------
    model
        Run inside the block.
    optimizer
        If it has state already.
    history
        Where allocations are recorded; None: PyTorch's allocator on the model's device.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    HistoryInUseError
        On entering: a tracer is active already.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        history: AllocatorHistory | None = None,
    ) -> None:
        self._model = model
        record = history or CudaHistory(cuda_index(model), _MAX_ENTRIES)
        self._tracer = MemoryTracer(model, optimizer, history=record)
        self._watches_cuda = history is None
        self._capture: Capture | None = None
        self.report: OomReport | None = None
        """None: memory did not run out."""

    def __enter__(self) -> "oom_report":  # noqa: PYI034 -- the checker of shapes refuses Self
        self._tracer.__enter__()
        if self._watches_cuda:
            _watch(self._notice)
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if self._watches_cuda:
            _watchers.remove(self._notice)
        try:
            if isinstance(error, torch.OutOfMemoryError):
                self._explain(error)
        finally:
            self._tracer.close()

    def _notice(self) -> None:
        """Keep what is there now: until the error gets out, activations are gone."""
        self._capture = self._tracer.capture()

    def _explain(self, error: torch.OutOfMemoryError) -> None:
        spans = self._tracer.spans
        label = spans.failed_at or spans.label
        capture = self._capture
        if capture is None:
            capture = self._tracer.capture()
        elif not spans.failed_at:
            label = capture.label
        oom = _last_oom(capture.content)
        trace = self._tracer.interpret(capture, interrupted=True)
        span = spans.span(label)
        self.report = make_report(self._model, trace, spans.modules[span.module], span.phase, oom)
        error.add_note(self.report.text())
        # Programs find it here; the class of the error is PyTorch's and declares no such field.
        setattr(error, "oom_report", self.report)  # noqa: B010


def make_report(
    model: nn.Module, trace: MemoryTrace, module: str, phase: Phase, oom: Mapping[str, int]
) -> OomReport:
    """Explain a trace that ended because memory ran out.

    Parameters
    ----------
    model
        Asked for its precision and whether it is in training.
    trace
        Up to the moment.
    module, phase
        Who asked for memory.
    oom
        The allocator's event: ``size`` and ``device_free``; empty: there is none.
    """
    held: Counter[Category] = Counter()
    by_module: dict[str, Counter[Category]] = {}
    largest_bytes = 0
    for block in (block for segment in trace.segments for block in segment.blocks):
        if block.state is BlockState.FREE or block.owner is None:
            continue
        category = block.owner.category
        held[category] += block.size_bytes
        by_module.setdefault(block.owner.module, Counter())[category] += block.size_bytes
        if category is Category.ACTIVATION:
            largest_bytes = max(largest_bytes, block.size_bytes)
    use = trace.device_after
    requested_bytes, free_bytes = oom.get("size", 0), oom.get("device_free", 0)
    outside_bytes = use.outside_bytes if use else 0
    reserved_bytes, allocated_bytes = trace.after.reserved_bytes, trace.after.allocated_bytes
    situation = Situation(
        by_category_bytes=held,
        layers=trace.layers,
        largest_activation_bytes=largest_bytes,
        unallocated_bytes=reserved_bytes - allocated_bytes,
        outside_bytes=outside_bytes,
        missing_bytes=max(requested_bytes - free_bytes, 1),
        training=model.training,
        full_precision=_is_full_precision(model),
        expandable_segments=any(segment.is_expandable for segment in trace.segments),
    )
    holders = [
        Holder(name, sum(sizes.values()), sizes.most_common(1)[0][0])
        for name, sizes in by_module.items()
    ]
    return OomReport(
        module=module,
        phase=phase,
        requested_bytes=requested_bytes,
        device_bytes=use.total_bytes if use else 0,
        free_bytes=free_bytes,
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved_bytes,
        largest_free_bytes=analyze(trace.segments).largest_free_bytes,
        outside_bytes=outside_bytes,
        by_category_bytes=dict(held.most_common()),
        holders=tuple(sorted(holders, key=lambda holder: -holder.n_bytes)[:_N_MODULES]),
        fixes=rank_fixes(situation),
    )


# PyTorch calls observers from the thread that runs out of memory, and has no way to take one back.
_watchers: list[Callable[[], None]] = []
_is_attached: list[bool] = []


def _watch(watcher: Callable[[], None]) -> None:
    _watchers.append(watcher)
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)  # noqa: SLF001
    if attach is not None and not _is_attached:
        attach(_tell_watchers)
        _is_attached.append(True)


def _tell_watchers(*_: int) -> None:
    for watcher in tuple(_watchers):
        watcher()


def _last_oom(content: dict[str, Any]) -> dict[str, int]:
    found = [
        each for trace in content["device_traces"] for each in trace if each["action"] == "oom"
    ]
    if not found:
        return {}
    return {key: int(found[-1].get(key, 0)) for key in ("size", "device_free")}


def _is_full_precision(model: nn.Module) -> bool:
    first = next(model.parameters(), None)
    is_fp32 = first is not None and first.dtype == torch.float32
    return is_fp32 and not torch.is_autocast_enabled("cuda")
