"""How a command speaks: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from instdiff.core.display import visible, visible_json
from instdiff.core.progress import Advance, Meter

PLAIN_SECONDS = 10.0


class Console:
    """Lines, tables and progress, for a terminal, a log file or a program; nothing that data say can move the cursor.

    On a terminal progress is a bar; elsewhere it is a plain line now and then. ``as_json`` makes every line one JSON
    object and the result one JSON document.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.terminal = sys.stderr.isatty() and not as_json and not quiet
        self._meter: Meter | None = None
        self._skipped = set[str]()

    def log(self, line: str, **facts: Any) -> None:
        """One line of what happens."""
        if self.quiet:
            return
        text = visible_json({"message": line, **facts}) if self.as_json else visible(line)
        print(text, file=sys.stderr, flush=True)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """What the command was asked for."""
        if self.as_json:
            print(visible_json(facts, indent=2))
        elif text:
            print(visible(text))

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Show a long step."""
        self._meter = meter = Meter(rows, tokens, cached)
        if self.quiet:
            yield meter.add
        elif self.terminal:
            with self._bar(label, meter) as advance:
                yield advance
        else:
            with self._lines(label, meter) as advance:
                yield advance

    def budget(self, tokens: int) -> None:
        """Show the tokens of a batch beside the running step."""
        if self._meter is not None:
            self._meter.budget = tokens

    def skipped(self, label: str, *, cached: int) -> None:
        """Say once that a step had nothing to do."""
        line = f"{label}: all {cached:,} rows cached"
        if line not in self._skipped:
            self._skipped.add(line)
            self.log(line, step=label, **{**Meter(0, 0, cached).facts(), "seconds": 0.0, "cached_share": 1.0})

    @contextmanager
    def _bar(self, label: str, meter: Meter) -> Iterator[Advance]:
        from rich.console import Console as Rich
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}  ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
        )
        with Progress(*columns, console=Rich(stderr=True), transient=False) as bar:
            task = bar.add_task(escape(visible(label)), total=1.0, counts=_counts(meter), more=_more(meter))

            def advance(more_rows: int, more_tokens: int) -> None:
                meter.add(more_rows, more_tokens)
                bar.update(task, completed=meter.share, counts=_counts(meter), more=_more(meter))

            yield advance

    @contextmanager
    def _lines(self, label: str, meter: Meter) -> Iterator[Advance]:
        last = time.monotonic()

        def advance(more_rows: int, more_tokens: int) -> None:
            nonlocal last
            meter.add(more_rows, more_tokens)
            if time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                eta = "?" if meter.left is None else clock(meter.left)
                self.log(f"{label}: {_counts(meter)}  ETA {eta}  {_more(meter)}", step=label, **meter.facts())

        yield advance
        self.log(
            f"{label}: {meter.done_rows:,} rows, {meter.done_tokens:,} tokens in {clock(meter.seconds)} "
            f"({meter.speed:,.0f} tokens/s), {_more(meter)}",
            step=label,
            **{**meter.facts(), "eta_s": 0},
        )


def _counts(meter: Meter) -> str:
    return f"{meter.done_rows:,}/{meter.rows:,} rows  {meter.speed:,.0f} tokens/s"


def _more(meter: Meter) -> str:
    """The cached share, and the tokens of a batch where they are known."""
    batches = f", batches of {meter.budget:,} tokens" if meter.budget else ""
    return f"{100 * meter.cached_share:.0f}% cached{batches}"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right; never wrapped."""
    header = [_cell(name) for name in header]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *(line(row) for row in cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return visible(str(value))
