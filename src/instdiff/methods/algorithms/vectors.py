"""What the choosers share: rows checked and cut into blocks, unit length, the best few of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.spill import SpillingArray

Indices = npt.NDArray[np.int64]
"""Row indices, in the order taken."""
Matrix = npt.NDArray[np.float32]
"""One row per sample; may be a memory map."""

_GROUPS = 64
_AT_ONCE = 8192
"""Rows looked at together where nothing else says."""
_ROUNDING = 4e-6  # of a float32 inner product of unit rows, with room: finalists within it are compared in float64


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices that cover ``range(n)``, each of at most ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def matrix(x: npt.NDArray[Any], name: str = "x") -> Matrix:
    """``x`` as float32 [n, d]: itself, also a memory map, where it is float32 already, else a copy, as of ``unit``.

    A ValueError where it has not two dimensions, no column, or a number that is not finite (the row is named).
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} has shape {x.shape}; expected rows and columns")
    x = x if x.dtype == np.float32 else _map_blocks(x, lambda part: part)
    for part in blocks(len(x), _AT_ONCE):
        good = np.isfinite(x[part]).all(1)
        if not good.all():
            raise ValueError(f"{name}: row {part.start + int(np.argmin(good))} has a number that is not finite")
    return x


def _map_blocks(x: npt.NDArray[Any], made: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Matrix:
    """What is made of the rows, a block at a time; a large one lies in a temporary file that is mapped."""
    out = SpillingArray(np.float32)
    for part in blocks(len(x), _AT_ONCE):
        out.extend(made(x[part]).ravel())
    return out.array().reshape(x.shape)


def count(k: int, n: int) -> int:
    """``k``, a number of rows out of ``n``; a ValueError where it cannot be one."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} rows are asked for, of {n}")
    return k


def squares(x: Matrix) -> npt.NDArray[np.float32]:
    """Squared length of each row, [n]."""
    out = np.empty(len(x), np.float32)
    for part in blocks(len(x), _AT_ONCE):
        out[part] = np.einsum("ij,ij->i", x[part], x[part])
    return out


def unit(x: Matrix) -> Matrix:
    """A copy with rows of length 1; a row of zeros stays zero, at cosine 0 to every row.

    It is not to be written to; a large one lies in a temporary file that is mapped, and not in memory.
    """
    return _map_blocks(x, _unit_rows)


def _unit_rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    length = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))[:, None]
    return x / np.where(length > 0, length, 1)


def top_k(scores: npt.NDArray[Any], k: int, slack: float = 0.0) -> Indices:
    """Indices of the ``k`` highest scores [n], highest first, ties by lowest index.

    With ``slack`` also those that lie within it of the last one, so that a caller can rank them more finely.
    """
    n = len(scores)
    if k <= 0:
        return np.zeros(0, np.int64)
    # The k-th highest maximum of disjoint groups lies at or below the k-th highest score, and costs far less to find.
    width = n // _GROUPS
    heads = scores[: width * _GROUPS].reshape(_GROUPS, width).max(0) if width >= k else scores
    least = np.partition(heads, len(heads) - k)[len(heads) - k] if k < n else scores.min()
    rows = np.flatnonzero(scores >= least - slack)
    order: Indices = rows[np.argsort(-scores[rows], kind="stable")]
    if slack == 0 or len(order) <= k:
        return order[:k]
    order = order[scores[order] >= scores[order[k - 1]] - slack]
    return order


def nearest_rows(query: Matrix, x: Matrix, scores: npt.NDArray[np.float32], k: int) -> Indices:
    """The ``k`` rows of ``x`` [n, d] with the highest inner product with ``query`` [d], best first.

    ``scores`` [n] are these products in float32; -inf leaves a row out. How a BLAS rounds depends on the place in its
    blocks, so the finalists are ranked again in float64, row by row: equal rows tie exactly, at the lowest index.
    """
    rows = np.sort(top_k(scores, k, _ROUNDING))
    rows = rows[scores[rows] > -np.inf]
    return rows[np.argsort(-(x[rows].astype(np.float64) * query).sum(1), kind="stable")[:k]]
