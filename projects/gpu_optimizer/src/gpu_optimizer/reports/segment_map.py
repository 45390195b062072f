"""Draws segments: what is in use, by whom, and where the holes are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final

from gpu_optimizer.allocator.segments import BlockState, Pool, Segment, SegmentBlock
from gpu_optimizer.cuda_analyzer import PoolUse, analyze
from gpu_optimizer.types import Category
from shared_utils.units import format_bytes

_MIB: Final = 1 << 20
_WIDTH_PX: Final = 1160.0
_MARGIN_PX: Final = 20.0
_BAR_PX: Final = 16.0
_ROW_PX: Final = 22.0
_GAP_PX: Final = 3.0
_MIN_SEGMENT_PX: Final = 3.0
_N_ROWS: Final = 28
"""Rows that all segments together fill, about."""

_FREE_COLOR: Final = "#ffffff"
_PENDING_COLOR: Final = "#b0a8c9"
_COLORS: Final = {
    Category.PARAMETER: "#1f5a96",
    Category.GRADIENT: "#c0392b",
    Category.ACTIVATION: "#2e8b57",
    Category.OPTIMIZER_STATE: "#8e5ea2",
    Category.INPUT: "#d4a017",
    Category.WORKSPACE: "#e67e22",
    Category.OTHER: "#6b7780",
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A part of a segment and its place in the picture."""

    segment: Segment
    start_bytes: int
    stop_bytes: int
    x_px: float
    row: int


def draw_segment_map(segments: Iterable[Segment], title: str = "Segments") -> str:
    """Return an SVG picture of segments.

    Parameters
    ----------
    segments
        From `read_snapshot` or `replay`.
    title
        Stands above the picture.

    Returns
    -------
    str
        A complete SVG document: one bar per segment, its length its size; coloured parts are in
        use, white ones free. Pointing at a part names its owner. Grouped by pool and stream,
        largest segments first; bars longer than a line go on in the next.
    """
    held = sorted(segments, key=_group)
    uses = {(use.private_pool, use.pool, use.stream): use for use in analyze(held).pools}
    reserved_bytes = sum(segment.size_bytes for segment in held)
    px_per_byte = _N_ROWS * _WIDTH_PX / max(reserved_bytes, 1)
    parts: list[str] = []
    top_px = 92.0
    for key, members in groupby(held, key=_group):
        parts.append(_text(_MARGIN_PX, top_px + 12, _heading(uses[key]), 13))
        top_px += 20
        placed = list(_place(sorted(members, key=lambda s: -s.size_bytes), px_per_byte))
        for each in placed:
            parts += _draw(each, top_px + each.row * _ROW_PX, px_per_byte)
        top_px += (placed[-1].row + 1) * _ROW_PX + 10
    total = analyze(held)
    summary = (
        f"{format_bytes(total.reserved_bytes)} reserved, "
        f"{format_bytes(total.allocated_bytes)} allocated, waste {total.waste_ratio:.1%}, "
        f"largest free block {format_bytes(total.largest_free_bytes)}"
    )
    height_px = top_px + _MARGIN_PX
    head = [
        _text(_MARGIN_PX, 28.0, title, 18),
        _text(_MARGIN_PX, 50.0, summary, 13),
        *_legend(66.0),
    ]
    return _document(height_px, head + parts)


def _group(segment: Segment) -> tuple[int, Pool, int]:
    return (segment.private_pool, segment.pool, segment.stream)


def _heading(use: PoolUse) -> str:
    where = f"private pool {use.private_pool}, " if use.private_pool else ""
    noun = "segment" if use.n_segments == 1 else "segments"
    return (
        f"{where}{use.pool} blocks, stream {use.stream}: {use.n_segments:,} {noun}, "
        f"{format_bytes(use.reserved_bytes)}, {format_bytes(use.free_bytes)} free"
    )


def _place(segments: list[Segment], px_per_byte: float) -> Iterator[_Placed]:
    """Set segments side by side, line by line."""
    x_px, row = 0.0, 0
    for segment in segments:
        start = 0
        while start < segment.size_bytes:
            wanted_px = max((segment.size_bytes - start) * px_per_byte, _MIN_SEGMENT_PX)
            room_px = _WIDTH_PX - x_px
            if wanted_px > room_px and x_px > 0 and wanted_px <= _WIDTH_PX:
                x_px, row = 0.0, row + 1
                room_px = _WIDTH_PX
            stop = segment.size_bytes
            if wanted_px > room_px:
                stop = start + max(int(room_px / px_per_byte), 1)
            yield _Placed(segment, start, stop, x_px, row)
            x_px += max((stop - start) * px_per_byte, _MIN_SEGMENT_PX) + _GAP_PX
            start = stop
            if x_px >= _WIDTH_PX:
                x_px, row = 0.0, row + 1


def _draw(placed: _Placed, top_px: float, px_per_byte: float) -> Iterator[str]:
    """Frame of a segment, and its live blocks in it."""
    segment = placed.segment
    width_px = max((placed.stop_bytes - placed.start_bytes) * px_per_byte, _MIN_SEGMENT_PX)
    scale = width_px / (placed.stop_bytes - placed.start_bytes)
    left_px = _MARGIN_PX + placed.x_px
    kind = "expandable segment" if segment.is_expandable else "segment"
    label = f"{kind} {segment.address:#x}, {format_bytes(segment.size_bytes)}"
    yield _box(left_px, top_px, width_px, _FREE_COLOR, f"{label}: free")
    for color, text, start, stop in _runs(segment, placed.start_bytes, placed.stop_bytes, scale):
        x_px = left_px + (start - placed.start_bytes) * scale
        yield _fill(x_px, top_px, (stop - start) * scale, color, f"{text}\n{label}")


def _runs(
    segment: Segment, first: int, last: int, px_per_byte: float
) -> Iterator[tuple[str, str, int, int]]:
    """Live blocks of a part, neighbours of one owner and too narrow ones joined."""
    pending: tuple[str, str, int, int] | None = None
    for block in segment.blocks:
        start = max(block.address - segment.address, first)
        stop = min(block.address - segment.address + block.size_bytes, last)
        if stop <= start or block.state == BlockState.FREE:
            continue
        color, text = _color(block), _describe(block)
        if pending is not None:
            touches = (start - pending[3]) * px_per_byte < 0.5
            is_narrow = (pending[3] - pending[2]) * px_per_byte < 1.0
            if touches and (is_narrow or pending[:2] == (color, text)):
                pending = (pending[0], pending[1], pending[2], stop)
                continue
            yield pending
        pending = (color, text, start, stop)
    if pending is not None:
        yield pending


def _color(block: SegmentBlock) -> str:
    if block.state == BlockState.PENDING:
        return _PENDING_COLOR
    return _COLORS[block.owner.category if block.owner else Category.OTHER]


def _describe(block: SegmentBlock) -> str:
    owner = block.owner
    if owner is None:
        return f"{format_bytes(block.size_bytes)} in use"
    who = owner.module or (owner.frames[0] if owner.frames else "no module")
    state = ", awaiting another stream" if block.state == BlockState.PENDING else ""
    return f"{format_bytes(block.size_bytes)} {owner.category} of {who} ({owner.phase}){state}"


def _legend(top_px: float) -> Iterator[str]:
    entries = [(str(category).replace("_", " "), color) for category, color in _COLORS.items()]
    entries += [("awaiting a stream", _PENDING_COLOR), ("free", _FREE_COLOR)]
    x_px = _MARGIN_PX
    for name, color in entries:
        yield _box(x_px, top_px, 12.0, color, name, height_px=12.0)
        yield _text(x_px + 17, top_px + 10, name, 12)
        x_px += 34 + 6.6 * len(name)


def _box(
    x_px: float, y_px: float, width_px: float, color: str, tip: str, *, height_px: float = _BAR_PX
) -> str:
    return (
        f'<rect x="{x_px:.2f}" y="{y_px:.1f}" width="{width_px:.2f}" height="{height_px}" '
        f'fill="{color}" stroke="#8a939b" stroke-width="0.6"><title>{_escape(tip)}</title></rect>'
    )


def _fill(x_px: float, y_px: float, width_px: float, color: str, tip: str) -> str:
    return (
        f'<rect x="{x_px:.2f}" y="{y_px:.1f}" width="{max(width_px, 0.5):.2f}" height="{_BAR_PX}" '
        f'fill="{color}" stroke="#ffffff" stroke-width="0.3"><title>{_escape(tip)}</title></rect>'
    )


def _text(x_px: float, y_px: float, text: str, size_px: int) -> str:
    return f'<text x="{x_px:.1f}" y="{y_px:.1f}" font-size="{size_px}">{_escape(text)}</text>'


def _escape(text: str) -> str:
    """Text for the document; a snapshot may hold characters that XML does not know."""
    return escape("".join(char if char.isprintable() or char == "\n" else "?" for char in text))


def _document(height_px: float, parts: list[str]) -> str:
    width_px = _WIDTH_PX + 2 * _MARGIN_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px:.0f} {height_px:.0f}" '
        f'width="{width_px:.0f}" height="{height_px:.0f}" font-family="sans-serif" '
        'fill="#1c2329">\n'
        f'<rect width="100%" height="100%" fill="#f7f8fa"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
