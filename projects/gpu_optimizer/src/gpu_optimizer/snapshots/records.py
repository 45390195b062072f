"""Fields of the records of a memory snapshot: checked one by one, since anyone may have made it."""

from collections.abc import Mapping
from typing import Final

from gpu_optimizer.allocator.segments import BlockState, Owner
from gpu_optimizer.snapshots.plain_pickle import InvalidSnapshotError
from gpu_optimizer.types import CATEGORIES, PHASES, Category, Phase

METADATA_PREFIX: Final = "gpu_optimizer"
"""Begins the `user_metadata` of allocations that this package has labelled."""
CALL_SITE: Final = "call site"
"""Stands for the class name where a line of code stands for the module."""

STATES: Final = {
    "active_allocated": BlockState.ALLOCATED,
    "active_awaiting_free": BlockState.PENDING,
    "active_pending_free": BlockState.PENDING,
    "inactive": BlockState.FREE,
}

_MAX_FRAMES: Final = 64
_MAX_NUMBER: Final = (1 << 63) - 1
_LIBRARY_PARTS: Final = ("/torch/", "/transformers/", "/torchvision/", "??")

Record = Mapping[str, object]


def as_record(value: object) -> Record:
    """Return a dictionary, or refuse."""
    if not isinstance(value, dict):
        raise InvalidSnapshotError("a record is missing.")
    return value


def as_list(value: object) -> list[object]:
    """Return a list, or refuse."""
    if not isinstance(value, list):
        raise InvalidSnapshotError("a list is missing.")
    return value


def integer(record: Record, key: str, default: int | None = None) -> int:
    """Return a number of bytes, an address or an index, or refuse."""
    value = record.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBER:
        raise InvalidSnapshotError(f"{key} is not a number of bytes, an address or an index.")
    return value


def text(record: Record, key: str) -> str:
    """Return a text; empty where there is none."""
    value = record.get(key, "")
    return value if isinstance(value, str) else ""


def private_pool(record: Record) -> int:
    """Return one number for a pool's pair of numbers; 0: the common pool."""
    pair = record.get("segment_pool_id", (0, 0))
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InvalidSnapshotError("segment_pool_id is not a pair.")
    first, second = pair
    if not isinstance(first, int) or not isinstance(second, int):
        raise InvalidSnapshotError("segment_pool_id is not a pair of numbers.")
    # Pools of graphs have the first number, those of `torch.cuda.MemPool` the second.
    return 2 * first - 1 if first else 2 * second


def metadata(owner: Owner, kind: str) -> str:
    """Return the label of an allocation by this package, to be read by `Labels`."""
    return f"{METADATA_PREFIX}|{owner.phase}|{owner.category}|{owner.module}|{kind}"


class Labels:
    """Tells streams, call stacks and owners of records, each worked out once."""

    def __init__(self) -> None:
        self._streams: dict[int, int] = {0: 0}
        self._frames: dict[int, tuple[object, tuple[str, ...]]] = {}
        self._modules: dict[tuple[str, str], int] = {("", ""): 0}

    @property
    def modules(self) -> tuple[str, ...]:
        """Names by index."""
        return tuple(name for name, _ in self._modules)

    @property
    def module_types(self) -> tuple[str, ...]:
        """Class names by index."""
        return tuple(kind for _, kind in self._modules)

    def stream(self, record: Record) -> int:
        """Return a small number for a stream; 0 is the default stream."""
        return self._streams.setdefault(integer(record, "stream", 0), len(self._streams))

    def frames(self, record: Record) -> tuple[str, ...]:
        """Return the call stack, innermost first, as ``file:line:function``."""
        frames = record.get("frames")
        if not isinstance(frames, list) or not frames:
            return ()
        known = self._frames.get(id(frames))
        if known is None:
            labels = tuple(_frame_label(as_record(frame)) for frame in frames[:_MAX_FRAMES])
            # The list is kept, so that its identity cannot go to another.
            known = self._frames[id(frames)] = (frames, labels)
        return known[1]

    def indices(self, record: Record) -> tuple[int, int, int]:
        """Return module, phase and category of who allocated, as a timeline has them."""
        parts = text(record, "user_metadata").split("|")
        if len(parts) == 5 and parts[0] == METADATA_PREFIX:
            _, phase, category, module, kind = parts
            if phase in PHASES and category in CATEGORIES:
                index = self._module(module, kind)
                return index, PHASES.index(Phase(phase)), CATEGORIES.index(Category(category))
        site = call_site(self.frames(record))
        return (
            self._module(site, CALL_SITE if site else ""),
            PHASES.index(Phase.SETUP),
            CATEGORIES.index(Category.OTHER),
        )

    def _module(self, name: str, kind: str) -> int:
        return self._modules.setdefault((name, kind), len(self._modules))


def call_site(frames: tuple[str, ...]) -> str:
    """Return the innermost frame outside of the libraries; else the innermost; else empty."""
    for frame in frames:
        if not any(part in frame for part in _LIBRARY_PARTS) and ".py:" in frame:
            return frame
    return frames[0] if frames else ""


def _frame_label(frame: Record) -> str:
    return f"{text(frame, 'filename')}:{integer(frame, 'line', 0)}:{text(frame, 'name')}"
