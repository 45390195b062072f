"""Draws a model's layers as nested areas, in one HTML file that needs nothing else."""

from dataclasses import dataclass
from html import escape
from typing import Any, Final

from gpu_optimizer.types import LayerMemory
from shared_utils.units import format_bytes

_PALETTE: Final = (
    "#1f5a96", "#2e8b57", "#c0392b", "#8e5ea2", "#d4a017", "#e67e22", "#3c9aa5", "#6b7780",
)  # fmt: skip
_OTHER_COLOR: Final = _PALETTE[-1]
_CONTAINER_COLOR: Final = "#d9dee3"
_ROOT: Final = "/"
"""No module can have this name."""
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 0; font-family: sans-serif; background: #f7f8fa; color: #1c2329; }}
h1 {{ font-size: 20px; margin: 16px 24px 4px; }} p {{ margin: 4px 24px; font-size: 14px; }}
span {{ margin-right: 16px; white-space: nowrap; }}
i {{ display: inline-block; width: 12px; height: 12px; margin-right: 5px; }}</style>
</head>
<body><h1>{title}</h1><p>Click a module to look inside, the bar above it to go back.</p>
<p>{legend}</p>
{plot}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class _Measure:
    label: str
    field: str


_MEASURES: Final = (
    _Measure("Parameters", "parameter_bytes"),
    _Measure("Activations kept for the backward pass", "activation_bytes"),
    _Measure("Gradients", "gradient_bytes"),
)


def draw_treemap(layers: LayerMemory, title: str) -> str:
    """Return an HTML page: the area of a module is what it holds; a menu chooses of what.

    Parameters
    ----------
    layers
        The model.
    title
        Stands above the picture.
    """
    # Takes a second, and only pictures need it.
    from plotly import graph_objects, io  # noqa: PLC0415

    modules = list(_walk(layers, ""))
    shown = [each for each in _MEASURES if getattr(layers, each.field)]
    shown.sort(key=lambda measure: -getattr(layers, measure.field))
    colors = _colors(layers)
    figure = graph_objects.Figure(
        [
            _trace(measure, modules, colors, visible=index == 0)
            for index, measure in enumerate(shown)
        ]
    )
    figure.update_layout(
        margin={"t": 44, "l": 24, "r": 24, "b": 16},
        height=780,
        paper_bgcolor="#f7f8fa",
        updatemenus=[_menu(shown)] if len(shown) > 1 else [],
    )
    plot = io.to_html(figure, include_plotlyjs=True, full_html=False, config={"displaylogo": False})
    return _PAGE.format(title=escape(title), legend=_legend(colors), plot=plot)


def _walk(layer: LayerMemory, parent: str) -> list[tuple[str, str, LayerMemory]]:
    """Identifier, identifier of the parent, module."""
    identifier = layer.name or _ROOT
    rows = [(identifier, parent, layer)]
    for child in layer.children:
        rows += _walk(child, identifier)
    return rows


def _trace(
    measure: _Measure,
    modules: list[tuple[str, str, LayerMemory]],
    colors: dict[str, str],
    *,
    visible: bool,
) -> dict[str, Any]:
    held = [row for row in modules if getattr(row[2], measure.field)]
    return {
        "type": "treemap",
        "visible": visible,
        "branchvalues": "total",
        "ids": [identifier for identifier, _, _ in held],
        "parents": [parent for _, parent, _ in held],
        "labels": [_label(layer) for _, _, layer in held],
        "values": [getattr(layer, measure.field) for _, _, layer in held],
        "text": [format_bytes(getattr(layer, measure.field)) for _, _, layer in held],
        "textinfo": "label+text+percent root",
        "hovertext": [_describe(layer) for _, _, layer in held],
        "hoverinfo": "text",
        "marker": {"colors": [colors[layer.kind] for _, _, layer in held]},
        "tiling": {"pad": 2},
    }


def _menu(shown: list[_Measure]) -> dict[str, Any]:
    buttons = [
        {
            "label": measure.label,
            "method": "update",
            "args": [{"visible": [other is measure for other in shown]}],
        }
        for measure in shown
    ]
    return {"buttons": buttons, "x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}


def _colors(layers: LayerMemory) -> dict[str, str]:
    """One colour per kind; those that hold most get the first ones."""
    sizes: dict[str, int] = {}
    for _, _, layer in _walk(layers, ""):
        is_leaf = not layer.children
        held = layer.parameter_bytes + layer.activation_bytes if is_leaf else 0
        sizes[layer.kind] = sizes.get(layer.kind, 0) + held
    ranked = sorted(sizes, key=lambda kind: (-sizes[kind], kind))
    leaves = [kind for kind in ranked if sizes[kind]]
    colors = dict.fromkeys(ranked, _CONTAINER_COLOR)
    colors |= {kind: _PALETTE[min(i, len(_PALETTE) - 1)] for i, kind in enumerate(leaves)}
    return colors


def _legend(colors: dict[str, str]) -> str:
    """Kinds with a colour of their own; all others share one."""
    own = {kind: color for kind, color in colors.items() if kind}
    shown = [(kind, color) for kind, color in own.items() if color in _PALETTE[:-1]]
    others = [kind for kind, color in own.items() if color == _OTHER_COLOR]
    if others:
        shown.append((", ".join(others), _OTHER_COLOR))
    parts = (
        f'<span><i style="background:{color}"></i>{escape(kind)}</span>' for kind, color in shown
    )
    return " ".join(parts)


def _label(layer: LayerMemory) -> str:
    return escape(layer.name.rpartition(".")[2] or layer.kind)


def _describe(layer: LayerMemory) -> str:
    facts = [
        f"<b>{escape(layer.name or 'model')}</b> {escape(layer.kind)}",
        f"parameters {format_bytes(layer.parameter_bytes)}",
    ]
    if layer.activation_bytes:
        facts.append(f"activations {format_bytes(layer.activation_bytes)}")
    if layer.gradient_bytes:
        facts.append(f"gradients {format_bytes(layer.gradient_bytes)}")
    if layer.flops:
        facts.append(f"{layer.flops / 1e9:,.2f} GFLOP forward")
    return "<br>".join(facts)
