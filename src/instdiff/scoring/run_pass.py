"""Run one pass on this machine, each batch kept as soon as it is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from instdiff.core import Measure
from instdiff.core.progress import Advance
from instdiff.store import ColumnId, Store
from instdiff.store.keys import Keys

if TYPE_CHECKING:
    from instdiff.engine.sweep import BatchResult

COMPACT_EVERY = 64
"""Batches after which a column's parts are merged."""
IN_FLIGHT = 4
"""Batches that may wait to be written."""


def run_pass(
    batches: Iterator[BatchResult],
    keys: Keys,
    columns: dict[Measure, ColumnId],
    store: Store,
    advance: Advance | None = None,
) -> set[bytes]:
    """Keep the batches of a pass as they come, from wherever; returns the keys of the rows that came out non-finite.

    The caller has them computed of rows that the store lacks, equal ones once; ``keys`` are those of all of them. Rows
    that come out non-finite are not kept, so that the next run tries them again.
    """
    with BackgroundWriter(keys, columns, store) as keeper:
        for swept in batches:
            keeper.keep(swept)
            if advance is not None:
                advance(len(swept.at), swept.tokens)
    for column in columns.values():
        store.compact(column)
    return keeper.bad


class BackgroundWriter:
    """Writes batches in a thread of its own, so that the next ones are computed meanwhile.

    Leaving the block, in whatever way, waits until all that was handed over is written.
    """

    def __init__(self, keys: Keys, columns: dict[Measure, ColumnId], store: Store) -> None:
        self.keys, self.columns, self.store = keys, columns, store
        self.bad: set[bytes] = set()
        """The keys of the rows that came out non-finite."""
        self._thread = ThreadPoolExecutor(1, "keeper")
        self._waiting: deque[Future[set[bytes]]] = deque()
        self._write_answers = 0

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._thread:
            while self._waiting:
                self._collect()

    def keep(self, swept: BatchResult) -> None:
        """Hand over a batch; waits while too many are not written yet. A StoreError where an earlier one failed."""
        self._waiting.append(self._thread.submit(self._write, swept))
        while len(self._waiting) > IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        self.bad |= self._waiting.popleft().result()

    def _write(self, swept: BatchResult) -> set[bytes]:
        here = self.keys[swept.at]
        finite = np.ones(len(here), bool)
        for values in swept.columns.values():
            finite &= values.count() == values.lengths()
        kept = np.flatnonzero(finite)
        self._write_answers += 1
        for measure, column in self.columns.items():
            self.store.append(column, here[kept], swept.columns[measure].take(kept))
            if self._write_answers % COMPACT_EVERY == 0:
                self.store.compact(column)
        return set(here[~finite].tolist())
