"""For each row the other rows most like it, as one-shot examples (MIWV) or as a view of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.errors import require
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, count, matrix, nearest_rows, top_k, unit
from instdiff.methods.algorithms.words import Search

_FLOATS = 1 << 24
"""Similarities held at once, 64 MB, and more where these are of fewer than _ROWS rows."""
_ROWS = 64


def nearest(
    x: npt.NDArray[Any], k: int = 1, *, how: Literal["exact", "hnsw", "ivf"] = "exact", seed: int = 0
) -> npt.NDArray[np.int64]:
    """The ``k`` other rows of highest cosine, [n, k] nearest first (MIWV, eq. 3 and 4).

    A row is left out of its own list by its index: an equal row is a neighbour, at cosine 1. ``x`` [n, d] has
    embeddings of any length and may be a memory map. Beside it stand a copy, as of ``unit``, and 64 MB, or 256 bytes a
    row where that is more; the approximate ways have a second copy, and 270 bytes a row for the graph.

    ``exact`` compares all pairs in blocks; ties go to the lowest index, since the nearest are ranked in float64.
    ``hnsw`` (a graph) and ``ivf`` (cells of a k-means drawn by ``seed``) are approximate, by faiss, for millions of
    rows; -1 where it found fewer than ``k``. A ValueError where ``k`` exceeds the other rows, a row is not finite, or
    ``how`` is unknown.
    """
    x = matrix(x)
    count(k, max(0, len(x) - 1))
    vectors = unit(x)
    if how != "exact":
        return _approximate(vectors, k, how, seed)
    out = np.empty((len(x), k), np.int64)
    for part in blocks(len(x), max(_ROWS, _FLOATS // max(1, len(x)))):
        scores = vectors[part] @ vectors.T
        for at, row in enumerate(range(part.start, part.stop)):
            scores[at, row] = -np.inf
            out[row] = nearest_rows(vectors[row], vectors, scores[at], k)
    return out


def _approximate(vectors: Matrix, k: int, how: str, seed: int) -> npt.NDArray[np.int64]:
    require("faiss", f"the index {how}")
    import faiss

    n, width = vectors.shape
    index: Any
    if how == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(64, 2 * k)
    elif how == "ivf":
        cells = max(1, min(int(4 * n**0.5), n // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.nprobe = seed, max(1, cells // 16)
    else:
        raise ValueError(f"how '{how}' is not 'exact', 'hnsw' or 'ivf'")
    index.train(vectors)
    index.add(vectors)
    found = index.search(vectors, k + 1)[1]
    others = found != np.arange(n)[:, None]
    first = np.argsort(~others, axis=1, kind="stable")[:, :k]  # itself, where it was found, goes to the end
    return np.asarray(np.take_along_axis(found, first, 1), np.int64)


def at_random(n: int, k: int = 1, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """``k`` different other rows at random for each of ``n``: the control beside ``nearest`` and ``bm25``."""
    count(k, max(0, n - 1))
    rng = np.random.default_rng(seed)
    out = np.array([rng.choice(n - 1, k, replace=False) for _ in range(n)], np.int64).reshape(n, k)
    return out + (out >= np.arange(n)[:, None])


def bm25(texts: Sequence[str], k: int = 1, *, k1: float = 1.5, b: float = 0.75) -> npt.NDArray[np.int64]:
    """The ``k`` other texts that a search for each text's words finds best; see ``words.Search`` for the formula.

    Ties, such as texts without a common word, go to the lowest index. A ``k`` above the other texts is a ValueError.
    """
    n = len(texts)
    count(k, max(0, n - 1))
    if not any(any(c.isalnum() or c == "_" for c in text) for text in texts):
        return np.array([top_k(-np.isin(np.arange(n), row).astype(int), k) for row in range(n)]).reshape(n, k)
    search = Search(texts, k1=k1, b=b)
    out: Indices = np.empty((n, k), np.int64)
    for part in blocks(n, max(1, _FLOATS // 2 // n)):
        scores = search.scores(search.counts[part])
        for at, row in enumerate(range(part.start, part.stop)):
            scores[at, row] = -np.inf
            out[row] = top_k(scores[at], k)
    return out
