"""Greedy coverage of tags in rounds, our reading of MADS (arXiv:2605.30857); its method is not published in detail."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.vectors import Indices, count

_UNIT = 1 << 24
"""Weights are whole multiples of 1 / _UNIT, so that sums are exact and ties are ties."""
_TAKEN = np.iinfo(np.int64).min // 2


def coverage(
    indptr: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    k: int,
    *,
    times: int = 1,
    weight: Literal["one", "rarity"] = "one",
    common: float = 0.9,
    caps: Caps | None = None,
) -> Indices:
    """Take, ``k`` times, the row with the most tags that are still open; when none has any, open all tags again.

    The tags of row i are ``indices[indptr[i]:indptr[i + 1]]``, no tag twice. A tag is closed when ``times`` rows have
    shown it; it counts 1, or log(n / f) with f the rows that have it (``weight="rarity"``). Tags in more than the share
    ``common`` of the rows are left out. Gains are kept up to date through the rows of each tag, in whole numbers, so
    that the order is exactly that of the plain definition. Of a value that is full by ``caps`` no further row is taken.
    Ties go to the lowest index; rows without a tag come last. A
    ValueError where ``k`` exceeds the rows, ``times`` is below 1, offsets do not fit, or a tag is negative or repeated.
    """
    n = len(indptr) - 1
    count(k, n)
    if times < 1:
        raise ValueError(f"times is {times}; the least is 1")
    owner, start, rows = _by_tag(indptr, indices)
    weights = _weights(np.diff(start), n, weight, common)
    # bincount adds in float64, which is exact below 2^53: 2^24 times the tags of one row.
    full = np.bincount(owner, weights[indices], n).astype(np.int64)
    left, out, room = np.where(weights > 0, times, 0), np.empty(k, np.int64), Room(caps, n)
    gain = np.where(room.shut, _TAKEN, full)
    for at in range(k):
        row = int(gain.argmax())
        if gain[row] == 0:
            gain, left = np.where(room.shut, _TAKEN, full), np.where(weights > 0, times, 0)
            gain[out[:at]] = _TAKEN
            row = int(gain.argmax())
        out[at], gain[row] = row, _TAKEN
        gain[room.take(row)] = _TAKEN
        tags = indices[indptr[row] : indptr[row + 1]]
        tags = tags[left[tags] > 0]
        left[tags] -= 1
        for tag in tags[left[tags] == 0].tolist():
            gain[rows[start[tag] : start[tag + 1]]] -= weights[tag]
    return out


def _weights(frequency: Indices, n: int, weight: str, common: float) -> npt.NDArray[np.int64]:
    """What each tag counts, in 1 / _UNIT."""
    used = (frequency > 0) & (frequency <= common * n)
    if weight == "one":
        return np.where(used, _UNIT, 0)
    if weight != "rarity":
        raise ValueError(f"weight '{weight}' is not 'one' or 'rarity'")
    return np.where(used, np.rint(np.log(n / np.maximum(frequency, 1)) * _UNIT), 0).astype(np.int64)


def _by_tag(indptr: npt.NDArray[Any], indices: npt.NDArray[Any]) -> tuple[Indices, Indices, Indices]:
    """The row of each entry; and the other way round: offsets per tag, and the rows of each tag."""
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices) or np.any(np.diff(indptr) < 0):
        raise ValueError(f"indptr must rise from 0 to {len(indices)}, the number of tags")
    if len(indices) and indices.min() < 0:
        raise ValueError("tags are whole numbers from 0")
    owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    by_tag = np.argsort(indices, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(indices))]).astype(np.int64)
    rows, tags = owner[by_tag], indices[by_tag]
    twice = (rows[1:] == rows[:-1]) & (tags[1:] == tags[:-1])
    if twice.any():
        raise ValueError(f"row {rows[int(twice.argmax())]} has tag {tags[int(twice.argmax())]} twice")
    return owner, start, rows
