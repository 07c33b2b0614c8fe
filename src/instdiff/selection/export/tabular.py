"""Rows as parquet, from which the same samples come back.

Parquet has one type for each column: objects with different keys get all of them, empty where they had none, and tools
or the arguments of calls are then others than they were. So what is written is read again before it counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from instdiff.core.files import writing
from instdiff.data import Pool, load
from instdiff.data.formats import FORMATS
from instdiff.data.write import Sources, write_rows
from instdiff.errors import DataError, StoreError
from instdiff.selection.export.layouts import PAIR, messages, pair_of_messages

AT_ONCE = 1000


def write_parquet(pool: Pool, path: Path) -> tuple[str, int]:
    """Write the rows with their own columns, or as messages where parquet would change them.

    Returns the layout, and how many rows come back as another sample. Raises a StoreError where parquet cannot hold a
    column, or the path cannot be written.
    """
    with writing(path) as aside:
        trial = aside.with_suffix(".parquet")
        try:
            layout, changed = "own", _count_changed(pool, trial, lambda: map(json.dumps, _own(pool)))
            if changed != 0:
                layout, changed = "messages", _count_changed(pool, trial, lambda: map(json.dumps, _as_messages(pool)))
            if changed is None:
                raise StoreError(
                    f"parquet cannot hold the rows of {pool.origin}: a column has values of different types; "
                    "export with --format jsonl"
                )
            os.replace(trial, aside)
        finally:
            trial.unlink(missing_ok=True)
    return layout, changed


def _count_changed(pool: Pool, path: Path, sources: Sources) -> int | None:
    """How many rows come back otherwise; all where they do not come back, None where they cannot be written."""
    try:
        write_rows(path, sources, {})
    except pa.ArrowException:
        return None
    except StoreError as error:
        if "parquet cannot hold" in str(error):
            return None
        raise
    try:
        back = load(path, targets=pool.targets).ids
    except DataError:
        return len(pool)
    return sum(a != b for a, b in zip(back, pool.ids, strict=True)) if len(back) == len(pool) else len(pool)


def _rows(pool: Pool) -> Iterator[dict[str, Any]]:
    for start in range(0, len(pool), AT_ONCE):
        yield from pool.source_rows(range(start, min(start + AT_ONCE, len(pool))))


def _own(pool: Pool) -> Iterator[dict[str, Any]]:
    """The input's rows; tools, of which every one has keys of its own, as JSON text."""
    for row in _rows(pool):
        tools = row.get("tools")
        yield {**row, "tools": json.dumps(tools, ensure_ascii=False)} if isinstance(tools, list | dict) else row


def _as_messages(pool: Pool) -> Iterator[dict[str, Any]]:
    """Messages with the arguments of calls as text, and the columns that are no part of the sample."""
    parts = {column for name in pool.format.split("+") if name in FORMATS for column in FORMATS[name].columns}
    parts |= {"messages", "tools"}
    for row, sample in zip(_rows(pool), pool.samples(), strict=True):
        others = {name: _text(value) for name, value in row.items() if name not in parts}
        made = pair_of_messages(sample) if sample.rejected else messages(sample)
        yield {"tools": None, **with_texts(made), **{name: value for name, value in others.items() if name not in made}}


def with_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A row of messages whose objects without fixed keys are JSON text: arguments, and values for the template."""
    for name in _TURNS:
        for turn in row.get(name, ()):
            for call in turn.get("tool_calls", ()):
                call["function"]["arguments"] = _text(call["function"]["arguments"])
    return {name: value if name in _TURNS else _text(value) for name, value in row.items()}


_TURNS = ("messages", *PAIR)


def _text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
