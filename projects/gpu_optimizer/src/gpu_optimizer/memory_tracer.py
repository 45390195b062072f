"""Where the bytes of a run on a GPU go: every allocation and free, by module, phase and category.

``history`` mode costs little enough to stay on: PyTorch notes each allocation and free without a
call stack (about 0.2 us each), every module is bracketed by two labels (about 1 us per call), and
the backward pass reports from blocks only, the modules that have submodules (3 to 10 us each). On a
step that keeps the GPU busy all of it hides behind the kernels. What it cannot tell is which leaf
of a block a temporary of the backward pass belongs to; gradients it can, since they lie where the
optimizer finds them.

``exact`` mode follows the backward pass node by node (3 to 10 us per operation), and PyTorch takes
a Python call stack at each allocation and free (2 us and more each, and kilobytes of host memory
until the trace ends): expect some ten percent on small steps.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from gpu_optimizer.allocator.segments import Segment
from gpu_optimizer.layers.module_spans import ModuleSpans, Sighting
from gpu_optimizer.layers.tables import layer_tree
from gpu_optimizer.reports.timeline import PageFacts, write_timeline_html, write_timeline_json
from gpu_optimizer.snapshots.export import write_snapshot
from gpu_optimizer.snapshots.files import from_structure
from gpu_optimizer.snapshots.history import (
    AllocatorCounts,
    AllocatorHistory,
    CudaHistory,
    DeviceUse,
)
from gpu_optimizer.snapshots.labels import LabelledHistory, Spans, label_history
from gpu_optimizer.snapshots.plain_pickle import SnapshotLimits
from gpu_optimizer.types import LayerMemory, MemoryTimeline
from shared_utils.machine import no_garbage_collection

_MAX_RECORDS = 1 << 40
"""A history of our own process is trusted."""


class TraceMode(StrEnum):
    """How much is written down; see the module's text for what it costs."""

    HISTORY = "history"
    EXACT = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTrace:
    """What a tracer saw."""

    timeline: MemoryTimeline
    """Blocks that are older than the trace come first."""
    n_before: int
    """How many events at the start stand for such blocks."""
    reserved_bytes: Int64[np.ndarray, "events"]
    """Held by the allocator after each event."""
    layers: LayerMemory
    """Of the last step in the trace."""
    segments: tuple[Segment, ...]
    """At the end."""
    before: AllocatorCounts
    after: AllocatorCounts
    device_before: DeviceUse | None
    device_after: DeviceUse | None
    missed_bytes: int
    """By how much recorded allocations and frees differ from the allocator's own sums."""
    snapshot: dict[str, Any]
    """As `torch.cuda.memory._snapshot` returned it, with modules and categories written in."""

    @property
    def allocated_peak_bytes(self) -> int:
        """Most that was allocated at once, as the allocator rounds."""
        return self.after.allocated_peak_bytes

    @property
    def reserved_peak_bytes(self) -> int:
        """Most that the allocator held."""
        return self.after.reserved_peak_bytes

    @property
    def device_peak_bytes(self) -> int | None:
        """Most that the card's memory was filled, all processes counted.

        The driver was asked before and after; in between everything outside of the allocator is
        taken to be what it was at the fuller of the two moments.
        """
        uses = [use.outside_bytes for use in (self.device_before, self.device_after) if use]
        return max(uses) + self.reserved_peak_bytes if uses else None

    def to_html(self, path: Path | str, title: str = "Memory") -> None:
        """Write a page that draws the timeline; it needs nothing from the network."""
        facts = PageFacts(title, self.reserved_bytes, self.n_before, self.device_peak_bytes)
        write_timeline_html(self.timeline, Path(path), facts)

    def to_json(self, path: Path | str) -> None:
        """Write the timeline as columns."""
        write_timeline_json(self.timeline, Path(path), self.reserved_bytes)

    def to_snapshot(self, path: Path | str) -> None:
        """Write the record in PyTorch's form, for https://docs.pytorch.org/memory_viz.

        Parameters
        ----------
        path
            Ends in ``.json`` for JSON; any other ending: a pickle.
        """
        write_snapshot(self.snapshot, Path(path))


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """The record at one moment, before anyone made sense of it."""

    content: dict[str, Any]
    counts: AllocatorCounts
    device_use: DeviceUse | None
    label: str
    """Of the module that was running."""
    sightings: tuple[Sighting, ...]
    step_start: int | None


class MemoryTracer:
    """Records what a model allocates while it runs inside the ``with`` block.

    ``trace`` holds the result once the block is left, also when an exception leaves it.

    Parameters
    ----------
    model
        Run in eager mode on one CUDA device; must not be copied inside the block.
    optimizer
        If it has state already; one that steps for the first time is noticed by itself.
    mode
        ``history`` or ``exact``.
    history
        Where allocations are recorded; None: PyTorch's allocator on the model's device.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    HistoryInUseError
        On entering: something else records the history.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        mode: TraceMode | str = TraceMode.HISTORY,
        history: AllocatorHistory | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._exact = TraceMode(mode) is TraceMode.EXACT
        self._history = history or CudaHistory(cuda_index(model))
        self._trace: MemoryTrace | None = None
        self._before: AllocatorCounts | None = None
        self._device_before: DeviceUse | None = None
        record = self._history
        self.spans = ModuleSpans(model, record.mark, record.n_allocations, every_node=self._exact)
        """Tells which module is running."""

    @property
    def trace(self) -> MemoryTrace:
        """What was seen.

        Raises
        ------
        RuntimeError
            The block has not been left yet.
        """
        if self._trace is None:
            raise RuntimeError("The trace is complete once the with block is left.")
        return self._trace

    def __enter__(self) -> "MemoryTracer":  # noqa: PYI034 -- the checker of shapes refuses Self
        self._device_before = self._history.device_use()
        with no_garbage_collection():
            self._history.start(stacks=self._exact)
            self._before = self._history.counts()
        if self._optimizer is not None:
            self.spans.see_state(self._optimizer)
        self.spans.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.spans.__exit__(kind, error, traceback)
            self._trace = self.look(interrupted=error is not None)
        finally:
            self._history.stop()

    def close(self) -> None:
        """End without a trace, instead of leaving the block."""
        try:
            self.spans.__exit__(None, None, None)
        finally:
            self._history.stop()

    def look(self, *, interrupted: bool = True) -> MemoryTrace:
        """What has been seen so far, inside the block; see `interpret`."""
        return self.interpret(self.capture(), interrupted=interrupted)

    def capture(self) -> Capture:
        """Read the record as it is at this moment; making sense of it can wait."""
        self.spans.see_model()
        with no_garbage_collection():
            counts, content = self._history.counts(), self._history.snapshot()
        return Capture(
            content=content,
            counts=counts,
            device_use=self._history.device_use(),
            label=self.spans.label,
            sightings=self.spans.sightings,
            step_start=self.spans.step_start,
        )

    def interpret(self, capture: Capture, *, interrupted: bool) -> MemoryTrace:
        """Work out who allocated what.

        Parameters
        ----------
        capture
            Is used up: owners are written into its records.
        interrupted
            Whether the step was not at its end: what the forward pass left is then for the backward
            pass still to come, and not a result.
        """
        if self._before is None:
            raise RuntimeError("The tracer has not been entered.")
        content, after = capture.content, capture.counts
        spans = Spans(
            self.spans.span,
            self.spans.modules,
            self.spans.module_types,
            capture.sightings,
            after.n_allocations,
            capture.step_start,
            interrupted and self.spans.keeps_graph,
        )
        labelled = label_history(content, self._history.device, spans)
        limits = SnapshotLimits(max_objects=_MAX_RECORDS)
        parsed = from_structure(content, self._history.device, limits)
        n_before = parsed.n_before
        timeline = _timeline(parsed.timeline, n_before, labelled, spans)
        now_bytes = labelled.reserved_bytes
        start_bytes = self._before.reserved_bytes
        return MemoryTrace(
            timeline=timeline,
            n_before=n_before,
            reserved_bytes=np.concatenate([np.full(n_before, start_bytes, np.int64), now_bytes]),
            layers=layer_tree(
                timeline,
                np.zeros(len(timeline.modules), np.int64),
                n_before + labelled.last_step_row,
            ),
            segments=parsed.segments,
            before=self._before,
            after=after,
            device_before=self._device_before,
            device_after=capture.device_use,
            missed_bytes=_missed_bytes(self._before, after, labelled),
            snapshot=content,
        )


def cuda_index(model: nn.Module) -> int | None:
    """CUDA device on which a model's parameters are; None: on no particular one."""
    for parameter in model.parameters():
        if parameter.is_cuda:
            return parameter.device.index
    return None


def _timeline(
    parsed: MemoryTimeline, n_before: int, labelled: LabelledHistory, spans: Spans
) -> MemoryTimeline:
    """Number modules as the model does, and say of frees who was running."""
    numbers = {name: number for number, name in enumerate(spans.modules)}
    module = np.array([numbers[name] for name in parsed.modules], np.int32)[parsed.module]
    phase = parsed.phase.copy()
    frees = np.flatnonzero(parsed.size_bytes[n_before:] < 0)
    module[n_before + frees] = labelled.module[frees]
    phase[n_before:] = labelled.phase
    return replace(
        parsed,
        module=module,
        phase=phase,
        modules=spans.modules,
        module_types=spans.module_types,
    )


def _missed_bytes(
    before: AllocatorCounts, after: AllocatorCounts, labelled: LabelledHistory
) -> int:
    allocated_bytes = after.requested_total_bytes - before.requested_total_bytes
    freed_bytes = after.freed_total_bytes - before.freed_total_bytes
    return abs(allocated_bytes - labelled.recorded_bytes) + abs(freed_bytes - labelled.freed_bytes)
