"""Small memory timelines for tests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from gpu_optimizer.types import CATEGORIES, PHASES, Category, MemoryTimeline

MIB = 1 << 20


def timeline(
    events: Iterable[tuple[int, int]], streams: Sequence[int] | None = None
) -> MemoryTimeline:
    """Events as (block, size), the size negative for a free."""
    rows = list(events)
    n = len(rows)
    return MemoryTimeline(
        size_bytes=np.array([size for _, size in rows], dtype=np.int64),
        block=np.array([block for block, _ in rows], dtype=np.int64),
        module=np.zeros(n, dtype=np.int32),
        phase=np.zeros(n, dtype=np.int8),
        category=np.full(n, CATEGORIES.index(Category.OTHER), dtype=np.int8),
        modules=("",),
        module_types=("",),
        stream=np.array(streams if streams is not None else [0] * n, dtype=np.int32),
    )


def allocations(*sizes: int) -> MemoryTimeline:
    """Blocks 0, 1, ... of these sizes, never freed."""
    return timeline(enumerate(sizes))


@dataclass(frozen=True)
class Run:
    """Events of a timeline, drawn by hypothesis.

    The timeline is made outside of the drawing: checking its types uses chance of its own.
    """

    rows: list[tuple[int, int]]
    streams: list[int]

    def timeline(self) -> MemoryTimeline:
        return timeline(self.rows, self.streams)

    def then_all_freed(self) -> "Run":
        """The same run, everything given back at the end."""
        live: dict[int, tuple[int, int]] = {}
        for (block, size), stream in zip(self.rows, self.streams, strict=True):
            if size > 0:
                live[block] = (size, stream)
            else:
                del live[block]
        return Run(
            self.rows + [(block, -size) for block, (size, _) in live.items()],
            self.streams + [stream for _, stream in live.values()],
        )


@st.composite
def runs(draw: st.DrawFn, max_blocks: int = 40, n_streams: int = 2) -> Run:
    """Any order of allocations and frees, sizes from a byte to 64 MiB, on a few streams."""
    rows: list[tuple[int, int]] = []
    streams: list[int] = []
    live: list[tuple[int, int, int]] = []
    for block in range(draw(st.integers(0, max_blocks))):
        size = draw(st.one_of(st.integers(1, 2 * MIB), st.integers(1, 64).map(lambda n: n * MIB)))
        stream = draw(st.integers(0, n_streams - 1))
        rows.append((block, size))
        streams.append(stream)
        live.append((block, size, stream))
        for _ in range(draw(st.integers(0, 2))):
            if live:
                index = draw(st.integers(0, len(live) - 1))
                freed, freed_size, freed_stream = live.pop(index)
                rows.append((freed, -freed_size))
                streams.append(freed_stream)
    return Run(rows, streams)


def labelled(run: Run) -> MemoryTimeline:
    """The timeline of a run, with an owner for each block."""
    plain = run.timeline()
    return replace(
        plain,
        module=(plain.block % 3).astype(np.int32),
        phase=(plain.block % len(PHASES)).astype(np.int8),
        category=(plain.block % len(CATEGORIES)).astype(np.int8),
        modules=("", "layers.0", "layers.1"),
        module_types=("", "Linear", "Linear"),
    )
