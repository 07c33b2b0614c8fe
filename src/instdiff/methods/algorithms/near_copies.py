"""Near copies among texts: datasketch's MinHash finds candidates (Broder, 1997), exact Jaccard similarity decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged
from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.runs import Hashes, distinct, jaccard, runs

WORDS = 3
"""Words of a shingle."""
PERMUTATIONS = 128
_WEIGHTS = (0.01, 0.99)
"""Of false candidates, which cost a comparison, and missed ones: of pairs with a similarity of 0.8, one of 70."""


class NearIndex:
    """Sets of shingles by number, among which those that are ``alike`` to another set are found."""

    def __init__(self, alike: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self.alike = alike
        self._blank = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        # Its bands find no pair above a threshold of 0.998; what it finds too much, the exact similarity leaves out.
        self._index = MinHashLSH(threshold=min(alike, 0.99), num_perm=PERMUTATIONS, weights=_WEIGHTS)
        self._sets: dict[int, Hashes] = {}

    def sketch(self, shingles: Hashes) -> Any:
        """The MinHash of a set of shingles."""
        out = self._blank.copy()
        out.update_batch((shingles >> np.uint64(32)).tolist())
        return out

    def add(self, number: int, shingles: Hashes, sketch: Any) -> None:
        """Take a set in."""
        self._index.insert(number, sketch, check_duplication=False)
        self._sets[number] = shingles

    def extend(self, sets: Sequence[Hashes]) -> NearIndex:
        """Take in sets, numbered in their order; what is empty is like nothing."""
        for number, one in enumerate(sets):
            if len(one):
                self.add(number, one, self.sketch(one))
        return self

    def pairs(self, sets: Sequence[Hashes]) -> Iterator[tuple[int, int, float]]:
        """Each of these sets with each of the index that is alike, and the share of shingles in both (Jaccard)."""
        for at, one in enumerate(sets):
            if len(one):
                yield from ((at, number, share) for number, share in self.near(one, self.sketch(one)))

    def near(self, shingles: Hashes, sketch: Any) -> Iterator[tuple[int, float]]:
        """The sets that share at least ``alike`` of their shingles with this one (Jaccard), with the share."""
        for number in sorted(self._index.query(sketch)):
            share = jaccard(shingles, self._sets[number])
            if share >= self.alike:
                yield number, share


def shingles_of(words: Ragged) -> list[Hashes]:
    """The distinct word triples of each row, as hashes; a shorter row is one shingle, one without words has none."""
    return distinct(runs(words, WORDS, whole=True))


def near_copies(words: Ragged, alike: float = 0.8, caps: Caps | None = None) -> npt.NDArray[np.int64]:
    """Per row the first earlier row that stays and is a near copy of it, or -1: such a row stays itself.

    ``words`` [rows, words of each] are numbers of words. Near copies share at least ``alike`` of their shingles
    (Jaccard); equal rows do, and a row without words is no copy. Pairs are found by MinHash, so a few may be missed.
    With ``caps`` a row whose value is full by those that stay is passed over: it is no copy, and nothing is one of it.
    """
    sets = shingles_of(words)
    out = np.full(len(sets), -1, np.int64)
    stays: dict[bytes, int] = {}
    index, room = NearIndex(alike), Room(caps, len(sets))
    for row, one in enumerate(sets):
        if room.shut[row]:
            continue
        if len(one) and (key := one.tobytes()) not in stays:
            sketch = index.sketch(one)
            stays[key] = next((number for number, _ in index.near(one, sketch)), row)
            if stays[key] == row:
                index.add(row, one, sketch)
        if len(one) and stays[key] != row:
            out[row] = stays[key]
        else:
            room.take(row)
    return out
