"""PyTorch's memory snapshots, as `torch.cuda.memory._dump_snapshot` writes them.

Structure: `torch.cuda.memory._snapshot` (torch 2.10 to 2.12). A pickle is read without unpickling,
see `snapshots.plain_pickle`; JSON of the same structure is read too. Unknown fields are skipped.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from gpu_optimizer.allocator.segments import BlockState, Owner, Pool, Segment, SegmentBlock
from gpu_optimizer.bounded.json import JsonLimits, parse_json
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.snapshots.plain_pickle import (
    InvalidSnapshotError,
    SnapshotLimits,
    read_plain_pickle,
)
from gpu_optimizer.snapshots.records import (
    STATES,
    Labels,
    Record,
    as_list,
    as_record,
    integer,
    private_pool,
    text,
)
from gpu_optimizer.types import CATEGORIES, PHASES, MemoryTimeline

_JSON_DEPTH: Final = 12
_RELEASES: Final = frozenset({"segment_free", "segment_unmap"})
_DEVICE_CALLS: Final = _RELEASES | {"segment_alloc", "segment_map"}


@dataclass(frozen=True, slots=True)
class RecordedOom:
    """Memory ran out while the history was recorded."""

    event: int
    """Index in the timeline of the first event after it."""
    requested_bytes: int
    device_free_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What one device's allocator held, and how it came to it."""

    segments: tuple[Segment, ...]
    """By address, when the snapshot was taken."""
    timeline: MemoryTimeline
    """The recorded history; blocks that are older than it come first.

    Frees are where the memory may be used again (`free_completed`). Streams are numbered by first
    use, 0 is the default one. Where nothing better is known, a line of code is the module.
    """
    n_before: int
    """How many events at the start stand for blocks older than the history."""
    cache_releases: tuple[int, ...]
    """Events before which segments were given back: `empty_cache`, or a retry before an OOM."""
    ooms: tuple[RecordedOom, ...]
    device_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sum of the sizes of the history's device calls, by action such as ``segment_alloc``."""
    settings: str = ""
    """`PYTORCH_CUDA_ALLOC_CONF` of the process, where it was recorded."""


def read_snapshot(
    path: Path, device: int | None = None, limits: SnapshotLimits | None = None
) -> Snapshot:
    """Read a snapshot from a pickle or a JSON file.

    Parameters
    ----------
    path
        The form is told from the first byte.
    device
        Index of the GPU; None: the one with the longest history, else with most memory.
    limits
        None: the default ones.

    Raises
    ------
    InvalidSnapshotError
        Not a snapshot, damaged, larger than the limits, or not plain data.
    OSError
        The file cannot be read.
    """
    limits = limits or SnapshotLimits()
    if path.stat().st_size > limits.max_bytes:
        raise InvalidSnapshotError(f"it is larger than {limits.max_bytes:,} bytes.")
    return parse_snapshot(path.read_bytes(), device, limits)


def parse_snapshot(
    data: bytes, device: int | None = None, limits: SnapshotLimits | None = None
) -> Snapshot:
    """Read a snapshot from the bytes of such a file; see `read_snapshot`."""
    limits = limits or SnapshotLimits()
    if data[:1] in {b"{", b"[", b" ", b"\n"}:
        json_limits = JsonLimits(
            n_bytes=limits.max_bytes, n_elements=limits.max_objects, depth=_JSON_DEPTH
        )
        try:
            content = parse_json(data, "snapshot", json_limits)
        except InvalidModelError as error:
            raise InvalidSnapshotError(error.reason) from error
    else:
        content = read_plain_pickle(data, limits)
    return from_structure(content, device, limits)


def from_structure(
    content: object, device: int | None = None, limits: SnapshotLimits | None = None
) -> Snapshot:
    """Convert what `torch.cuda.memory._snapshot()` returns; see `read_snapshot`."""
    root = as_record(content)
    segments = [as_record(item) for item in as_list(root.get("segments"))]
    traces = [as_list(trace) for trace in as_list(root.get("device_traces", []))]
    _check_cost(segments, traces, (limits or SnapshotLimits()).max_objects)
    if device is None:
        device = _main_device(segments, traces)
    labels = Labels()
    history = _History(traces[device] if device < len(traces) else [], labels)
    described = [
        _segment(record, labels) for record in segments if integer(record, "device", 0) == device
    ]
    described.sort(key=lambda segment: segment.address)
    return _assemble(described, history, labels, _settings(root))


def _check_cost(segments: list[Record], traces: list[list[object]], max_records: int) -> None:
    """Count what references expand to: a short file may name one list many times."""
    n_records = sum(len(trace) for trace in traces)
    n_records += sum(len(as_list(segment.get("blocks"))) for segment in segments)
    if n_records > max_records:
        raise InvalidSnapshotError(f"more than {max_records:,} records.")


def _main_device(segments: list[Record], traces: list[list[object]]) -> int:
    lengths = [len(trace) for trace in traces]
    if any(lengths):
        return int(np.argmax(lengths))
    held: Counter[int] = Counter()
    for segment in segments:
        held[integer(segment, "device", 0)] += integer(segment, "total_size")
    return held.most_common(1)[0][0] if held else 0


def _settings(root: Record) -> str:
    settings = root.get("allocator_settings")
    return text(settings, "PYTORCH_CUDA_ALLOC_CONF") if isinstance(settings, dict) else ""


def _segment(record: Record, labels: Labels) -> Segment:
    address = integer(record, "address")
    size_bytes = integer(record, "total_size")
    blocks = []
    position = address
    for item in as_list(record.get("blocks")):
        block = _block(as_record(item), position, labels)
        blocks.append(block)
        position += block.size_bytes
    if position - address != size_bytes:
        raise InvalidSnapshotError("the blocks of a segment do not fill it.")
    return Segment(
        address=address,
        size_bytes=size_bytes,
        stream=labels.stream(record),
        pool=Pool.SMALL if text(record, "segment_type") == "small" else Pool.LARGE,
        is_expandable=record.get("is_expandable") is True,
        private_pool=private_pool(record),
        blocks=tuple(blocks),
    )


def _block(record: Record, address: int, labels: Labels) -> SegmentBlock:
    size_bytes = integer(record, "size")
    state = STATES.get(text(record, "state"))
    if state is None:
        raise InvalidSnapshotError("a block is neither active nor inactive.")
    if state == BlockState.FREE:
        return SegmentBlock(address, size_bytes, 0, state)
    module, phase, category = labels.indices(record)
    owner = Owner(
        labels.modules[module], PHASES[phase], CATEGORIES[category], labels.frames(record)
    )
    requested_bytes = integer(record, "requested_size", size_bytes)
    return SegmentBlock(address, size_bytes, requested_bytes, state, owner)


@dataclass(frozen=True, slots=True)
class _Allocation:
    """An allocation of the history, or one that must have been before it."""

    number: int
    size_bytes: int
    stream: int
    module: int
    phase: int
    category: int

    def row(self, sign: int) -> tuple[int, ...]:
        return (
            sign * self.size_bytes,
            self.number,
            self.module,
            self.phase,
            self.category,
            self.stream,
        )


class _History:
    """Events of a trace as rows of a timeline."""

    def __init__(self, trace: list[object], labels: Labels) -> None:
        self._labels = labels
        self._n_blocks = 0
        self.rows: list[tuple[int, ...]] = []
        self.before: list[_Allocation] = []
        self.live: dict[int, _Allocation] = {}
        """By address."""
        self.releases: list[int] = []
        self.ooms: list[RecordedOom] = []
        self.device_bytes: Counter[str] = Counter()
        records = [as_record(item) for item in trace]
        # Between the two events of a free, other streams may still use the block.
        completes = any(record.get("action") == "free_completed" for record in records)
        self._free_action = "free_completed" if completes else "free_requested"
        self.pending_are_freed = not completes
        for record in records:
            self._step(text(record, "action"), record)

    def _step(self, action: str, record: Record) -> None:
        if action == "alloc":
            address = integer(record, "addr")
            older = self.live.pop(address, None)
            if older is not None:
                self.rows.append(older.row(-1))
            allocation = self.allocation(record, integer(record, "size"))
            self.live[address] = allocation
            self.rows.append(allocation.row(1))
        elif action == self._free_action:
            freed = self.live.pop(integer(record, "addr"), None)
            if freed is None:
                freed = self.allocation(record, integer(record, "size"))
                self.before.append(freed)
            self.rows.append(freed.row(-1))
        elif action == "oom":
            free_bytes = integer(record, "device_free", 0)
            self.ooms.append(RecordedOom(len(self.rows), integer(record, "size"), free_bytes))
        elif action in _DEVICE_CALLS:
            self.device_bytes[action] += integer(record, "size")
            is_new = not self.releases or self.releases[-1] != len(self.rows)
            if action in _RELEASES and is_new:
                self.releases.append(len(self.rows))

    def allocation(self, record: Record, size_bytes: int) -> _Allocation:
        """Number one more allocation."""
        self._n_blocks += 1
        stream = self._labels.stream(record)
        return _Allocation(self._n_blocks - 1, size_bytes, stream, *self._labels.indices(record))

    def older_block(self, segment: Segment, block: SegmentBlock, labels: Labels) -> _Allocation:
        """Number a block that is live though the history does not have it."""
        owner = block.owner or Owner()
        module = labels.modules.index(owner.module)
        self._n_blocks += 1
        allocation = _Allocation(
            self._n_blocks - 1,
            block.requested_bytes,
            segment.stream,
            module,
            PHASES.index(owner.phase),
            CATEGORIES.index(owner.category),
        )
        self.before.append(allocation)
        return allocation


def _assemble(
    segments: list[Segment], history: _History, labels: Labels, settings: str
) -> Snapshot:
    """Bring history and segments together: number the blocks, add what is older."""
    numbered = []
    for segment in segments:
        blocks = []
        for block in segment.blocks:
            if block.state == BlockState.FREE or block.owner is None:
                blocks.append(block)
                continue
            found = history.live.get(block.address)
            if found is None and block.state == BlockState.PENDING and history.pending_are_freed:
                blocks.append(block)
                continue
            if found is None:
                found = history.older_block(segment, block, labels)
            owner = Owner(
                labels.modules[found.module],
                PHASES[found.phase],
                CATEGORIES[found.category],
                block.owner.frames,
            )
            blocks.append(replace(block, owner=owner, number=found.number))
        numbered.append(replace(segment, blocks=tuple(blocks)))
    rows = [allocation.row(1) for allocation in history.before] + history.rows
    n_before = len(history.before)
    return Snapshot(
        segments=tuple(numbered),
        timeline=_timeline(rows, labels),
        n_before=n_before,
        cache_releases=tuple(event + n_before for event in history.releases),
        ooms=tuple(replace(oom, event=oom.event + n_before) for oom in history.ooms),
        device_bytes=dict(history.device_bytes),
        settings=settings,
    )


def _timeline(rows: list[tuple[int, ...]], labels: Labels) -> MemoryTimeline:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    size_bytes, block, module, phase, category, stream = (column.copy() for column in columns)
    return MemoryTimeline(
        size_bytes=size_bytes,
        block=block,
        module=module.astype(np.int32),
        phase=phase.astype(np.int8),
        category=category.astype(np.int8),
        modules=labels.modules,
        module_types=labels.module_types,
        stream=stream.astype(np.int32),
    )
