"""Run one pass on this machine, each batch kept as soon as it is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from instdiff.core import Log, Measure
from instdiff.engine.sweep import Sweep
from instdiff.progress import Advance
from instdiff.render import Rows
from instdiff.segment import Keys
from instdiff.store import ColumnId, Store

COMPACT_EVERY = 64
"""Batches after which a column's parts are merged."""


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
    for number, swept in enumerate(sweep(rows, tuple(columns)), 1):
        here = keys[swept.at]
        finite = np.ones(len(here), bool)
        for values in swept.columns.values():
            finite &= values.count() == values.lengths()
        bad.update(here[~finite].tolist())
        kept = np.flatnonzero(finite)
        for measure, column in columns.items():
            store.append(column, here[kept], swept.columns[measure].take(kept))
            if number % COMPACT_EVERY == 0:
                store.compact(column)
        if advance is not None:
            advance(len(here), swept.tokens)
    for column in columns.values():
        store.compact(column)
    return bad
