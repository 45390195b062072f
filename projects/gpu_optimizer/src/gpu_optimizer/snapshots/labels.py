"""Tells of every recorded allocation which module made it, in which phase, and what it is for.

Works on the structure of `torch.cuda.memory._snapshot()`, whose events carry the labels of
`layers.module_spans`. What a block is for follows from where known tensors lie (parameters,
gradients, the optimizer's state, inputs) and from how long it lives: what the forward pass leaves
for the backward pass is an activation, what is gone before is workspace.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from gpu_optimizer.allocator.segments import Owner
from gpu_optimizer.layers.module_spans import Sighting, Span
from gpu_optimizer.snapshots.records import metadata
from gpu_optimizer.types import CATEGORIES, PHASES, Category, Phase

Record = dict[str, Any]

_UNKNOWN: Final = -1
_GROWS: Final = frozenset({"segment_alloc", "segment_map"})
_SHRINKS: Final = frozenset({"segment_free", "segment_unmap"})
_ALIVE: Final = frozenset({"active_allocated", "active_awaiting_free", "active_pending_free"})


@dataclass(frozen=True, slots=True)
class Spans:
    """What `ModuleSpans` saw."""

    span: Callable[[str], Span]
    modules: tuple[str, ...]
    module_types: tuple[str, ...]
    sightings: Sequence[Sighting]
    now: int = 0
    """Clock of the sightings when the record was read: the number of allocations so far."""
    step_start: int | None = None
    """What the clock said when the model itself was last called; None: it was not."""
    interrupted: bool = False
    """Whether the recording ended in the middle of a training step."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledHistory:
    """Each row of the timeline that `snapshots.files` makes of the labelled record."""

    module: Int64[np.ndarray, "rows"]
    """Number of the module that was running, whether it allocates or frees."""
    phase: Int64[np.ndarray, "rows"]
    reserved_bytes: Int64[np.ndarray, "rows"]
    """Held by the allocator after the event."""
    last_step_row: int
    """With which the last call of the model begins."""
    recorded_bytes: int
    """Sum of all recorded allocations."""
    freed_bytes: int
    """Sum of all recorded frees."""
    n_allocations: int


@dataclass(slots=True)
class _Blocks:
    """Allocations, as columns; times are indices of records, -1: before the first."""

    address: list[int] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)
    born: list[int] = field(default_factory=list)
    dies: list[int] = field(default_factory=list)
    records: list[list[Record]] = field(default_factory=list)

    def add(self, record: Record, size_bytes: int, born: int, dies: int) -> int:
        self.address.append(record["addr"] if "addr" in record else record["address"])
        self.size_bytes.append(size_bytes)
        self.born.append(born)
        self.dies.append(dies)
        self.records.append([record])
        return len(self.address) - 1


def label_history(content: Record, device: int, spans: Spans) -> LabelledHistory:
    """Write owners into a snapshot's records and segments, in place.

    Parameters
    ----------
    content
        From `torch.cuda.memory._snapshot()`. The labels in `user_metadata` are replaced by what
        `snapshots.files` reads; events without a call stack get a frame for PyTorch's viewer.
    device
        Index of the GPU.
    spans
        Meaning of the labels.
    """
    return _Labelling(content, device, spans).run()


class _Labelling:
    """One run of `label_history`."""

    def __init__(self, content: Record, device: int, spans: Spans) -> None:
        traces = content["device_traces"]
        self._records: list[Record] = traces[device] if device < len(traces) else []
        self._segments = [each for each in content["segments"] if each.get("device", 0) == device]
        self._spans = spans
        self._blocks = _Blocks()
        self._live: dict[int, int] = {}
        self._rows: list[int] = []
        """Index of the record that each row of the timeline stands for."""
        known: dict[str, Span] = {}
        labels = [record.get("user_metadata", "") for record in self._records]
        for label in set(labels):
            known[label] = spans.span(label)
        each = [known[label] for label in labels]
        self._module = np.array([span.module for span in each], np.int64)
        self._phase = np.array([PHASES.index(span.phase) for span in each], np.int64)
        self._recomputed = np.array([span.recomputed for span in each], bool)
        allocations = [i for i, record in enumerate(self._records) if record["action"] == "alloc"]
        self._allocations = np.array(allocations, np.int64)
        self._sums: Counter[str] = Counter()

    def run(self) -> LabelledHistory:
        self._read_records()
        self._read_segments()
        module, phase, category = self._owners()
        self._write(module, phase, category)
        rows = np.array(self._rows, np.int64)
        return LabelledHistory(
            module=self._module[rows],
            phase=self._phase[rows],
            reserved_bytes=self._reserved_bytes()[rows],
            last_step_row=int(np.searchsorted(rows, self._last_step())),
            recorded_bytes=self._sums["alloc"],
            freed_bytes=self._sums["free"],
            n_allocations=self._sums["n"],
        )

    def _read_records(self) -> None:
        completes = any(each["action"] == "free_completed" for each in self._records)
        last_action = "free_completed" if completes else "free_requested"
        blocks, live, end = self._blocks, self._live, len(self._records)
        for index, record in enumerate(self._records):
            action = record["action"]
            if action == "alloc":
                replaced = live.pop(record["addr"], None)
                if replaced is not None:
                    blocks.dies[replaced] = index
                    self._rows.append(index)
                live[record["addr"]] = blocks.add(record, record["size"], index, end)
                self._rows.append(index)
                self._sums["alloc"] += record["size"]
                self._sums["n"] += 1
            elif action in {"free_requested", "free_completed"}:
                known = live.get(record["addr"])
                if known is None:
                    known = live[record["addr"]] = blocks.add(record, record["size"], -1, end)
                else:
                    blocks.records[known].append(record)
                if action == last_action:
                    del live[record["addr"]]
                    blocks.dies[known] = index
                    self._rows.append(index)
                    self._sums["free"] += record["size"]

    def _read_segments(self) -> None:
        end = len(self._records)
        for segment in self._segments:
            for block in segment["blocks"]:
                if block["state"] not in _ALIVE:
                    continue
                known = self._live.get(block["address"])
                if known is None:
                    self._blocks.add(block, block["requested_size"], -1, end)
                else:
                    self._blocks.records[known].append(block)

    def _owners(
        self,
    ) -> tuple[
        Int64[np.ndarray, "blocks"], Int64[np.ndarray, "blocks"], Int64[np.ndarray, "blocks"]
    ]:
        """Module, phase and category of each block."""
        born = np.array(self._blocks.born, np.int64)
        dies = np.array(self._blocks.dies, np.int64)
        older = born < 0
        # With no records there is nothing to index; all blocks are older then.
        modules, phases = np.append(self._module, 0), np.append(self._phase, 0)
        module = np.where(older, 0, modules[born])
        phase = np.where(older, PHASES.index(Phase.SETUP), phases[born])
        category = np.full(len(born), _UNKNOWN)
        for sighting in self._spans.sightings:
            self._apply(sighting, born, dies, module, category)
        self._find_activations(born, dies, phase, category)
        if not (self._phase == PHASES.index(Phase.BACKWARD)).any():
            self._find_results(born, dies, category)
        category[(category == _UNKNOWN) & older] = CATEGORIES.index(Category.OTHER)
        category[category == _UNKNOWN] = CATEGORIES.index(Category.WORKSPACE)
        return module, phase, category

    def _apply(
        self,
        sighting: Sighting,
        born: Int64[np.ndarray, "blocks"],
        dies: Int64[np.ndarray, "blocks"],
        module: Int64[np.ndarray, "blocks"],
        category: Int64[np.ndarray, "blocks"],
    ) -> None:
        """Label the blocks in which tensors were seen; the first label of a block stays."""
        if not sighting.addresses:
            return
        moment = self._index(sighting.moment)
        live = np.flatnonzero((born < moment) & (dies >= moment))
        if not len(live):
            return
        starts = np.array(self._blocks.address, np.uint64)[live].astype(np.int64)
        ends = starts + np.array(self._blocks.size_bytes, np.int64)[live]
        by_address = np.argsort(starts)
        wanted = np.array(sighting.addresses, np.int64)
        place = np.searchsorted(starts[by_address], wanted, side="right") - 1
        found = by_address[np.maximum(place, 0)]
        inside = (place >= 0) & (wanted < ends[found])
        block = live[found[inside]]
        new = category[block] == _UNKNOWN
        category[block[new]] = CATEGORIES.index(sighting.category)
        if sighting.modules is not None:
            module[block[new]] = np.array(sighting.modules)[inside][new]

    def _index(self, moment: int) -> int:
        """Index of the first record after a moment."""
        n_before = len(self._allocations) - (self._spans.now - moment)
        return int(self._allocations[n_before - 1]) + 1 if n_before > 0 else 0

    def _last_step(self) -> int:
        start = self._spans.step_start
        return 0 if start is None else self._index(start)

    def _find_activations(
        self,
        born: Int64[np.ndarray, "blocks"],
        dies: Int64[np.ndarray, "blocks"],
        phase: Int64[np.ndarray, "blocks"],
        category: Int64[np.ndarray, "blocks"],
    ) -> None:
        """Label what is alive when a backward pass begins, or a recomputation ends.

        What then stays to the end of the record is rather a library's workspace or a result.
        """
        end = len(self._records)
        ends = (dies < end) | self._spans.interrupted
        forward = (phase == PHASES.index(Phase.FORWARD)) & ends
        in_backward = self._phase == PHASES.index(Phase.BACKWARD)
        for start, _ in _runs(in_backward):
            kept = forward & (born < start) & (dies >= start) & (category == _UNKNOWN)
            category[kept] = CATEGORIES.index(Category.ACTIVATION)
        if self._spans.interrupted:
            kept = forward & (born >= self._last_step()) & (dies >= end) & (category == _UNKNOWN)
            category[kept] = CATEGORIES.index(Category.ACTIVATION)
        for start, stop in _runs(self._recomputed):
            kept = ends & (born >= start) & (born < stop) & (dies >= stop)
            category[kept & (category == _UNKNOWN)] = CATEGORIES.index(Category.ACTIVATION)

    def _find_results(
        self,
        born: Int64[np.ndarray, "blocks"],
        dies: Int64[np.ndarray, "blocks"],
        category: Int64[np.ndarray, "blocks"],
    ) -> None:
        """Label what inference leaves."""
        for start, stop in _runs(self._phase == PHASES.index(Phase.FORWARD)):
            kept = (born >= start) & (born < stop) & (dies >= stop) & (category == _UNKNOWN)
            category[kept] = CATEGORIES.index(Category.OTHER)

    def _write(
        self,
        module: Int64[np.ndarray, "blocks"],
        phase: Int64[np.ndarray, "blocks"],
        category: Int64[np.ndarray, "blocks"],
    ) -> None:
        names, kinds = self._spans.modules, self._spans.module_types
        known: dict[tuple[int, int, int], tuple[str, Record]] = {}
        keys = zip(module.tolist(), phase.tolist(), category.tolist(), strict=True)
        for key, records in zip(keys, self._blocks.records, strict=True):
            if key not in known:
                owner = Owner(names[key[0]], PHASES[key[1]], CATEGORIES[key[2]])
                line = f"{owner.phase} {owner.category} {owner.module}".rstrip()
                frame = {"filename": owner.module or kinds[0], "line": 0, "name": line}
                known[key] = (metadata(owner, kinds[key[0]]), frame)
            text, frame = known[key]
            for record in records:
                record["user_metadata"] = text
                record["frames"] = [frame, *record.get("frames", ())]

    def _reserved_bytes(self) -> Int64[np.ndarray, "records"]:
        """Reserved after each record, from what is reserved now."""
        signs = {**dict.fromkeys(_GROWS, 1), **dict.fromkeys(_SHRINKS, -1)}
        changes = [signs.get(each["action"], 0) * each["size"] for each in self._records]
        grown = np.cumsum(np.array(changes, np.int64))
        now = sum(segment["total_size"] for segment in self._segments)
        after: Int64[np.ndarray, "records"] = grown[-1] - grown if len(grown) else grown
        return np.asarray(now - after)


def _runs(flags: Bool[np.ndarray, "records"]) -> list[tuple[int, int]]:
    """First and last but one index of each run of true values."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
