"""A selection beside other rows of its pool: what they share, their lengths, what they cover. Nothing is trained."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Per
from instdiff.core.display import html_table, in_one_line
from instdiff.data import Pool
from instdiff.errors import ConfigError, DataError
from instdiff.rendering.renderer import text_lengths
from instdiff.selection.chosen import Chosen
from instdiff.selection.diff import GROUPS, label, quantiles
from instdiff.selection.per import caps_of

WORD = re.compile(r"\w+")
SOURCES = 12
"""Groups that are shown, the largest of the pool first."""


@dataclass(frozen=True)
class Contrast:
    """What a selection and other rows share; each pair is of the selection and of the others.

    ``shared`` rows are in both, and ``by_chance`` so many would be of two draws of these sizes. ``lengths`` are
    quantiles in ``unit``. ``covered`` is the share of the pool's words, each counted once, that occur in the rows.
    ``sources`` are, by each value of the column ``by``, the rows of the pool and of both; empty where there is none.
    """

    name: str
    other: str
    rows: tuple[int, int]
    shared: int
    by_chance: float
    unit: str
    lengths: tuple[dict[str, Any], dict[str, Any]]
    covered: tuple[float, float]
    by: str = ""
    sources: tuple[tuple[str, int, int, int], ...] = ()

    def __repr__(self) -> str:
        (mine, theirs), (here, there) = self.lengths, self.covered
        sources = f", {len(self.sources)} values of '{self.by}'" if self.by else ""
        return (
            f"<{self.name} beside {self.other}: {self.rows[0]:,} and {self.rows[1]:,} rows, {self.shared:,} shared "
            f"(by chance {self.by_chance:,.0f})\n"
            f"  {self.unit}, median: {mine['median']:g} and {theirs['median']:g}\n"
            f"  words of the pool covered: {here:.1%} and {there:.1%}{sources}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: numbers, and rows by source."""
        (mine, theirs), (here, there) = self.lengths, self.covered
        lines: list[list[Any]] = [["rows", *self.rows], ["shared", self.shared, self.shared]]
        lines += [[f"{self.unit}, {name}", mine[name], theirs[name]] for name in ("25%", "median", "75%")]
        lines += [["words of the pool covered", f"{here:.1%}", f"{there:.1%}"]]
        table = html_table(["", self.name, self.other], lines)
        groups = html_table([self.by, "pool", self.name, self.other], self.sources[:SOURCES]) if self.by else ""
        return f"<p>{html.escape(repr(self).splitlines()[0])}</p>{table}{groups}"


def contrast(mine: Chosen, other: Chosen | str, by: str | None, seed: int) -> Contrast:
    """A selection beside another of the same pool, or beside ``random`` rows of the same budget.

    Raises:
        ConfigError: the other is neither.
        DataError: no row has the column ``by``.
    """
    pool, scored = mine.pool, mine.scored
    if isinstance(other, str) and other == "random":
        order = np.random.default_rng(seed).permutation(np.flatnonzero(scored.takeable))
        if mine.per:
            order = caps_of(pool, Per(mine.per["by"], mine.per["most"])).limit(order)
        at, name = mine.budget.as_count(scored).take(order, scored), "random rows"
    elif isinstance(other, Chosen) and other.pool.fingerprint == pool.fingerprint:
        at, name = other.at, f"{other.scored.name} within {other.budget}"
    else:
        raise ConfigError("a selection is compared with 'random', or with another selection of the same pool")
    known = bool(np.all(scored.n_tokens >= 0))
    length = scored.n_tokens if known else text_lengths(pool, "response", "chars")
    every, sides = _words(pool), (mine.at, at)
    column, found = _sources(pool, by, sides)
    return Contrast(
        f"{scored.name} within {mine.budget}",
        name,
        (len(mine.at), len(at)),
        len(np.intersect1d(*sides)),
        len(mine.at) * len(at) / len(pool),
        "response tokens" if known else "response characters",
        (quantiles(length[mine.at].astype(float)), quantiles(length[at].astype(float))),
        (_covered(every, mine.at), _covered(every, at)),
        column,
        found,
    )


def _words(pool: Pool) -> list[frozenset[int]]:
    """The words of each row, numbered."""
    known: dict[str, int] = {}

    def of(texts: Iterable[str]) -> frozenset[int]:
        return frozenset(known.setdefault(word, len(known)) for text in texts for word in WORD.findall(text.lower()))

    return [of((one.instruction, one.response)) for one in pool.samples()]


def _covered(words: list[frozenset[int]], at: npt.NDArray[np.int64]) -> float:
    return len(frozenset().union(*(words[int(i)] for i in at))) / max(1, len(frozenset().union(*words)))


def _sources(
    pool: Pool, by: str | None, sides: tuple[npt.NDArray[np.int64], ...]
) -> tuple[str, tuple[tuple[str, int, int, int], ...]]:
    """Rows of the pool and of both sides for each value of a column, the largest groups first."""
    for name in (by,) if by else GROUPS:
        try:
            values = [in_one_line(label(value), 60) for value in pool.column(name)]
        except DataError:
            if by:
                raise
            continue
        whole, a, b = Counter(values), *(Counter(values[int(i)] for i in at) for at in sides)
        return name, tuple((value, count, a[value], b[value]) for value, count in whole.most_common())
    return "", ()
