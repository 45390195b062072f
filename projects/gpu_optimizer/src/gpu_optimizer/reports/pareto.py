"""Draws what memory a run can do with for how much time, in one HTML file of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from shared_utils.units import BYTES_PER_GIB, format_bytes

_COLORS: Final = {"bit-equal": "#1f5a96", "numeric": "#2e8b57", "approximate": "#e67e22"}
_BUDGET_COLOR: Final = "#c0392b"
_RING_COLOR: Final = "#1c2329"
_RINGS: Final = ("circle-open", "square-open")
_GRID_COLOR: Final = "#e3e7eb"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 0; font-family: sans-serif; background: #f7f8fa; color: #1c2329; }}
h1 {{ font-size: 20px; margin: 16px 24px 4px; }} p {{ margin: 4px 24px; font-size: 14px; }}</style>
</head>
<body><h1>{title}</h1><p>{sentence}</p>
{plot}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One way to run the model."""

    peak_bytes: int
    slowdown_ratio: float
    exactness: str
    """``bit-equal``, ``numeric`` or ``approximate``."""
    text: str
    """What is done."""


def draw_pareto(
    points: Sequence[ParetoPoint],
    title: str,
    sentence: str,
    marked: Mapping[str, ParetoPoint],
    budget: tuple[int, str],
) -> str:
    """Return an HTML page: peak against time, a colour per exactness.

    Parameters
    ----------
    points
        Highest peak first.
    title, sentence
        Stand above the picture.
    marked
        Drawn with a ring each, by their names.
    budget
        Drawn as a line: bytes of the same peak, and what it is called.
    """
    # Takes a second, and only pictures need it.
    from plotly import graph_objects, io  # noqa: PLC0415

    figure = graph_objects.Figure([_line(points), *_groups(points)])
    for symbol, (name, point) in zip(_RINGS, marked.items(), strict=False):
        figure.add_trace(_ring(name, point, symbol))
    figure.add_vline(
        x=budget[0] / BYTES_PER_GIB,
        line={"color": _BUDGET_COLOR, "dash": "dash"},
        annotation_text=escape(budget[1]),
        annotation_position="bottom left",
        annotation_font_color=_BUDGET_COLOR,
    )
    figure.update_layout(
        margin={"t": 32, "l": 84, "r": 24, "b": 56},
        height=640,
        paper_bgcolor="#f7f8fa",
        plot_bgcolor="#ffffff",
        legend={"x": 0.99, "xanchor": "right", "y": 0.99, "yanchor": "top"},
        hoverlabel={"align": "left"},
    )
    axis = {"gridcolor": _GRID_COLOR, "zerolinecolor": _GRID_COLOR, "title_standoff": 12}
    figure.update_xaxes(title="allocated peak, GiB", rangemode="tozero", **axis)
    figure.update_yaxes(title="time of a step, change", tickformat="+.0%", **axis)
    plot = io.to_html(figure, include_plotlyjs=True, full_html=False, config={"displaylogo": False})
    return _PAGE.format(title=escape(title), sentence=escape(sentence), plot=plot)


def _line(points: Sequence[ParetoPoint]) -> dict[str, Any]:
    """Each peak is to be had at the time of the point at or below it."""
    return {
        "type": "scatter",
        "x": [point.peak_bytes / BYTES_PER_GIB for point in points],
        "y": [point.slowdown_ratio for point in points],
        "mode": "lines",
        "line": {"color": "#b5bdc4", "shape": "vh"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _groups(points: Sequence[ParetoPoint]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "name": name,
            "x": [point.peak_bytes / BYTES_PER_GIB for point in group],
            "y": [point.slowdown_ratio for point in group],
            "mode": "markers",
            "marker": {"color": color, "size": 10},
            "hovertext": [_describe(point) for point in group],
            "hoverinfo": "text",
        }
        for name, color in _COLORS.items()
        if (group := [point for point in points if point.exactness == name])
    ]


def _ring(name: str, point: ParetoPoint, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "x": [point.peak_bytes / BYTES_PER_GIB],
        "y": [point.slowdown_ratio],
        "mode": "markers",
        "marker": {
            "color": _RING_COLOR, "size": 18, "symbol": symbol, "line": {"width": 3},
        },
        "hovertext": [_describe(point)],
        "hoverinfo": "text",
    }  # fmt: skip


def _describe(point: ParetoPoint) -> str:
    facts = [
        f"<b>{format_bytes(point.peak_bytes)}</b>, time {point.slowdown_ratio:+.1%}",
        escape(point.exactness),
        *(escape(part) for part in point.text.split("; ")),
    ]
    return "<br>".join(facts)
