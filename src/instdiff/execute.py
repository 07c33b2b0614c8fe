"""Run one pass on this machine, each batch kept as soon as it is there."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Log, Measure
from instdiff.engine.sweep import Sweep
from instdiff.progress import Advance
from instdiff.ragged import Ragged
from instdiff.render import Rows
from instdiff.store import ColumnId, Keys, Store

FLUSH_SECONDS = 1.0
"""A part is written at least this often, so that a kill loses no more than this or the batch in flight."""


def run_pass(
    model: Any,
    rows: Rows,
    keys: Keys,
    columns: dict[Measure, ColumnId],
    store: Store,
    *,
    log: Log,
    advance: Advance | None = None,
    batch_tokens: int | None = None,
) -> set[bytes]:
    """Compute these rows and keep them; the caller gives those that the store lacks, equal ones once.

    Rows that come out non-finite are not kept, so that the next run tries them again.

    Returns:
        The keys of the rows that came out non-finite.
    """
    sweep = Sweep(model, log, batch_tokens)
    bad: set[bytes] = set()
    waiting: list[tuple[Keys, dict[Measure, Ragged]]] = []
    last = time.monotonic()
    try:
        for swept in sweep(rows, tuple(columns)):
            here = keys[swept.at]
            finite = np.ones(len(here), bool)
            for values in swept.columns.values():
                finite &= values.count() == values.lengths()
            bad.update(here[~finite].tolist())
            kept = np.flatnonzero(finite)
            waiting.append((here[kept], {m: v.take(kept) for m, v in swept.columns.items()}))
            if advance is not None:
                advance(len(here), swept.tokens)
            if time.monotonic() - last >= FLUSH_SECONDS:
                _flush(waiting, columns, store)
                last = time.monotonic()
    finally:  # what was computed before an interruption is kept
        _flush(waiting, columns, store)
    return bad


def _flush(waiting: list[tuple[Keys, dict[Measure, Ragged]]], columns: dict[Measure, ColumnId], store: Store) -> None:
    if not waiting:
        return
    keys = np.concatenate([part for part, _ in waiting])
    for measure, column in columns.items():
        parts = [values[measure] for _, values in waiting]
        joined: npt.NDArray[Any] = np.concatenate([part.values for part in parts])
        lengths = np.concatenate([part.lengths() for part in parts])
        store.append(column, keys, Ragged(joined, np.concatenate([[0], np.cumsum(lengths)])))
    waiting.clear()
