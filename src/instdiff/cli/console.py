"""How a command speaks: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from instdiff.progress import Advance

PLAIN_SECONDS = 10.0


class Console:
    """Lines, tables and progress, for a terminal, a log file or a program.

    On a terminal progress is a bar; elsewhere it is a plain line now and then. ``as_json`` makes every line one JSON
    object and the result one JSON document.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.terminal = sys.stderr.isatty() and not as_json and not quiet

    def log(self, line: str, **facts: Any) -> None:
        """One line of what happens."""
        if self.quiet:
            return
        text = json.dumps({"message": line, **facts}, ensure_ascii=False) if self.as_json else line
        print(text, file=sys.stderr, flush=True)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """What the command was asked for."""
        if self.as_json:
            print(json.dumps(facts, indent=2, ensure_ascii=False))
        elif text:
            print(text)

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Show a long step."""
        if self.quiet:
            yield lambda rows, tokens: None
        elif self.terminal:
            with self._bar(label, rows, tokens, cached) as advance:
                yield advance
        else:
            with self._lines(label, rows, tokens, cached) as advance:
                yield advance

    @contextmanager
    def _bar(self, label: str, rows: int, tokens: int, cached: int) -> Iterator[Advance]:
        from rich.console import Console as Rich
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rows]:,}/{task.fields[of]:,} rows  {task.fields[speed]:,.0f} tokens/s  ETA"),
            TimeRemainingColumn(),
            TextColumn(f"{_share(cached, rows + cached)} cached"),
        )
        with Progress(*columns, console=Rich(stderr=True), transient=False) as bar:
            task = bar.add_task(label, total=tokens, rows=0, of=rows, speed=0.0)
            done, start = [0, 0], time.monotonic()

            def advance(more_rows: int, more_tokens: int) -> None:
                done[0] += more_rows
                done[1] += more_tokens
                speed = done[1] / max(time.monotonic() - start, 1e-9)
                bar.update(task, completed=done[1], rows=done[0], speed=speed)

            yield advance

    @contextmanager
    def _lines(self, label: str, rows: int, tokens: int, cached: int) -> Iterator[Advance]:
        done, start = [0, 0], time.monotonic()
        last = [start]

        def facts() -> dict[str, Any]:
            took = max(time.monotonic() - start, 1e-9)
            speed = done[1] / took
            left = (tokens - done[1]) / speed if speed else 0.0
            return {"rows": done[0], "of": rows, "tokens_per_s": round(speed), "eta_s": round(left), "cached": cached}

        def line() -> str:
            f = facts()
            return (
                f"{label}: {f['rows']:,}/{rows:,} rows  {f['tokens_per_s']:,} tokens/s  ETA {clock(f['eta_s'])}  "
                f"{_share(cached, rows + cached)} cached"
            )

        def advance(more_rows: int, more_tokens: int) -> None:
            done[0] += more_rows
            done[1] += more_tokens
            if time.monotonic() - last[0] >= PLAIN_SECONDS:
                last[0] = time.monotonic()
                self.log(line(), **facts())

        yield advance
        took = time.monotonic() - start
        self.log(
            f"{label}: {done[0]:,} rows, {done[1]:,} tokens in {clock(took)} "
            f"({done[1] / max(took, 1e-9):,.0f} tokens/s), {_share(cached, rows + cached)} cached",
            **facts(),
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "0%"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right; never wrapped."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
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
    return str(value)
