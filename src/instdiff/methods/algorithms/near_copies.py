"""Near copies among texts: MinHash finds the pairs (Broder, 1997), and their Jaccard similarity decides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged, offsets_of

_WORDS = 3
"""Words of a shingle."""
_BANDS, _DEEP = 16, 4
"""At a similarity of 0.8 two rows meet in a band with a probability of 0.9998."""
_SPARE = 0.2
"""By how much a guess of the similarity, by the share of equal minima, may lie below it: three standard deviations."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def near_copies(words: Ragged, alike: float = 0.8, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Rows that share at least ``alike`` of their shingles (Jaccard) with an earlier row; equal rows do.

    ``words`` [rows, words of each] are numbers of words. A shingle is three words side by side, and a shorter row is
    one shingle. A row without words is no copy. Pairs are found by MinHash, so a few may be missed.
    """
    shingles = _shingles(words)
    some = np.flatnonzero(shingles.lengths())
    out = np.zeros(len(words), bool)
    if not len(some):
        return out
    draws = np.random.default_rng(seed).integers(0, 1 << 63, _BANDS * _DEEP, np.uint64) * np.uint64(2) + np.uint64(1)
    lowest = [np.minimum.reduceat(_mixed(shingles.values * draw), shingles.offsets[some]) for draw in draws]
    signatures = np.stack(lowest, 1)
    pairs = np.unique(
        np.concatenate([_pairs(signatures[:, at : at + _DEEP]) for at in range(0, len(draws), _DEEP)]), axis=0
    )
    guess = np.concatenate([(signatures[a] == signatures[b]).mean(1) for a, b in _parts(pairs)] or [np.zeros(0)])
    for at in np.argsort(-guess, kind="stable")[: int((guess >= alike - _SPARE).sum())].tolist():
        row, other = some[pairs[at]]
        out[row] = out[row] or _similarity(shingles[row], shingles[other]) >= alike
    return out


def _pairs(band: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Rows that meet in a band, each with the one before it and with the first: with all it would be a square."""
    mark = np.zeros(len(band), np.uint64)
    for column in band.T:
        mark = _mixed(np.bitwise_xor(mark, column))
    order = np.argsort(mark, kind="stable")
    new = np.r_[True, mark[order][1:] != mark[order][:-1]]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    at = np.flatnonzero(~new)
    return np.concatenate([np.stack([order[at], order[at - 1]], 1), np.stack([order[at], first[at]], 1)])


def _parts(pairs: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Both sides of some thousand pairs at once."""
    for start in range(0, len(pairs), 1 << 14):
        yield pairs[start : start + (1 << 14), 0], pairs[start : start + (1 << 14), 1]


def _shingles(words: Ragged) -> Ragged:
    """Numbers of word triples; those of equal triples are equal."""
    sizes = words.lengths()
    offsets = offsets_of(np.where(sizes, np.maximum(sizes, _WORDS), 0))
    padded = np.zeros(offsets[-1] + _WORDS, np.uint64)
    padded[np.repeat(offsets[:-1] - words.offsets[:-1], sizes) + np.arange(len(words.values))] = words.values + 1
    hashes = np.zeros(offsets[-1], np.uint64)
    for place in range(_WORDS):
        hashes = _mixed(np.bitwise_xor(hashes, padded[place : place + offsets[-1]]))
    counts = np.maximum(np.diff(offsets) - _WORDS + 1, 0)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)) < np.repeat(counts, np.diff(offsets))
    return Ragged(hashes[inside], offsets_of(counts))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Other numbers, one for each, in which all bits depend on all bits."""
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return values ^ (values >> np.uint64(29))


def _similarity(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> float:
    """Shingles in both over shingles in either."""
    mine, other = set(a.tolist()), set(b.tolist())
    return len(mine & other) / len(mine | other)
