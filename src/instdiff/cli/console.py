"""How a command speaks: results to standard output, everything else to standard error."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from instdiff.cli.help import fold_command
from instdiff.core.display import span, visible, visible_json
from instdiff.core.progress import Advance, Meter

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""After which a stage without news is told again."""


class Console:
    """Lines, tables and progress, for a terminal, a log file or a program; nothing that data say can move the cursor.

    On a terminal progress is a bar; elsewhere it is a plain line now and then. ``as_json`` makes every line one JSON
    object and the result one JSON document.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.terminal = sys.stderr.isatty() and not as_json and not quiet
        self._meter: Meter | None = None
        self._stage, self._told, self._ended = "", False, False
        self._drawn: RichProgress | None = None
        self._began = self._news = time.monotonic()
        self._skipped = set[str]()

    def log(self, line: str, **facts: Any) -> None:
        """One line of what happens."""
        if self.quiet:
            return
        self._news = time.monotonic()
        text = visible_json({"message": line, **facts}) if self.as_json else visible(line)
        print(text, file=sys.stderr, flush=True)

    def stage(self, what: str) -> None:
        """What is being done from now on; ``beat`` tells it where it takes more than a second."""
        self._stage, self._told, self._began = what, False, time.monotonic()

    def beat(self) -> None:
        """Tell the stage after a second without news, and again after each half minute; a bar is news enough."""
        now = time.monotonic()
        if self._ended or self._drawn or now - max(self._news, self._began) < (SILENT_SECONDS if self._told else 1.0):
            return
        self.log(f"{self._stage}: still at work after {span(now - self._began)}" if self._told else f"{self._stage} …")
        self._told = True

    def end(self) -> None:
        """Nothing is shown from now on but the end's own words; a bar that is drawn stays as it is."""
        self._ended = True
        if self._drawn is not None:
            self._drawn.stop()

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """What the command was asked for."""
        if self.as_json:
            print(visible_json(facts, indent=2))
        elif text:
            print(fit(visible(text), columns()))

    def next(self, *words: object) -> None:
        """The command that goes on from here, as a shell takes it."""
        self.log(f"next: {shlex.join(['instdiff', *map(str, words)])}")

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Show a long step."""
        self._meter = meter = Meter(rows, tokens, cached)
        self.stage(label)
        if self.quiet or self._ended:
            yield meter.add
        elif self.terminal:
            with self._bar(label, meter) as advance:
                yield advance
        else:
            with self._lines(label, meter) as advance:
                yield advance
        self.stage(f"what follows {label}")

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
            self._drawn = bar
            task = bar.add_task(escape(visible(label)), total=1.0, counts=_counts(meter), more=_more(meter))

            def advance(more_rows: int, more_tokens: int) -> None:
                meter.add(more_rows, more_tokens)
                bar.update(task, completed=meter.share, counts=_counts(meter), more=_more(meter))

            try:
                yield advance
            finally:
                self._drawn = None

    @contextmanager
    def _lines(self, label: str, meter: Meter) -> Iterator[Advance]:
        last = time.monotonic()

        def advance(more_rows: int, more_tokens: int) -> None:
            nonlocal last
            meter.add(more_rows, more_tokens)
            if time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                eta = "?" if meter.left is None else span(meter.left)
                self.log(f"{label}: {_counts(meter)}  ETA {eta}  {_more(meter)}", step=label, **meter.facts())

        yield advance
        self.log(
            f"{label}: {meter.done_rows:,} rows, {meter.done_tokens:,} tokens in {span(meter.seconds)} "
            f"({_speed(meter)}), {_more(meter)}",
            step=label,
            **{**meter.facts(), "eta_s": 0},
        )


def _counts(meter: Meter) -> str:
    return f"{meter.done_rows:,}/{meter.rows:,} rows  {_speed(meter)}"


def _speed(meter: Meter) -> str:
    return f"{meter.speed / 1000:.1f}k tok/s" if meter.speed >= 1000 else f"{meter.speed:.0f} tok/s"


def _more(meter: Meter) -> str:
    """The cached share, and the tokens of a batch where they are known."""
    batches = f", batches of {meter.budget:,} tokens" if meter.budget else ""
    return f"{100 * meter.cached_share:.0f}% cached{batches}"


def size(count: int) -> str:
    """Bytes in their own unit."""
    return next(
        (f"{count / of:.3g} {unit}" for of, unit in ((1e9, "GB"), (1e6, "MB")) if count >= of), f"{count / 1e3:.3g} kB"
    )


def columns() -> int | None:
    """The width of the terminal that results go to; None where they go elsewhere and nothing is wrapped."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def fit(text: str, width: int | None) -> str:
    """A text within a width: commands go on after a backslash, other lines below their own beginning."""
    if width is None:
        return text
    out = list[str]()
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        if len(line) <= width:
            out.append(line)
        elif line.lstrip().startswith("instdiff "):
            out += fold_command(line, width)
        else:
            out += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(out)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], indent: int = 0) -> str:
    """Aligned columns: text to the left, numbers to the right; cells go on below where a terminal is too narrow.

    Where it is too narrow for that, each row is a list of its values. ``indent`` characters stand before each line.
    """
    cells = [[_cell(value) for value in line] for line in (header, *rows)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]
    room = columns()
    room = None if room is None else room - indent
    widths = _widths(cells, right, room)
    if widths is None:
        lists = ["\n".join(f"{name}: {value}" for name, value in zip(cells[0], row, strict=True)) for row in cells[1:]]
        return textwrap.indent(fit("\n\n".join(lists), room), " " * indent)

    def lines(values: Sequence[str]) -> Iterator[str]:
        parts = [
            textwrap.wrap(v, w, break_on_hyphens=False) if len(v) > w else [v]
            for v, w in zip(values, widths, strict=True)
        ]
        for line in zip_longest(*parts, fillvalue=""):
            put = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right, strict=True)]
            yield "  ".join(put).rstrip()

    whole = [*lines(cells[0]), *lines(["-" * w for w in widths]), *(x for row in cells[1:] for x in lines(row))]
    return textwrap.indent("\n".join(whole), " " * indent)


def _widths(cells: list[list[str]], right: list[bool], room: int | None) -> list[int] | None:
    """Of each column: as wide as its cells, the widest ones less where there is no room; None where none is enough."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    least = [
        max([max(map(len, head.split()), default=0), *(len(v) if r else min(len(v), 12) for v in values)])
        for (head, *values), r in zip(zip(*cells, strict=True), right, strict=True)
    ]
    while room is not None and sum(widths) + 2 * (len(widths) - 1) > room:
        spare = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not spare:
            return None
        widths[max(spare, key=lambda i: widths[i])] -= 1
    return widths


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
