"""Groups of rows in folds of like size, by their names and a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.errors import DataError

Indices = npt.NDArray[np.int64]


def group_order(groups: Sequence[str] | npt.NDArray[Any], seed: int) -> Indices:
    """Per row the place of its group in the order of ``blake2b(seed | group)``, from 0."""
    names, group = np.unique(np.asarray(groups, object), return_inverse=True)
    digests = [hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).hexdigest() for name in names]
    place = np.empty(len(names), np.int64)
    place[np.argsort(np.array(digests, "S32"))] = np.arange(len(names))
    return place[group]


def deal(order: Indices, k: int) -> Indices:
    """Per row its fold: each group in turn goes to the fold with the fewest rows so far, the lowest of equal ones.

    ``order`` is that of ``group_order``. A DataError where there are fewer groups than folds.
    """
    counts = np.bincount(order)
    if len(counts) < k:
        raise DataError(f"{len(counts)} groups of rows cannot be split into {k} folds; give fewer folds, or more rows")
    sizes, fold = [0] * k, np.empty(len(counts), np.int64)
    for group, count in enumerate(counts.tolist()):
        fold[group] = least = sizes.index(min(sizes))
        sizes[least] += count
    return fold[order]


def outside(order: Indices, folds: Indices, fold: int, fraction: float = 1.0) -> Indices:
    """The rows that are not in a fold, or of them whole groups, in their order, that come to this fraction at least."""
    at = np.flatnonzero(folds != fold)
    if fraction < 1:
        wanted = max(1, round(fraction * len(at)))
        at = at[order[at] <= np.sort(order[at])[wanted - 1]]
    return at
