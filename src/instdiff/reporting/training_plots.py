"""Pictures of a run: its stages, its trainings, and its models against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from instdiff.errors import DataError
from instdiff.reporting import statistics
from instdiff.reporting.style import CHOSEN, DASHES, PALETTE, REST, empty, plotly

if TYPE_CHECKING:
    Figure = Any
ASIDE, LINES = 1.025, 8
"""Lines of a curve that are shown at first."""


def funnel(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Rows and tokens of each stage, as shares of the first."""
    go = plotly()
    names = [stage["stage"] for stage in stages]
    bars = [
        go.Bar(
            y=names,
            x=share,
            orientation="h",
            name=key,
            text=[f"{stage[key]:,}" for stage in stages],
            textposition="auto",
            insidetextanchor="end",
            marker={"color": CHOSEN if key == "rows" else REST},
            hovertemplate="%{y}: %{text} " + key + " (%{x:.1f} %)<extra></extra>",
        )
        for key, share in statistics.shares(stages).items()
    ]
    figure = empty(bars, "share of the input (%)", "", 90 + 46 * len(names), barmode="group", bargap=0.3)
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(range=[0, 104])


def training(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Loss by step; thin what each step had, thick its running mean."""
    go = plotly()
    traces = []
    for number, (name, losses) in enumerate(curves.items()):
        colour, values = PALETTE[number % len(PALETTE)], np.asarray(losses, np.float64)
        steps = np.arange(1, len(values) + 1)
        width = max(1, len(values) // 12)
        total = np.cumsum(np.concatenate([np.zeros(1), np.nan_to_num(values)]))
        low = np.maximum(0, steps - width)
        mean = (total[steps] - total[low]) / (steps - low)
        tip = "step %{x}: %{y:.3f}<extra>%{fullData.name}</extra>"
        line: dict[str, Any] = {"color": colour}
        thin = {"x": steps, "y": values, "opacity": 0.25, "showlegend": False, "hoverinfo": "skip"}
        traces += [
            go.Scatter(**thin, line={**line, "width": 1}, mode="lines", legendgroup=name, name=name),
            go.Scatter(
                x=steps, y=mean, line={**line, "width": 2}, mode="lines", legendgroup=name, name=name, hovertemplate=tip
            ),
        ]
    return empty(traces, "step", "loss (nats per token)", 380)


def comparison(lines: Sequence[Mapping[str, Any]], label: str = "") -> Figure:
    """A value of each line with its interval, the first line at the top."""
    go = plotly()
    names = [str(line["name"]) for line in lines]
    value, low, high = _values(lines)
    trace = go.Scatter(
        x=value,
        y=names,
        mode="markers",
        marker={"color": CHOSEN, "size": 9},
        error_x=_interval(value, low, high, color=REST, thickness=1.5, width=4),
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        showlegend=False,
    )
    figure = empty([trace], label, "", 90 + 30 * len(names))
    return figure.update_yaxes(autorange="reversed", type="category")


def budgets(lines: Sequence[Mapping[str, Any]], label: str = "", against: str = "") -> Figure:
    """A value of each line against the budget, with its intervals; what has one budget alone is a level.

    Of many lines the best at the largest budget and what they are compared with are shown; the others stand in the
    legend.

    Args:
        lines: of one task, each with ``name``, ``budget``, ``value``, ``low`` and ``high``.
        label: what the value is.
        against: the line that the others are compared with.

    Raises:
        DataError: no line has two budgets.
    """
    go = plotly()
    found = statistics.curves(lines)
    if not found:
        raise DataError("no line has values at two budgets; a curve needs them")
    sign = 1 if statistics.lower_is_better(lines[0]) else -1
    order = sorted(found, key=lambda name: sign * found[name][-1]["value"])
    shown = {*order[:LINES], against}
    traces = []
    for number, name in enumerate(order):
        points = found[name]
        value, low, high = _values(points)
        # A little to the side, so that intervals at one budget can be told apart.
        aside = ASIDE ** (number % LINES - (min(len(order), LINES) - 1) / 2)
        traces.append(
            go.Scatter(
                x=[one["at"] * aside for one in points],
                y=value,
                name=name,
                mode="lines+markers",
                text=[str(one["budget"]) for one in points],
                visible=True if name in shown else "legendonly",
                line={"color": PALETTE[number % len(PALETTE)], "width": 2, "dash": DASHES[number // len(PALETTE) % 3]},
                error_y=_interval(value, low, high, thickness=1, width=3),
                hovertemplate="%{text}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
        )
    points = next(iter(found.values()))
    figure = empty(traces, points[0]["unit"], label, 460)
    ticks = sorted({one["at"] for some in found.values() for one in some})
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    for line in lines:
        if str(line["name"]) not in found and np.isfinite(_number(line.get("value"))):
            look = {"line": {"color": REST, "width": 1, "dash": "dot"}, "annotation_font": {"size": 11}}
            text = {"annotation_text": str(line["name"]), "annotation_position": "top left"}
            figure.add_hline(y=line["value"], **look, **text)
    return figure


def _values(lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The values of lines, and both ends of their intervals."""
    return [np.array([_number(line.get(key)) for line in lines]) for key in ("value", "low", "high")]


def _interval(value: Any, low: Any, high: Any, **look: Any) -> dict[str, Any]:
    return {"type": "data", "array": high - value, "arrayminus": value - low, "symmetric": False, **look}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
