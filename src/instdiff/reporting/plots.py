"""The report's pictures as functions: scores in, a plotly figure out, for notebooks too.

Colours are readable on light and on dark paper; the page sets those of text and lines by its theme. In all of them
``scores`` are one method's, or a table with the method's ``name``; ``chosen`` are positions of the chosen rows, by
default the best tenth; ``labels`` are per row its domain, which then gives the colour; ``at`` are the rows to show, by
default all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instdiff.core import DetailPlot, Floats, Scored
from instdiff.core.budget import parse_budget
from instdiff.errors import DataError
from instdiff.experiments.summary import BETTER, FEW, SAME, WORSE, lower_is_better
from instdiff.reporting import statistics
from instdiff.reporting.sources import ASSUMED, head
from instdiff.scoring.table import ScoreTable, plotly

if TYPE_CHECKING:
    Figure = Any
Indices = npt.NDArray[np.int64]
Some = Scored | ScoreTable
MANY = 2000
"""Points above this are drawn on the graphics card."""
ASIDE, LINES = 1.025, 8
"""How far curves lie apart; how many are shown at first."""
TAIL = 300
"""Points of a curve that has more."""
CHOSEN, REST, OUT, MARK = "#3b82f6", "#94a3b8", "#d6a35c", "#e0603f"
PALETTE = ("#3b82f6", "#e08a3c", "#2fa37c", "#b765c9", "#d6566d", "#5aa9c4", "#9a8f3d", "#7d7ae0", "#8b9bb0", "#c47b5a")
DASHES = ("solid", "dash", "dot")
SIGNED = [[0.0, "#f0a27c"], [0.5, "rgba(148,163,184,0.12)"], [1.0, "#86aef2"]]
SHARE = [[0.0, SIGNED[1][1]], SIGNED[2]]
"""Pale enough for a number on them; the page has darker ones on dark paper."""
PALE, BAND = "rgba(148,163,184,0.4)", "rgba(100,116,139,0.4)"
"""Bars of what was not chosen, and where random selections lie in them."""
VERDICTS = {BETTER: "#16a34a", WORSE: "#dc2626", SAME: "#64748b", FEW: "#d97706"}


def plotly_script() -> str:
    """The drawing library's own script, as it is shipped.

    Raises:
        PlanError: it is missing.
    """
    plotly("a report")
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def empty(traces: Sequence[Any], x: str = "", y: str = "", height: int = 340, **layout: Any) -> Figure:
    """These traces on empty paper."""
    go = plotly()
    made = go.Figure(list(traces))
    made.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 62, "r": 16, "t": 12, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#64748b"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        colorway=list(PALETTE),
        hoverlabel={"font": {"family": "system-ui, sans-serif", "size": 12}},
    )
    grid = {"gridcolor": "rgba(148,163,184,0.22)", "zerolinecolor": "rgba(148,163,184,0.45)", "automargin": True}
    made.update_xaxes(title={"text": x, "standoff": 8}, **grid)
    made.update_yaxes(title={"text": y, "standoff": 8}, **grid)
    return made.update_layout(**layout)


def one(scores: Some, name: str | None = None) -> Scored:
    """One method's scores.

    Raises:
        DataError: there are several and none is named.
    """
    if isinstance(scores, Scored):
        return scores
    if name is None and len(scores.scored) != 1:
        raise DataError(f"these scores are by several methods; name one of {', '.join(scores)}")
    return scores[name or next(iter(scores))]


def _chosen_mask(scored: Scored, chosen: Indices | None) -> npt.NDArray[np.bool_]:
    """A mask of the chosen rows: those given, or the best tenth."""
    mask = np.zeros(len(scored), bool)
    mask[head(scored, parse_budget(ASSUMED)) if chosen is None else chosen] = True
    return mask


def _points(x: Floats, y: Floats, name: str, colour: str, rows: Indices, size: float = 5, **more: Any) -> Any:
    go = plotly()
    kind = go.Scattergl if more.pop("many", len(x) > MANY) else go.Scatter
    return kind(
        x=x,
        y=y,
        name=name,
        mode="markers",
        customdata=rows,
        marker={"color": colour, "size": size, "opacity": more.pop("opacity", 0.75), "line": {"width": 0}},
        hovertemplate="%{x:.4g}, %{y:.4g}<extra></extra>",
        **more,
    )


# ── one method ────────────────────────────────────────────────────────────────────────────────────────────────────────


def distribution(
    scores: Some,
    chosen: Indices | None = None,
    *,
    name: str | None = None,
    values: Floats | None = None,
    label: str | None = None,
    cut: float | None = None,
) -> Figure:
    """How a score is distributed, with the chosen rows in it, the cut, and where random selections would lie.

    ``values`` are another column of the same rows, such as a detail, which ``label`` names; ``cut`` is one of them.
    """
    go = plotly()
    scored = one(scores, name)
    mask = _chosen_mask(scored, chosen)
    column = scored.value if values is None else values
    found = statistics.histogram(column, mask)
    if found is None:
        raise DataError(f"no row has a value of {label or scored.name}")
    edges, every, kept = np.array(found["edges"], float), np.array(found["all"]), np.array(found["chosen"])
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    tip = "%{x:.3g}: %{y:,} rows<extra>%{fullData.name}</extra>"
    bars = [
        go.Bar(x=middle, y=y, width=width, name=said, marker={"color": c, "line": {"width": 0}}, hovertemplate=tip)
        for y, said, c in ((kept, "chosen", CHOSEN), (every - kept, "not chosen", PALE))
    ]
    low, high = statistics.random_band(found["all"], int(kept.sum()))
    line = {
        "x": middle,
        "mode": "lines",
        "line": {"width": 1.2, "color": "#64748b", "shape": "hvh"},
        "hoverinfo": "skip",
    }
    band = [
        go.Scatter(**line, y=low, showlegend=False),
        go.Scatter(**line, y=high, name="random selections (95 %)", fill="tonexty", fillcolor=BAND),
    ]
    figure = empty([*bars, *band], label or scored.name, "rows", 280, barmode="stack", bargap=0)
    cut = statistics.threshold(scored, mask) if values is None else cut
    if cut is not None and edges[0] <= cut <= edges[-1]:
        _mark(figure, cut, "cut")
    return figure


def _mark(figure: Figure, at: float, text: str) -> None:
    """A dashed line upwards, with a word."""
    line = {"color": MARK, "width": 1.5, "dash": "dash"}
    figure.add_vline(x=at, line=line, annotation_text=text, annotation_font={"size": 11})
    figure.layout.annotations[-1].update(xanchor="right", xshift=-2)


def details(
    scores: Some,
    chosen: Indices | None = None,
    *,
    name: str | None = None,
    plot: DetailPlot | None = None,
    labels: Sequence[str] | None = None,
    at: Indices | None = None,
) -> Figure:
    """Two details of a method against each other, with the band that it keeps: ``plot``, or the first it has."""
    scored = one(scores, name)
    plot = plot or next((p for p in scored.method.plots if {p.x, p.y} <= scored.details.keys()), None)
    if plot is None:
        raise DataError(f"{scored.name} names no two details to draw against each other")
    traces = _parts(scored, scored.details[plot.x], scored.details[plot.y], chosen, labels, at)
    across, upwards = (f"{word} ({plot.unit})" for word in plot.words)
    figure = empty(traces, across, upwards, 460)
    edges = statistics.band(scored, plot.x) if plot.band else None
    if edges is not None:
        figure.add_vrect(
            x0=edges[0],
            x1=edges[1],
            fillcolor=CHOSEN,
            opacity=0.07,
            line_width=0,
            layer="below",
            annotation_text="kept band",
            annotation_position="bottom left",
            annotation_font={"size": 11},
        )
    return figure


def length_bias(
    scores: Some,
    length: Floats | None = None,
    chosen: Indices | None = None,
    *,
    name: str | None = None,
    unit: str = "response tokens",
    at: Indices | None = None,
) -> Figure:
    """A score against the length of the response."""
    scored = one(scores, name)
    x = scored.n_tokens.astype(np.float64) if length is None else length
    x = np.where(x > 0, x, np.nan)
    traces = _parts(scored, x, scored.value, chosen, None, at, values_only=True)
    figure = empty(traces, unit, scored.name, 360)
    return figure.update_xaxes(type="log", dtick=1)


def _parts(
    scored: Scored,
    x: Floats,
    y: Floats,
    chosen: Indices | None,
    labels: Sequence[str] | None,
    at: Indices | None,
    *,
    values_only: bool = False,
) -> list[Any]:
    """A trace for each kind of row: chosen, not chosen, excluded; or for each domain."""
    mask, here = _chosen_mask(scored, chosen), np.arange(len(scored)) if at is None else at
    many = len(here) > MANY
    size = 3.5 if len(here) > 10_000 else 5
    if labels is not None:
        kinds = _by_label(labels, 0.7)
    else:
        rest = scored.takeable & ~mask
        kinds = [("not chosen", rest, REST, 0.55), ("chosen", mask, CHOSEN, 0.85)]
        if not values_only:
            kinds.insert(0, ("excluded", ~mask & ~rest, OUT, 0.5))
    return [
        _points(x[rows], y[rows], said, colour, rows, size, many=many, opacity=opacity)
        for said, kind, colour, opacity in kinds
        if len(rows := here[kind[here]])
    ]


def _by_label(labels: Sequence[str], opacity: float) -> list[tuple[str, npt.NDArray[np.bool_], str, float]]:
    """Of each domain its name, rows, colour and opacity."""
    names = np.array(labels, object)
    return [(str(n), names == n, PALETTE[i % len(PALETTE)], opacity) for i, n in enumerate(sorted(set(labels)))]


# ── several columns ───────────────────────────────────────────────────────────────────────────────────────────────────


def domains(scores: Some, labels: Sequence[str], *, name: str | None = None, detail: str | None = None) -> Figure:
    """The score's distribution in each domain, or a detail's: quartiles, mean, and extremes as points."""
    go = plotly()
    scored = one(scores, name)
    column = scored.value if detail is None else scored.details[detail]
    found = {kind: s for kind, s in statistics.by_group(column, labels).items() if s["rows"]}
    order = sorted(found, key=lambda kind: found[kind]["median"], reverse=True)

    def values(key: str) -> list[Any]:
        return [found[kind][key] for kind in order]

    boxes = go.Box(
        y=order,
        q1=values("q25"),
        median=values("median"),
        q3=values("q75"),
        mean=values("mean"),
        lowerfence=values("q05"),
        upperfence=values("q95"),
        orientation="h",
        name="5 to 95 %, quartiles, mean",
        fillcolor="rgba(59,130,246,0.28)",
        line={"color": CHOSEN, "width": 1.5},
        boxmean=True,
    )
    ends = go.Scatter(
        x=[*values("min"), *values("max")],
        y=[*order, *order],
        mode="markers",
        name="extremes",
        marker={"color": REST, "size": 6, "symbol": "line-ns-open"},
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )
    said = f"{scored.name}.{detail}" if detail else scored.name
    return empty([boxes, ends], said, "", 120 + 34 * len(order)).update_yaxes(type="category")


def matrix(
    names: Sequence[str],
    values: Sequence[Sequence[float | None]],
    across: Sequence[str] | None = None,
    *,
    signed: bool = True,
    label: str = "",
    top: float = 1.0,
    usual: Sequence[Sequence[float | None]] | None = None,
) -> Figure:
    """A matrix of correlations (-1 to 1), shares (0 to 1) or other numbers up to ``top``, each cell with its number.

    ``usual`` is what chance gives, which stands below each number.
    """
    go = plotly()
    across = names if across is None else across
    crowded = len(across) > 18

    def text(row: int, column: int) -> str:
        value, by_chance = values[row][column], None if usual is None else usual[row][column]
        if value is None or crowded:
            return ""
        return f"{value:z.2f}" if by_chance is None else f"{value:z.2f}<br><sub>{by_chance:.2f}</sub>"

    tip = "%{y}<br>%{x}<br>%{z:.3f}" + ("" if usual is None else ", by chance %{customdata:.3f}")
    heat = go.Heatmap(
        x=list(across),
        y=list(names),
        z=[list(row) for row in values],
        customdata=usual,
        zmin=-top if signed else 0,
        zmax=top,
        colorscale=SIGNED if signed else SHARE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=[[text(row, column) for column in range(len(across))] for row in range(len(names))],
        texttemplate="%{text}",
        textfont={"size": 11},
        showscale=crowded,
        colorbar={"thickness": 10, "len": 0.9, "outlinewidth": 0, "title": {"text": label}},
        hovertemplate=f"{tip}<extra></extra>",
    )
    figure = empty([heat], height=150 + (26 if usual is None else 36) * len(names))
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    return figure.update_xaxes(type="category", tickangle=-40, showgrid=False, ticks="")


def tail(frequency: Sequence[int], what: str = "tag") -> Figure:
    """How many rows show each tag, the most frequent first; both axes are logarithmic."""
    count = np.asarray(frequency)
    rank = np.unique(np.geomspace(1, max(len(count), 1), TAIL).round().astype(int))[: len(count)]
    tip = f"{what} %{{x:,}}: %{{y:,}} rows<extra></extra>"
    line = plotly().Scatter(
        x=rank, y=count[rank - 1], mode="lines+markers", hovertemplate=tip, line={"color": CHOSEN}, marker={"size": 4}
    )
    return empty([line], f"{what}s, the most frequent first", "rows that show it").update_layout(
        xaxis_type="log", yaxis_type="log"
    )


def token_sizes(found: Mapping[str, Any], least: float) -> Figure:
    """How many tokens a prompt changes by how much: a ``log_histogram`` in nats; from ``least`` on it is enough."""
    go = plotly()
    edges, every, kept = (np.array(found[key]) for key in ("edges", "all", "chosen"))
    x, width, ticks = (edges[1:] + edges[:-1]) / 2, np.diff(edges), np.arange(-4, np.ceil(edges[-1]) + 1)
    text = [f"{size:.3g}" for size in 10**x]
    look = {
        "text": text,
        "textposition": "none",
        "hovertemplate": "%{text} nats: %{y:,}<extra>%{fullData.name}</extra>",
    }
    bars = [
        go.Bar(x=x, y=y, width=width, name=said, marker={"color": colour, "line": {"width": 0}}, **look)
        for y, said, colour in ((kept, "chosen", CHOSEN), (every - kept, "not chosen", REST))
    ]
    figure = empty(bars, "|delta NLL| of a token (nats)", "tokens", 300, barmode="stack", bargap=0)
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{10**tick:g}" for tick in ticks])
    if least > 0:
        _mark(figure, float(np.log10(least)), "informative")
    return figure


def correlation(table: ScoreTable, more: Mapping[str, Floats] | None = None) -> Figure:
    """Rank correlation of every score and detail with each other and with the lengths; copies are left out."""
    lengths = statistics.lengths(None, table.n_tokens) if more is None else more
    columns, _ = statistics.distinct({**lengths, **statistics.columns_of(table)})
    return matrix(list(columns), statistics.spearman(columns), label="rho")


def overlap(table: ScoreTable, budget: str = ASSUMED) -> Figure:
    """Which share of their best rows within a budget the methods have in common (Jaccard), and what chance gives."""
    sets = {name: head(scored, parse_budget(budget)) for name, scored in table.scored.items()}
    usual = statistics.chance([len(rows) for rows in sets.values()], len(table))
    return matrix(list(sets), statistics.jaccard(sets), signed=False, label="Jaccard", usual=usual)


def coverage(
    xy: npt.NDArray[Any], chosen: npt.NDArray[np.bool_], labels: Sequence[str] | None = None, at: Indices | None = None
) -> Figure:
    """Rows in two dimensions: the chosen before the others, or by domain."""
    rows = np.arange(len(xy)) if at is None else at
    size, many = (3.5 if len(xy) > 10_000 else 5), len(xy) > MANY
    x, y = xy[:, 0].astype(np.float64), xy[:, 1].astype(np.float64)
    kinds = [("not chosen", ~chosen, REST, 0.5), ("chosen", chosen, CHOSEN, 0.9)]
    if labels is not None:
        kinds = _by_label(labels, 0.75)
    traces = [
        _points(x[kind], y[kind], said, colour, rows[kind], size, many=many, opacity=opacity)
        for said, kind, colour, opacity in kinds
        if kind.any()
    ]
    blank = {"showticklabels": False, "zeroline": False, "showgrid": False, "ticks": ""}
    margin = {"l": 12, "r": 12, "t": 12, "b": 12}
    return empty(traces, height=520, margin=margin).update_xaxes(**blank).update_yaxes(**blank)


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def comparison(
    lines: Sequence[Mapping[str, Any]],
    label: str = "",
    band: Sequence[float] = (),
    against: str = "the control",
    marked: str | None = None,
) -> Figure:
    """A value of each line with its interval, the first line at the top.

    Args:
        lines: each with ``name``, ``value``, ``low`` and ``high``, and where it has one its ``verdict``.
        label: what the value is.
        band: values of the control with several seeds.
        against: what the control is called.
        marked: the line that stands out.
    """
    go = plotly()
    names = [str(line["name"]) for line in lines]
    kinds = [str(line.get("verdict") or "") for line in lines]
    value, low, high = _values(lines)
    traces = []
    for kind in dict.fromkeys(kinds):
        at = np.array([one == kind for one in kinds])
        colour = VERDICTS.get(kind, CHOSEN)
        traces.append(
            go.Scatter(
                x=value[at],
                y=[name for name, mine in zip(names, at, strict=True) if mine],
                mode="markers",
                name=kind or "not judged",
                marker={"color": colour, "size": 9, "symbol": "circle-open" if kind == FEW else "circle"},
                error_x=_interval(value[at], low[at], high[at], color=colour, thickness=1.5, width=4),
                hovertemplate="%{y}: %{x:.3g}<extra>%{fullData.name}</extra>",
                showlegend=any(kinds),
            )
        )
    figure = empty(traces, label, "", 110 + 30 * len(names))
    if len(band):
        words = {"annotation_text": against, "annotation_position": "top left", "annotation_font": {"size": 11}}
        figure.add_vrect(x0=min(band), x1=max(band), fillcolor=BAND, line_width=0, layer="below", **words)
    figure.update_yaxes(tickvals=names, ticktext=[f"<b>{name}</b>" if name == marked else name for name in names])
    return figure.update_yaxes(autorange="reversed", type="category", categoryorder="array", categoryarray=names)


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
    sign = 1 if lower_is_better(lines[0]) else -1
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
