"""Runs of words side by side as hashes; which runs two sets of texts share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged, offsets_of

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
FEW = 5
"""Items that may share a run however few there are: copies among a few items are no template."""
SHORTEST = 5
"""Words of the shortest item that is looked for."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def runs(words: Ragged, n: int, *, whole: bool = False) -> Ragged:
    """Hashes of the runs of ``n`` words in each row, in order; equal runs have equal ones.

    ``words`` [rows, words of each] are numbers of words. With ``whole`` a shorter row that has words is one run.
    """
    sizes = words.lengths()
    offsets = offsets_of(np.where(sizes, np.maximum(sizes, n), 0) if whole else sizes)
    padded = np.zeros(offsets[-1] + n, np.uint64)
    padded[np.repeat(offsets[:-1] - words.offsets[:-1], sizes) + np.arange(len(words.values))] = words.values + 1
    hashes = np.zeros(offsets[-1], np.uint64)
    for place in range(n):
        hashes = _mixed(np.bitwise_xor(hashes, padded[place : place + offsets[-1]]))
    counts = np.maximum(np.diff(offsets) - n + 1, 0)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)) < np.repeat(counts, np.diff(offsets))
    return Ragged(hashes[inside], offsets_of(counts))


def _mixed(values: Hashes) -> Hashes:
    """Other numbers, one for each, in which all bits depend on all bits."""
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return values ^ (values >> np.uint64(29))


class ItemRuns:
    """The runs of ``n`` words of some items; that of a shorter item, from ``SHORTEST`` words on, is all its words.

    ``items`` [items, words of each] are numbers of words. Items that share a number in ``groups`` are of one kind. Runs
    of ``n`` words that more than ``most`` of the items of a kind have, and more than ``FEW`` of them, are ``common``,
    such as the head of an exam: they are left out.
    """

    def __init__(self, items: Ragged, groups: npt.NDArray[np.int64], n: int, most: float = 0.1) -> None:
        self.items, self.n = items, n
        self.common = _common(runs(items, n), groups, most)
        sizes = items.lengths()
        parts = [(k, np.flatnonzero(sizes >= k if k == n else sizes == k)) for k in range(min(SHORTEST, n), n + 1)]
        self._tables = [(k, self._table(k, some)) for k, some in parts if len(some)]

    def _table(self, k: int, some: npt.NDArray[np.int64]) -> tuple[Hashes, Places, Places]:
        """Runs in their order, with the item of each and the place where it stands there."""
        own = runs(self.items.take(some), k)
        item, place = _places(own)
        kept = np.ones(len(item), bool) if k < self.n else ~np.isin(own.values, np.array([*self.common], np.uint64))
        order = np.flatnonzero(kept)[np.argsort(own.values[kept], kind="stable")]
        return own.values[order], some[item[order]], place[order]

    def shared(self, rows: Ragged) -> Iterator[tuple[int, int, float]]:
        """Each row with each item that it shares a run with, and the share of the item's words that lie in such runs.

        ``rows`` [rows, words of each] are numbers of words, of the same vocabulary.
        """
        sizes = self.items.lengths()
        for k, (known, items, places) in self._tables:
            theirs = runs(rows, k)
            at = np.flatnonzero(_within(theirs.values, known))
            row_of = np.searchsorted(theirs.offsets, at, side="right") - 1
            for part in np.split(np.arange(len(at)), np.flatnonzero(np.diff(row_of)) + 1) if len(at) else ():
                found = np.unique(theirs.values[at[part]])
                covered: dict[int, set[int]] = {}
                for low, high in zip(
                    *(np.searchsorted(known, found, side=side) for side in ("left", "right")), strict=True
                ):
                    for item, place in zip(items[low:high].tolist(), places[low:high].tolist(), strict=True):
                        covered.setdefault(item, set()).update(range(place, place + k))
                yield from (
                    (int(row_of[part[0]]), item, len(them) / int(sizes[item])) for item, them in covered.items()
                )


def _common(own: Ragged, groups: Places, most: float) -> dict[int, tuple[int, int, int]]:
    """Runs that are left out: an item that has it, where it stands there, and how many items have it."""
    item, place = _places(own)
    if not len(item):
        return {}
    key = _mixed(own.values ^ _mixed(groups[item].astype(np.uint64) + np.uint64(1)))
    order = np.lexsort((place, item, key))
    key, item, place = key[order], item[order], place[order]
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    first = np.r_[True, (key[1:] != key[:-1]) | (item[1:] != item[:-1])]
    counts = np.add.reduceat(first, start, dtype=np.int64)
    many = counts > np.maximum(FEW, most * np.bincount(groups)[groups[item[start]]])
    return {
        int(own.values[order[at]]): (int(item[at]), int(place[at]), count)
        for at, count in zip(start[many].tolist(), counts[many].tolist(), strict=True)
    }


def _places(of: Ragged) -> tuple[Places, Places]:
    """Of every run its row, and its place there."""
    row = np.repeat(np.arange(len(of)), of.lengths())
    return row, np.arange(len(row)) - of.offsets[row]


def _within(values: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which values are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)


def distinct(of: Ragged) -> list[Hashes]:
    """The distinct runs of each row, sorted."""
    return [np.unique(of[row]) for row in range(len(of))]


def jaccard(a: Hashes, b: Hashes) -> float:
    """Runs in both over runs in either, of distinct ones; 0 where there are none."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)
