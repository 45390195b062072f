"""Writes timelines, measured or predicted: as a page that draws them, and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from gpu_optimizer.types import CATEGORIES, PHASES, MemoryTimeline

MAX_PAGE_EVENTS: Final = 400_000
"""A page draws the last events; what was live before them stands at its start."""
_FORMAT: Final = "gpu_optimizer.memory_timeline"
_DATA_MARK: Final = '"%DATA%"'


@dataclass(frozen=True, slots=True, eq=False)
class PageFacts:
    """What a page shows beside the timeline."""

    title: str = "Memory"
    reserved_bytes: Int64[np.ndarray, "events"] | None = None
    """After each event; None: not known."""
    n_before: int = 0
    """How many events at the start stand for what was there before; they are drawn as one."""
    device_peak_bytes: int | None = None
    """Most that the card was filled by all processes; None: not known."""


def timeline_columns(timeline: MemoryTimeline) -> dict[str, Any]:
    """Return a timeline as plain data: one list per column, names once."""
    return {
        "format": _FORMAT,
        "version": 1,
        "categories": [str(category) for category in CATEGORIES],
        "phases": [str(phase) for phase in PHASES],
        "modules": list(timeline.modules),
        "module_types": list(timeline.module_types),
        "size_bytes": timeline.size_bytes.tolist(),
        "block": timeline.block.tolist(),
        "module": timeline.module.tolist(),
        "phase": timeline.phase.tolist(),
        "category": timeline.category.tolist(),
        "stream": timeline.stream.tolist(),
    }


def write_timeline_json(
    timeline: MemoryTimeline,
    path: Path,
    reserved_bytes: Int64[np.ndarray, "events"] | None = None,
) -> None:
    """Write a timeline as JSON columns; see `timeline_columns`."""
    columns = timeline_columns(timeline)
    if reserved_bytes is not None:
        columns["reserved_bytes"] = reserved_bytes.tolist()
    path.write_text(json.dumps(columns, separators=(",", ":")), encoding="utf-8")


def write_timeline_html(
    timeline: MemoryTimeline, path: Path, facts: PageFacts | None = None
) -> None:
    """Write a page that draws a timeline; one file that needs nothing from the network.

    Above: memory by category or by module over the events, phases beneath. Below: whose bytes are
    live at the chosen moment, at first the peak, as a flame graph of the model's modules.
    """
    page = resources.files("gpu_optimizer").joinpath("data/timeline_page.html")
    text = page.read_text(encoding="utf-8")
    data = json.dumps(_page_data(timeline, facts or PageFacts()), separators=(",", ":"))
    # A module's name must not be able to end the element that holds the data.
    safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    path.write_text(text.replace(_DATA_MARK, safe), encoding="utf-8")


def _page_data(timeline: MemoryTimeline, facts: PageFacts) -> Mapping[str, Any]:
    """Blocks as columns; times are numbers of events."""
    n_events = len(timeline)
    first = max(n_events - MAX_PAGE_EVENTS, facts.n_before)
    rows = np.flatnonzero(timeline.size_bytes > 0)
    frees = np.flatnonzero(timeline.size_bytes < 0)
    dies = np.full(int(timeline.block.max(initial=-1)) + 1, n_events, np.int64)
    dies[timeline.block[frees]] = frees
    dies = dies[timeline.block[rows]]
    shown = dies >= first
    rows, dies = rows[shown], dies[shown]
    reserved = facts.reserved_bytes
    return {
        "title": facts.title,
        "categories": [str(category).replace("_", " ") for category in CATEGORIES],
        "phases": [str(phase) for phase in PHASES],
        "modules": list(timeline.modules),
        "kinds": list(timeline.module_types),
        "events": n_events - first,
        "skipped": first - facts.n_before,
        "born": np.maximum(rows - first, 0).tolist(),
        "dies": (dies - first).tolist(),
        "size": timeline.size_bytes[rows].tolist(),
        "module": timeline.module[rows].tolist(),
        "category": timeline.category[rows].tolist(),
        "phase": timeline.phase[first:].tolist(),
        "reserved": None if reserved is None else reserved[first:].tolist(),
        "device": facts.device_peak_bytes,
    }
