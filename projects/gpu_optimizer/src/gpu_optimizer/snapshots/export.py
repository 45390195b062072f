"""Writes timelines in the structure of PyTorch's memory snapshots.

What `to_snapshot` returns can be opened at https://docs.pytorch.org/memory_viz and with
`python -m torch.cuda._memory_viz`; addresses are those of the simulation.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpu_optimizer.allocator.blocks import Block
from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator.segments import BlockState, Owner, Segment, SegmentBlock
from gpu_optimizer.allocator.simulator import CachingAllocator
from gpu_optimizer.allocator_replay import ReplayOptions, describe_segments, live_owners
from gpu_optimizer.snapshots.records import metadata
from gpu_optimizer.types import CATEGORIES, PHASES, MemoryTimeline

_STATE_NAMES: Final = {
    BlockState.ALLOCATED: "active_allocated",
    BlockState.PENDING: "active_awaiting_free",
    BlockState.FREE: "inactive",
}
_Json = dict[str, Any]


def to_snapshot(
    timeline: MemoryTimeline,
    config: AllocatorConfig | None = None,
    options: ReplayOptions | None = None,
) -> _Json:
    """Replay a timeline and return it as `torch.cuda.memory._snapshot()` would.

    Parameters
    ----------
    timeline, config, options
        As for `replay`; `options.snapshot_after` cuts the timeline there.

    Returns
    -------
    dict
        Plain data. One event is one microsecond. Modules, phases and categories stand in
        `user_metadata`, where `snapshots.files` finds them again, and as one frame for the viewer.
    """
    config = config or AllocatorConfig()
    export = _Export(timeline, config, options or ReplayOptions())
    export.run()
    return {
        "segments": [_segment(segment) for segment in export.segments()],
        "device_traces": [export.trace],
        "external_annotations": [],
        "allocator_settings": _settings(config),
    }


def write_snapshot(snapshot: Mapping[str, Any], path: Path) -> None:
    """Write a snapshot as a pickle that PyTorch's viewer reads, or as JSON.

    Parameters
    ----------
    snapshot
        From `to_snapshot`.
    path
        Ends in ``.json`` for JSON; any other ending: a pickle.
    """
    if path.suffix == ".json":
        path.write_text(json.dumps(snapshot), encoding="utf-8")
    else:
        path.write_bytes(pickle.dumps(dict(snapshot), protocol=4))


class _Export:
    """A replay that writes down every event."""

    def __init__(
        self, timeline: MemoryTimeline, config: AllocatorConfig, options: ReplayOptions
    ) -> None:
        self._timeline = timeline
        self._options = options
        self._device_bytes = config.device_bytes
        self._allocator = CachingAllocator(config, logs=True)
        self._live: dict[int, Block] = {}
        self._n_calls_seen = 0
        self._contexts: dict[tuple[int, int, int], _Json] = {}
        self.trace: list[_Json] = []

    def run(self) -> None:
        timeline, options = self._timeline, self._options
        end = len(timeline) if options.snapshot_after is None else options.snapshot_after + 1
        marks = set(options.empty_cache_before)
        for event in range(min(end, len(timeline))):
            if event in marks:
                self._allocator.empty_cache()
                self._add_device_calls(event, {"frames": []})
            if timeline.size_bytes[event] and not self._step(event):
                return

    def _step(self, event: int) -> bool:
        """Run one event; return whether there was memory for it."""
        timeline = self._timeline
        size_bytes = int(timeline.size_bytes[event])
        number = int(timeline.block[event])
        stream = int(timeline.stream[event])
        context = self._context(event)
        if size_bytes < 0:
            freed = self._live.pop(number)
            row = {"addr": freed.address, "size": -size_bytes, "stream": stream, "time_us": event}
            self._allocator.free(freed)
            self.trace += [
                {"action": action, **row, **context}
                for action in ("free_requested", "free_completed")
            ]
            return True
        pool = self._options.private_pool_of_stream.get(stream, 0)
        block = self._allocator.malloc(size_bytes, stream, pool)
        self._add_device_calls(event, context)
        row = {"size": size_bytes, "stream": stream, "time_us": event, **context}
        if block is None:
            free_bytes = max((self._device_bytes or 0) - self._allocator.reserved_bytes, 0)
            self.trace.append({"action": "oom", "device_free": free_bytes, **row})
            return False
        self._live[number] = block
        self.trace.append({"action": "alloc", "addr": block.address, **row})
        return True

    def segments(self) -> tuple[Segment, ...]:
        addresses = {number: block.address for number, block in self._live.items()}
        return describe_segments(self._allocator, live_owners(self._timeline, addresses))

    def _add_device_calls(self, event: int, context: _Json) -> None:
        calls = self._allocator.device_calls
        for call in calls[self._n_calls_seen :]:
            self.trace.append(
                {
                    "action": call.action,
                    "addr": call.address,
                    "size": call.size_bytes,
                    "stream": call.stream,
                    "time_us": event,
                    **context,
                }
            )
        self._n_calls_seen = len(calls)

    def _context(self, event: int) -> _Json:
        timeline = self._timeline
        key = (
            int(timeline.module[event]),
            int(timeline.phase[event]),
            int(timeline.category[event]),
        )
        if key not in self._contexts:
            owner = Owner(timeline.modules[key[0]], PHASES[key[1]], CATEGORIES[key[2]])
            self._contexts[key] = {
                "frames": [_frame(owner)],
                "user_metadata": metadata(owner, timeline.module_types[key[0]]),
            }
        return self._contexts[key]


def _frame(owner: Owner) -> _Json:
    name = f"{owner.phase} {owner.category} {owner.module}".rstrip()
    return {"filename": owner.module or "timeline", "line": 0, "name": name}


def _segment(segment: Segment) -> _Json:
    live = [block for block in segment.blocks if block.state != BlockState.FREE]
    active_bytes = sum(block.size_bytes for block in live)
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size_bytes,
        "allocated_size": segment.allocated_bytes,
        "active_size": active_bytes,
        "requested_size": sum(block.requested_bytes for block in live),
        "stream": segment.stream,
        "segment_type": str(segment.pool),
        "segment_pool_id": (0, segment.private_pool),
        "is_expandable": segment.is_expandable,
        "frames": [],
        "blocks": [_block(block) for block in segment.blocks],
    }


def _block(block: SegmentBlock) -> _Json:
    return {
        "address": block.address,
        "size": block.size_bytes,
        "requested_size": block.requested_bytes,
        "state": _STATE_NAMES[block.state],
        "frames": [] if block.owner is None else [_frame(block.owner)],
    }


def _settings(config: AllocatorConfig) -> _Json:
    unlimited = config.max_split_size_bytes is None
    return {
        "PYTORCH_CUDA_ALLOC_CONF": config.as_setting(),
        "max_split_size": -1 if unlimited else config.max_split_size_bytes,
        "garbage_collection_threshold": config.garbage_collection_ratio,
        "expandable_segments": config.expandable_segments,
    }
