"""Tokens in colours on a terminal, elsewhere as marked text."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from instdiff.core.display import visible
from instdiff.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from instdiff.selection.tokens import Spoken

EDGES = (0.5, 1.0, 2.0, 4.0)
"""Nats per token between the shades of NLL and entropy: fixed, so that rows can be compared."""
DELTA_EDGES = (0.1, 0.5, 1.5)
"""The same for differences, on either side of 0."""
RISING = ("", "black on #ffe9c7", "black on #ffc078", "black on #ff8c42", "bold white on #c92a2a")
GAINED = ("", "black on #c3fae8", "black on #63e6be", "black on #12b886")
LOST = ("", "black on #ffe3e3", "black on #ffa8a8", "black on #fa5252")
DIM = "dim"


def columns(spoken: Sequence[Spoken], by: str | None) -> list[tuple[Spoken, str]]:
    """The columns to show: those whose name ends in one of ``by``, separated by commas; all by default.

    Raises a ConfigError where there is none of that name.
    """
    every = [(one, name) for one in spoken for name in sorted(one.columns, key=_order)]
    if by is None or not every:
        return every
    asked = [part.strip().lower() for part in by.split(",") if part.strip()]
    for part in asked:
        if not any(name.endswith(part) for _, name in every):
            raise ConfigError(f"--by '{part}' is not there{did_you_mean(part, {name for _, name in every})}")
    return [(one, name) for one, name in every if any(name.endswith(part) for part in asked)]


def _order(name: str) -> tuple[bool, str]:
    return not name.startswith("delta"), name


def print_tokens(spoken: Sequence[Spoken], by: str | None = None) -> None:
    """Print a row's tokens once for each column, and what stands before them with the first."""
    seen: list[Spoken] = []
    for one, name in columns(spoken, by):
        context = not any(one is other for other in seen)
        seen.append(one)
        values = [value for value in one.columns[name] if math.isfinite(value)]
        mean = sum(values) / max(len(values), 1)
        print(f"\n{name}, {one.view}: {len(values):,} tokens, mean {mean:.4g}, {scale(name)}")
        if sys.stdout.isatty():
            _print_coloured(one, name, context)
        else:
            print(mark_tokens(one, name, context))


def scale(name: str) -> str:
    """What the shades mean."""
    if name.startswith("delta"):
        edges = ", ".join(f"{edge:g}" for edge in DELTA_EDGES)
        return f"base minus calibrated; shades change at {edges} on either side of 0"
    if name.endswith("top1"):
        return "1 where the token is the model's first guess"
    if name.endswith("informative"):
        return "1 where the method selects the token, because the prompt changes its NLL enough"
    return f"in nats; shades change at {', '.join(f'{edge:g}' for edge in EDGES)}"


def mark_tokens(one: Spoken, name: str, context: bool = True) -> str:
    """Each scored token in brackets with its value, the others as they are, or left out."""
    return "".join(
        visible(text) if value is None else f"[{visible(text)}|{value:.2f}]"
        for text, value in _parts(one, name, context)
    )


def _parts(one: Spoken, name: str, context: bool) -> Iterator[tuple[str, float | None]]:
    """Pieces with their values; without ``context`` what was not scored is an ellipsis."""
    values, left_out = iter(one.columns[name]), False
    for piece, target in zip(one.pieces, one.target, strict=True):
        if target:
            yield piece, next(values)
        elif context or not left_out:
            yield piece if context else "… ", None
        left_out = not target


def style(name: str, value: float) -> str:
    """The colour of a value."""
    if not math.isfinite(value):
        return ""
    if name.startswith("delta"):
        shades = GAINED if value > 0 else LOST
        return shades[sum(abs(value) >= edge for edge in DELTA_EDGES)]
    if name.endswith(("top1", "informative")):
        return RISING[2] if bool(value) is name.endswith("informative") else RISING[0]
    return RISING[sum(value >= edge for edge in EDGES)]


def _print_coloured(one: Spoken, name: str, context: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for piece, value in _parts(one, name, context):
        text.append(visible(piece), DIM if value is None else style(name, value))
    Console(file=sys.stdout, highlight=False).print(text)
