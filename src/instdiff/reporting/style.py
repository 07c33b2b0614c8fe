"""What all pictures of the report share: colours, plotly, an empty figure.

Colours are readable on light and on dark paper; the page sets those of text and lines by its theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from instdiff.errors import PlanError

if TYPE_CHECKING:
    Figure = Any

CHOSEN, REST, OUT, MARK = "#3b82f6", "#94a3b8", "#d6a35c", "#e0603f"
PALETTE = ("#3b82f6", "#e08a3c", "#2fa37c", "#b765c9", "#d6566d", "#5aa9c4", "#9a8f3d", "#7d7ae0", "#8b9bb0", "#c47b5a")
DASHES = ("solid", "dash", "dot")
SIGNED = [[0.0, "#d9652f"], [0.5, "rgba(148,163,184,0.12)"], [1.0, "#2f6fe0"]]
SHARE = [[0.0, "rgba(148,163,184,0.12)"], [1.0, "#2f6fe0"]]


def plotly(what: str = "pictures need") -> Any:
    """The drawing library.

    Raises:
        PlanError: it is missing.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise PlanError(f'{what} plotly, which is missing; run: pip install "instdiff[report]"') from None
    return go


def plotly_script() -> str:
    """The drawing library's own script, as it is shipped.

    Raises:
        PlanError: it is missing.
    """
    plotly("a report needs")
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
