"""Text of data as people may look at it: nothing in it can move, hide or colour what stands around it."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

from instdiff.errors import require

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Categories of characters that have no picture of their own: control, direction, private, line separators."""


def visible(text: str) -> str:
    """Control and direction marks as their code points, so that data cannot rearrange a page or a terminal."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t" else c for c in text)


def visible_json(value: Any, indent: int | None = None) -> str:
    """JSON text that a terminal may be given: characters without a picture are escaped, so that the value is the same.

    Line breaks between the parts stay.
    """

    def escaped(c: str) -> str:
        return "\\u007f" if c == "\x7f" else json.dumps(c)[1:-1]

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(escaped(c) if unicodedata.category(c) in HIDDEN and c != "\n" else c for c in text)


def in_one_line(text: str, most: int = 160) -> str:
    """The beginning of a text for a line of a table: visible, without line breaks."""
    flat = " ".join(text[: 4 * most].split())
    return visible(flat[:most]) + (" …" if len(flat) > most or len(text) > 4 * most else "")


class Shown:
    """What shows itself: in a notebook as the text that it is in a terminal, where it has no table of its own."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(visible(repr(self)))}</pre>"


def html_table(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table for a notebook; everything in it is text."""

    def row(tag: str, cells: Iterable[Any]) -> str:
        said = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{html.escape(visible(text))}</{tag}>" for text in said) + "</tr>"

    body = "".join(row("td", line) for line in lines)
    return f"<table><thead>{row('th', header)}</thead><tbody>{body}</tbody></table>"


def some(names: Iterable[str], most: int = 4) -> str:
    """The first names of many, each in one line."""
    every = [in_one_line(name, 60) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def pandas() -> Any:
    """The library of data frames; a PlanError where it is missing."""
    require("pandas", "a data frame")
    import pandas as pd

    return pd


def span(seconds: float) -> str:
    """A time in its own unit."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
