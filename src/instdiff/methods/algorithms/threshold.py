"""Visit rows in order, keep what is not too similar to what was kept: DEITA, Liu et al., ICLR 2024, section 2.4."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.kmeans import cluster
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, matrix, unit

_BLOCK, _FIRST = 256, 8  # rows visited together; room for rows kept, at first
_KEPT = 8192  # rows compared in one product at most


def diverse(
    x: npt.NDArray[Any],
    order: npt.NDArray[np.int64] | None = None,
    *,
    threshold: float = 0.9,
    limit: float | None = None,
    weights: npt.NDArray[Any] | None = None,
    alike: int = 1,
    caps: Caps | None = None,
    cells: Indices | None = None,
) -> Indices:
    """Keep a row unless ``alike`` or more of the rows kept before it have a cosine above ``threshold`` with it.

    Rows come in blocks: one product with all rows kept so far, then one by one inside the block, so the result is that
    of visiting them singly. Rejected rows are never compared with (the published code with a larger batch does that).
    Cosines are float32; one that lies within about 1e-7 of the threshold may fall on either side.

    ``x`` [n, d] has embeddings of any length; float32 may be a memory map, beside which memory holds the kept rows.
    ``order`` are the rows to visit, best first, by default all; others are not taken. A cosine exactly at ``threshold``
    is kept. The row that crosses ``limit``, in rows or in the unit of ``weights`` [n], such as tokens, is the last.
    ``alike`` of 1 is DEITA's filter; m lets no row be kept that has m kept ones near it, a cap on near-duplicates. Rows
    of a value that is full by ``caps`` are passed over. Only rows of one of the ``cells`` [n] are compared. A
    ValueError where a row is not finite, ``alike`` is below 1, or weights have another length.
    """
    x = matrix(x)
    order = np.arange(len(x)) if order is None else np.asarray(order, np.int64)
    if alike < 1:
        raise ValueError(f"alike is {alike}; the least is 1")
    cost = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if len(cost) != len(x):
        raise ValueError(f"{len(cost)} weights for {len(x)} rows")
    cells = np.zeros(len(x), np.int64) if cells is None else cells
    kept, room = defaultdict[int, _Kept](lambda: _Kept(x.shape[1])), Room(caps, len(x))
    out, spent = [np.zeros(0, np.int64)], 0.0
    for part in blocks(len(order), _BLOCK):
        if limit is not None and spent >= limit:
            break
        rows = order[part]
        vectors, cell, close = unit(x[rows]), cells[rows], np.zeros(len(rows), np.int64)
        for one in np.unique(cell).tolist():
            close[cell == one] = kept[one].close(vectors[cell == one], threshold)
        similar = (vectors @ vectors.T > threshold) & (cell[:, None] == cell)
        new = _resolve(similar, close, alike, rows, room)
        if limit is not None:
            new = new[: int(np.searchsorted(spent + np.cumsum(cost[rows[new]]), limit)) + 1]
        spent += float(cost[rows[new]].sum())
        for one in np.unique(cell[new]).tolist():
            kept[one].add(vectors[new[cell[new] == one]])
        out.append(rows[new])
    return np.concatenate(out)


def diverse_by_cell(
    x: npt.NDArray[Any],
    order: npt.NDArray[np.int64] | None = None,
    *,
    cells: int,
    seed: int = 0,
    threshold: float = 0.9,
    limit: float | None = None,
    weights: npt.NDArray[Any] | None = None,
    alike: int = 1,
    caps: Caps | None = None,
) -> Indices:
    """``diverse`` where only rows of one cell are compared: for more rows than can all be.

    Cells are the clusters of a k-means by cosine; one is ``diverse`` itself. In each the rows are those that
    ``diverse`` keeps; similar rows on two sides of a border between cells both stay. For c cells of one size the cost
    is 1 / c of comparing all, and a cell at a time is in memory; with ``caps`` the rows kept in all cells are.
    """
    if cells == 1:
        return diverse(x, order, threshold=threshold, limit=limit, weights=weights, alike=alike, caps=caps)
    order = np.arange(len(x)) if order is None else np.asarray(order, np.int64)
    if weights is not None and len(weights) != len(x):
        raise ValueError(f"{len(weights)} weights for {len(x)} rows")
    label = cluster(x, cells, seed=seed, engine="faiss", spherical=True)[0]
    if caps is not None:  # what one cell takes may shut rows of another, so all are visited together
        return diverse(x, order, threshold=threshold, limit=limit, weights=weights, alike=alike, caps=caps, cells=label)
    label = label[order]
    keep = np.zeros(len(order), bool)
    by_cell = np.argsort(label, kind="stable")
    for places in np.split(by_cell, np.flatnonzero(np.diff(label[by_cell])) + 1):
        keep[places[diverse(x[order[places]], threshold=threshold, alike=alike)]] = True
    out = order[keep]
    if limit is None:
        return out
    spent = np.cumsum(np.ones(len(out)) if weights is None else np.asarray(weights, np.float64)[out])
    return out[: int(np.searchsorted(spent, limit)) + 1] if limit > 0 else out[:0]


def _resolve(similar: npt.NDArray[np.bool_], close: Indices, alike: int, rows: Indices, room: Room) -> Indices:
    """Places inside a block of ``rows`` that are kept; ``close`` counts the similar rows kept in earlier blocks."""
    keep = []
    for at, row in enumerate(rows.tolist()):
        if close[at] < alike and not room.shut[row]:
            keep.append(at)
            room.take(row)
            close += similar[at]
    return np.array(keep, np.int64)


class _Kept:
    """The unit vectors kept so far, in an array that doubles."""

    def __init__(self, width: int) -> None:
        self.rows = np.empty((_FIRST, width), np.float32)
        self.count = 0

    def add(self, vectors: Matrix) -> None:
        if self.count + len(vectors) > len(self.rows):
            more = max(len(self.rows), len(vectors))
            self.rows = np.concatenate([self.rows, np.empty((more, self.rows.shape[1]), np.float32)])
        self.rows[self.count : self.count + len(vectors)] = vectors
        self.count += len(vectors)

    def close(self, vectors: Matrix, threshold: float) -> npt.NDArray[np.int64]:
        """How many kept rows are above the threshold with each vector."""
        out = np.zeros(len(vectors), np.int64)
        for part in blocks(self.count, _KEPT):
            out += (vectors @ self.rows[part].T > threshold).sum(1)
        return out
