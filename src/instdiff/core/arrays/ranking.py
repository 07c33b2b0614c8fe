"""Rows by score and id: in memory, or by sorted runs in temporary files that are merged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.spill import SpillingArray

Indices = npt.NDArray[np.int64]
AT_ONCE = 1 << 20
"""Rows sorted in memory; more become several runs."""


def best_first(value: npt.NDArray[np.float64], ids: Sequence[str], *, at_once: int = AT_ONCE) -> Indices:
    """The rows with a finite value, highest first; ties by id, by code points, then by row.

    ``value`` may be a memory map. ``at_once`` rows are sorted together, with some 150 bytes of memory for each. What is
    returned is not to be written to; many rows lie in a temporary file that is mapped.
    """
    runs, out = [], SpillingArray(np.int64)
    for start in range(0, len(value), at_once):
        rows = start + np.flatnonzero(np.isfinite(value[start : start + at_once]))
        run = SpillingArray(np.int64)
        run.extend(_sort_rows(rows, value, ids))
        runs.append(run.array())
    if len(runs) <= 1:
        return runs[0] if runs else out.array()
    size, at = max(1, at_once // len(runs)), [0] * len(runs)
    while True:
        heads = [run[start : start + size] for run, start in zip(runs, at, strict=True)]
        # All rows up to the first end of a head that is not the end of its run are among the heads.
        ends = [
            (-value[head[-1]], ids[head[-1]], int(head[-1]))
            for head, run, start in zip(heads, runs, at, strict=True)
            if start + len(head) < len(run)
        ]
        cuts = [_upto(head, min(ends), value, ids) if ends else len(head) for head in heads]
        out.extend(_sort_rows(np.sort(np.concatenate([h[:c] for h, c in zip(heads, cuts, strict=True)])), value, ids))
        at = [start + cut for start, cut in zip(at, cuts, strict=True)]
        if not ends:
            return out.array()


def _sort_rows(rows: Indices, value: npt.NDArray[np.float64], ids: Sequence[str]) -> Indices:
    """These rows, which rise, best first."""
    low = -value[rows]
    order = np.argsort(low, kind="stable")
    rows, low = rows[order], low[order]
    same = np.concatenate([[False], low[1:] == low[:-1], [False]])
    tied = np.flatnonzero(same[1:] | same[:-1])
    if len(tied):
        names = np.array([ids[row].encode() for row in rows[tied].tolist()])  # sorted as the texts are
        rows[tied] = rows[tied][np.lexsort((names, low[tied]))]
    return rows


def _upto(head: Indices, end: tuple[float, str, int], value: npt.NDArray[np.float64], ids: Sequence[str]) -> int:
    """How many of these rows, best first, stand up to and at ``end``."""
    low = -value[head]
    start, stop = (int(np.searchsorted(low, end[0], side)) for side in ("left", "right"))
    return start + bisect_right(range(start, stop), end[1:], key=lambda at: (ids[int(head[at])], int(head[at])))
