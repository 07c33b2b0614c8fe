"""Choosing in random parts, for more rows than the exact way can take, and then among what the parts gave.

GreeDi, Mirzasoleiman et al., NIPS 2013; random parts, Barbosa et al., ICML 2015; k-center, Malkomes et al., NIPS 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps
from instdiff.methods.algorithms.kmeans import quotas
from instdiff.methods.algorithms.vectors import Indices, count

Chooser = Callable[..., Indices]
"""Vectors [n, d] and a number of rows in, row indices in the order taken out: ``kcenter``, ``facility``. It gets by
name the columns of ``beside`` for these vectors, and ``chosen`` and ``caps`` where there are any."""


def run_in_partitions(
    x: npt.NDArray[Any],
    k: int,
    choose: Chooser,
    *,
    parts: int,
    oversample: float = 1.0,
    seed: int = 0,
    chosen: npt.NDArray[np.int64] | None = None,
    caps: Caps | None = None,
    **beside: npt.NDArray[Any],
) -> Indices:
    """Take ``k`` rows: in each random part ``oversample`` times its share, then ``k`` among all of these.

    With one part it is ``choose``, the exact way, itself. With ``oversample`` 1 there is no second stage: the first of
    each part come first, then the second of each. Otherwise it is ``choose`` among ``oversample`` k rows. Where each
    part gives ``k`` (``oversample`` at ``parts`` or above), the radius of farthest-first k-center is at most 4 times
    the best one instead of 2, and a greedy of a monotone submodular sum, as facility location, reaches (1 - 1/e) / 2 of
    the best one in expectation instead of 1 - 1/e. A smaller ``oversample`` has no bound. With several parts a larger
    ``k`` may give others.

    ``x`` [n, d] may be a memory map: a part of about n / parts rows at a time is in memory, or the rows of the second
    stage. Rows that are ``chosen`` already stand beside those of each part and are not returned. Of the further columns
    ``beside`` [n] ``choose`` gets the rows that it is to choose from. With ``caps``, the room that ``chosen`` rows
    leave, all rows of a value are in one part, so that no part has to know what another took. A ValueError where ``k``
    exceeds the rows, there are fewer rows than ``parts``, or ``oversample`` is below 1.
    """
    given = np.unique(np.zeros(0, np.int64) if chosen is None else chosen)
    free = np.setdiff1d(np.arange(len(x)), given, assume_unique=True)
    if caps is not None:
        free = free[caps.open[free]]
        parts = min(parts, max(1, len(free)))
    _check(n := len(free), k, parts, oversample)
    if k == 0:
        return free[:0]
    if parts == 1:
        named = ({"chosen": given} if len(given) else {}) | ({} if caps is None else {"caps": caps})
        return choose(np.asarray(x), k, **beside, **named)
    some = _deal(free[np.random.default_rng(seed).permutation(n)], parts, caps)
    shares = _shares(some, k, oversample, caps)
    among = partial(_among, x=x, choose=choose, given=given, beside=beside, caps=caps)
    kept = [among(rows, share) for rows, share in zip(some, shares, strict=True) if share]
    if oversample > 1:
        return among(np.concatenate(kept), k)
    turns = np.argsort(np.concatenate([np.arange(len(rows)) for rows in kept]), kind="stable")
    return np.asarray(np.concatenate(kept)[turns], np.int64)


def _deal(rows: Indices, parts: int, caps: Caps | None) -> list[Indices]:
    """These rows, which are shuffled, in parts of like size; of the rows of one value the first says in which."""
    if caps is None:
        return np.array_split(rows, parts)
    _, first, value = np.unique(caps.codes[rows], return_index=True, return_inverse=True)
    order = np.argsort(first[value], kind="stable")
    head = first[value][order]
    part = np.searchsorted(head, head) * parts // len(rows)
    return np.split(rows[order], np.flatnonzero(np.diff(part)) + 1)


def _shares(some: list[Indices], k: int, oversample: float, caps: Caps | None) -> list[int]:
    """Rows that each part gives; the first parts may be larger by one, and give one more."""
    parts, n = len(some), sum(map(len, some))
    even = [k // parts + (at < k % parts) for at in range(parts)]
    if caps is None and oversample == 1:
        return even
    most = [len(rows) if caps is None else caps.take(rows).most for rows in some]
    if caps is not None:  # what one part cannot give the others do
        even = quotas(np.array(most), k).tolist()
    if oversample == 1:
        return even
    wide = [max(1, int(np.ceil(min(oversample, parts) * k * len(rows) / n))) for rows in some]
    least = even if caps is not None else [0] * parts
    return [min(room, max(share, quota)) for room, share, quota in zip(most, wide, least, strict=True)]


def _check(n: int, k: int, parts: int, oversample: float) -> None:
    count(k, n)
    if not 1 <= parts <= max(n, 1):
        raise ValueError(f"{parts} parts of {n} rows; each must have one at least")
    if not oversample >= 1:
        raise ValueError(f"oversample is {oversample}; below 1 the parts together give fewer rows than are asked for")


def _among(
    rows: Indices,
    k: int,
    x: npt.NDArray[Any],
    choose: Chooser,
    given: Indices,
    beside: dict[str, npt.NDArray[Any]],
    caps: Caps | None,
) -> Indices:
    """``k`` of these rows, where those of ``given`` are there already."""
    some = np.concatenate([given, np.sort(rows)])  # a mapped file is read forwards; of equal rows the lowest is first
    columns: dict[str, Any] = {name: column[some] for name, column in beside.items()}
    columns |= {} if caps is None else {"caps": caps.take(some)}
    if len(given):
        columns["chosen"] = np.arange(len(given))
    return np.asarray(some[choose(np.asarray(x[some]), k, **columns)], np.int64)
