"""What two selections share, and where they differ: by source, by length, by score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.core import Floats, Log
from instdiff.core.display import in_one_line
from instdiff.data import Pool
from instdiff.errors import DataError, InstDiffError
from instdiff.rendering.renderer import text_lengths
from instdiff.scoring.table import ScoreTable, read_scores
from instdiff.selection.record import Found, Reading, find, rows_of

GROUPS = ("source", "dataset", "domain", "category", "task", "task_type", "language", "lang")
"""Columns by which rows are told apart, where none is named."""
QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "max": 1.0}
MOST_GROUPS = 50

Row = tuple[str, int]
"""A row by content, and which of its copies: the first is 0."""


@dataclass(frozen=True)
class Parts:
    """The rows of both sides: their keys, in order, and what is in one or in both."""

    a: list[Row]
    b: list[Row]

    def by_name(self) -> dict[str, list[Row]]:
        """All groups of rows that are compared."""
        in_a, in_b = set(self.a), set(self.b)
        return {
            "A": self.a,
            "B": self.b,
            "shared": [row for row in self.a if row in in_b],
            "only A": [row for row in self.a if row not in in_b],
            "only B": [row for row in self.b if row not in in_a],
        }


def difference(
    a: str,
    b: str,
    *,
    data: str | list[str] | None = None,
    scores: Sequence[str] = (),
    by: str | None = None,
    examples: int = 3,
    reading: Reading | None = None,
    limit: int | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Compare two selections (a file of rows, its record, or a run folder), as plain values.

    ``data`` is the input of both, where they do not bring their rows themselves, and ``limit`` how many of its rows are
    read; ``scores`` are score files besides
    those that lie beside the selections. Rows are grouped ``by`` a column, by default the first of ``GROUPS`` that they
    have; so many ``examples`` are shown of those that are in one only. The log is told what cannot be compared. Raises
    a DataError where a selection or the column is not there.
    """
    said = log or (lambda line: None)
    sides = {"A": find(a, reading, log), "B": find(b, reading, log)}
    parts = Parts(*(_keys(side.ids) for side in sides.values()))
    named = parts.by_name()
    texts = _texts(sides, data, reading, said, limit)
    columns = _columns(sides, scores, said)
    facts: dict[str, Any] = {
        "a": _about(sides["A"]),
        "b": _about(sides["B"]),
        **_counts(named, sides),
        "lengths": {**_lengths(named, texts), **{k: _spread(named, v) for k, v in columns.items() if k == "tokens"}},
        "scores": {k: _spread(named, v) for k, v in columns.items() if k != "tokens"},
    }
    if texts:
        found = _by_group(named, texts, by)
        facts |= {"groups": found} if found else {}
    elif by:
        raise DataError(f"the rows themselves are not there to group by '{by}'; give --data FILE")
    facts["examples"] = {
        name: [_example(row, texts, sides, columns) for row in named[name][:examples]] for name in ("only A", "only B")
    }
    return facts


def _keys(ids: Sequence[str]) -> list[Row]:
    seen: Counter[str] = Counter()
    out = []
    for name in ids:
        out.append((name, seen[name]))
        seen[name] += 1
    return out


def _about(side: Found) -> dict[str, Any]:
    record = side.record or {}
    told: dict[str, Any] = {key: record[key] for key in ("method", "budget", "per") if key in record}
    return {"name": side.name, "rows": len(side.ids), **told}


def _counts(named: Mapping[str, Sequence[Row]], sides: Mapping[str, Found]) -> dict[str, Any]:
    a, b, shared = len(named["A"]), len(named["B"]), len(named["shared"])
    facts: dict[str, Any] = {
        "shared": shared,
        "only_a": len(named["only A"]),
        "only_b": len(named["only B"]),
        "jaccard": shared / max(a + b - shared, 1),
        "overlap": shared / max(min(a, b), 1),
    }
    prints = {(side.record or {}).get("data", {}).get("fingerprint") for side in sides.values()}
    sizes = {(side.record or {}).get("data", {}).get("rows") for side in sides.values()}
    if len(prints) == len(sizes) == 1 and None not in prints | sizes:
        (pool,) = sizes
        facts |= {"pool_rows": pool, "shared_by_chance": a * b / max(pool, 1)}
    elif None not in prints:
        facts["other_data"] = True
    return facts


def _texts(
    sides: Mapping[str, Found],
    data: str | list[str] | None,
    reading: Reading | None,
    log: Log,
    limit: int | None = None,
) -> dict[Row, tuple[Pool, int]]:
    """Where each row's text is."""
    out: dict[Row, tuple[Pool, int]] = {}
    for side in sides.values():
        try:
            pool = rows_of(side, data, reading, limit=limit)
        except InstDiffError as error:
            if data:
                raise
            log(f"{side.name}: {error}; sources, texts and lengths in characters are left out")
            return {}
        for at, row in enumerate(_keys(pool.ids)):
            out.setdefault(row, (pool, at))
    return out


def _columns(sides: Mapping[str, Found], scores: Sequence[str], log: Log) -> dict[str, dict[Row, float]]:
    """Token counts and scores of rows, from all score files that are there."""
    beside = [str(side.scores) for side in sides.values() if side.scores]
    tables: dict[str, ScoreTable] = {}
    for path in dict.fromkeys([*scores, *beside]):
        try:
            tables[path] = read_scores(path)
        except InstDiffError as error:
            if path in scores:
                raise
            log(f"{error}; its scores are left out")
    names = Counter(name for table in tables.values() for name in table)
    out: dict[str, dict[Row, float]] = {}
    for path, table in tables.items():
        keys = _keys(table.ids)
        if np.all(table.n_tokens >= 0):
            out.setdefault("tokens", {}).update(zip(keys, table.n_tokens.astype(float).tolist(), strict=True))
        for name, scored in table.scored.items():
            label = name if names[name] == 1 else f"{name} ({Path(path).parent.name}/{Path(path).name})"
            out[label] = dict(zip(keys, scored.value.tolist(), strict=True))
    return out


def _lengths(named: Mapping[str, Sequence[Row]], texts: Mapping[Row, tuple[Pool, int]]) -> dict[str, Any]:
    """Characters of the responses, which are known wherever the rows are."""
    if not texts:
        return {}
    pools = {id(pool): text_lengths(pool, "response", "chars") for pool, _ in texts.values()}
    known = {row: float(pools[id(pool)][at]) for row, (pool, at) in texts.items()}
    return {"response characters": _spread(named, known)}


def _spread(named: Mapping[str, Sequence[Row]], known: Mapping[Row, float]) -> dict[str, Any]:
    return {name: quantiles(np.array([known.get(row, np.nan) for row in rows])) for name, rows in named.items()}


def quantiles(values: Floats) -> dict[str, Any]:
    """Cuts and mean of the values that are numbers, and how many are."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return {"rows": 0, **dict.fromkeys([*QUANTILES, "mean"])}
    cuts = np.quantile(finite, list(QUANTILES.values())) + 0.0  # so that no -0 is shown
    return {"rows": len(finite), **dict(zip(QUANTILES, cuts.tolist(), strict=True)), "mean": float(finite.mean())}


def _by_group(
    named: Mapping[str, Sequence[Row]], texts: Mapping[Row, tuple[Pool, int]], by: str | None
) -> dict[str, Any] | None:
    """Rows of each part for each value of a column, the largest groups first."""
    pools = {id(pool): pool for pool, _ in texts.values()}
    columns: dict[int, list[Any]] = {}
    for name in (by,) if by else GROUPS:
        try:
            columns = {key: pool.column(name) for key, pool in pools.items()}
        except DataError:
            if by:
                raise
            continue
        break
    else:
        return None
    of = {row: label(columns[id(pool)][at]) for row, (pool, at) in texts.items()}
    counts = {part: Counter(of[row] for row in rows if row in of) for part, rows in named.items()}
    totals = counts["A"] + counts["B"]
    order = sorted(totals, key=lambda value: (-totals[value], value))
    rows = [{"value": value, **{part: counts[part][value] for part in named}} for value in order[:MOST_GROUPS]]
    return {"by": name, "rows": rows, "more": max(0, len(order) - MOST_GROUPS)}


def label(value: Any) -> str:
    """A value of a column as the name of a group."""
    return "null" if value is None else str(value)


def _example(
    row: Row,
    texts: Mapping[Row, tuple[Pool, int]],
    sides: Mapping[str, Found],
    columns: Mapping[str, Mapping[Row, float]],
) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": row[0]}
    for side in sides.values():
        if side.rows and row[0] in side.ids:
            facts["row"] = side.rows[side.ids.index(row[0])]
            break
    if row in texts:
        pool, at = texts[row]
        sample = pool.sample(at)
        facts |= {"instruction": in_one_line(sample.instruction), "response": in_one_line(sample.response)}
    values = {name: known[row] + 0.0 for name, known in columns.items() if np.isfinite(known.get(row, np.nan))}
    return facts | ({"scores": values} if values else {})
