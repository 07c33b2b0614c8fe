"""Which rows of the data say what an item of a benchmark asks: runs of words in common, and near copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from instdiff.core import Log
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import ConfigError
from instdiff.evaluation.subject import BenchmarkItem, Suite
from instdiff.methods.algorithms.near_copies import NearIndex, shingles_of
from instdiff.methods.algorithms.runs import SHORTEST, Hashes, ItemRuns, jaccard
from instdiff.rendering.vocabulary import Vocabulary, words_of

AT_ONCE = 1 << 14
"""Rows whose runs of words are in memory together."""
NEAR = 0.8
"""The Jaccard similarity of word triples from which texts are near copies."""


@dataclass(frozen=True)
class LeakRule:
    """When a row overlaps an item.

    Args:
        n: words of a run that both have; all words of an item that has fewer, five at least.
        threshold: the least share of the item's words that lie in such runs; 0 is any.
        near_duplicates: the Jaccard similarity of word triples from which both are near copies; None looks for none.
    """

    n: int = 13
    threshold: float = 0.0
    near_duplicates: float | None = NEAR

    def __post_init__(self) -> None:
        near = self.near_duplicates
        if self.n < 1 or not 0 <= self.threshold <= 1 or (near is not None and not 0 < near <= 1):
            raise ConfigError(
                f"n {self.n} is 1 or more, threshold {self.threshold:g} lies in 0 to 1, and near_duplicates "
                f"{near} above 0 and up to 1"
            )


@dataclass(frozen=True)
class Overlap:
    """A row and an item by their numbers.

    ``coverage`` is the share of the item's words in runs that both have; ``jaccard`` the similarity of word triples.
    """

    row: int
    item: int
    coverage: float
    jaccard: float


@dataclass(frozen=True)
class Overlaps:
    """All overlaps of some rows with some items.

    ``pairs`` are ordered by row, the item of highest coverage first, ties by similarity and the item's id.
    ``too_short`` [items] are not looked for. ``common`` are runs that many items of a task have, and that are left out:
    the task, the words, and how many items have them.
    """

    items: Sequence[BenchmarkItem]
    pairs: Sequence[Overlap]
    too_short: npt.NDArray[np.bool_]
    common: Sequence[tuple[str, str, int]]

    def best(self) -> dict[int, Overlap]:
        """Of each row that overlaps the first of its items."""
        return {one.row: one for one in reversed(self.pairs)}

    def among(self, rows: Iterable[int]) -> list[Overlap]:
        """The overlaps of some rows."""
        some = set(rows)
        return [one for one in self.pairs if one.row in some]


def suite_items(suites: Iterable[Suite], log: Log) -> list[BenchmarkItem]:
    """The items of all suites; a task is called ``SUITE.TASK``, or by one name where both have it."""
    return [
        replace(one, task=one.task if one.task == suite.name else f"{suite.name}.{one.task}")
        for suite in suites
        for one in suite.items(log)
    ]


def find_overlaps(texts: Iterable[str], items: Sequence[BenchmarkItem], rule: LeakRule | None = None) -> Overlaps:
    """The rows that overlap items; ``texts`` are of the rows.

    Case, punctuation and blanks make no difference. Near copies are found by MinHash, so a few may be missed; each that
    is found is one by its exact similarity.
    """
    rule, vocabulary = rule or LeakRule(), Vocabulary()
    own = vocabulary.column(item.text for item in items)
    too_short = own.lengths() < min(SHORTEST, rule.n)
    kept = np.flatnonzero(~too_short).tolist()
    tasks = {name: number for number, name in enumerate(dict.fromkeys(item.task for item in items))}
    groups = np.array([tasks[items[at].task] for at in kept], np.int64)
    finder = _Finder(own.take(np.array(kept, np.int64)), groups, rule)
    pairs, left, start = list[Overlap](), iter(texts), 0
    while some := list(islice(left, AT_ONCE)):
        found = finder.find(vocabulary.column(some))
        pairs += [replace(one, row=one.row + start, item=kept[one.item]) for one in found]
        start += len(some)
    pairs.sort(key=lambda one: (one.row, -one.coverage, -one.jaccard, items[one.item].id, one.item))
    common = [_common(items[kept[item]], place, rule.n, count) for item, place, count in finder.runs.common.values()]
    return Overlaps(items, pairs, too_short, common)


def _common(item: BenchmarkItem, place: int, n: int, count: int) -> tuple[str, str, int]:
    return item.task, " ".join(words_of(item.text)[place : place + n]), count


class _Finder:
    """What is known of the items, so that rows can come in pieces."""

    def __init__(self, items: Ragged, groups: npt.NDArray[np.int64], rule: LeakRule) -> None:
        self.rule, self.runs = rule, ItemRuns(items, groups, rule.n)
        self.shingles = shingles_of(items)
        self.near = None if rule.near_duplicates is None else NearIndex(rule.near_duplicates).extend(self.shingles)

    def find(self, rows: Ragged) -> Iterator[Overlap]:
        """The overlaps of some rows, in any order."""
        covered = {(row, item): share for row, item, share in self.runs.shared(rows)}
        sets: list[Hashes] = shingles_of(rows) if self.near is not None or covered else []
        alike = {} if self.near is None else {(row, item): share for row, item, share in self.near.pairs(sets)}
        for key in covered.keys() | alike.keys():
            coverage = covered.get(key, 0.0)
            if key in alike or coverage >= self.rule.threshold:
                row, item = key
                yield Overlap(row, item, coverage, alike.get(key) or jaccard(sets[row], self.shingles[item]))
