"""BM25: rows that a search for the words of a target's rows finds, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Length, Signal, Signals, Text
from instdiff.core.caps import Room
from instdiff.errors import ConfigError, DataError
from instdiff.methods.algorithms.round_robin import take_turns
from instdiff.methods.algorithms.vectors import Indices, blocks, top_k
from instdiff.methods.algorithms.words import Search
from instdiff.methods.shared.targeted import Targeted, Tasks

_FLOATS = 1 << 24
"""Scores held at once: 128 MB."""


@dataclass(frozen=True)
class BM25(Targeted):
    """For each target row in turn, take the row that a search for its words finds best of those that are left.

    Words are runs of letters and digits in lower case, of the ``part`` of the row: its ``instruction``, its
    ``response``, or the whole ``row``. A rare word counts more, and so does one that stands often in a short text;
    ``k1`` and ``b`` say how much (Lucene's ``k1`` is 1.2). How rare a word is, and how long texts are, is the pool's. A
    target without a word in common with any row is passed over, and a row that shares no word with any target is
    ``filtered``. ``match`` and ``task`` are those of `rds`.
    """

    name: ClassVar[str] = "bm25"
    paper: ClassVar[str] = "Robertson & Zaragoza, 2009"
    filters: ClassVar[str] = "without a word of any target"

    part: Literal["instruction", "response", "row"] = "instruction"
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise ConfigError(f"'bm25': k1 is 0 or more and b lies in 0 to 1, not {self.k1:g} and {self.b:g}")

    def signals(self) -> dict[str, Signal]:
        """The texts of both files and the task of each target; rows without a response are told by its length."""
        both = {name: Signal(Text(self.part), of=of) for name, of in (("text", "pool"), ("target", "target"))}
        return both | {"length": Signal(Length(unit="chars"))} | self.tasks_signal()

    def search(self, s: Signals) -> tuple[Search, Tasks]:
        """The pool's index, and the targets of each task; a DataError where no row has a word."""
        if not any(any(c.isalnum() or c == "_" for c in text) for text in s.text):
            raise DataError(f"no row has a word in its {self.part}; give another --set bm25.part=PART")
        return Search(s.text, k1=self.k1, b=self.b), self.tasks(s, np.ones(len(s.target), bool))

    def leave_out(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that share no word with any target."""
        return self.measure_likeness(s, "max") <= 0

    def choose(self, s: Signals, count: int) -> Indices:
        """Targets in turns, or tasks, among the rows that share a word with them."""
        search, tasks = self.search(s)
        counts, lists, depth = search.count(s.target), [], count if s.caps is None else s.caps.depth(count)
        for at in tasks:
            best = np.zeros(len(s))
            for part in blocks(len(at), max(1, _FLOATS // len(s))):
                best = np.maximum(best, search.scores(counts[at[part]]).max(0))
            found = top_k(best, depth)
            lists.append(found[best[found] > 0])
        return take_turns(lists, count, Room(s.caps, len(s)))

    def measure_likeness(self, s: Signals, how: Literal["max", "mean"]) -> Floats:
        """Scores, which add up over words: the mean over queries is the score of their mean words."""
        search, tasks = self.search(s)
        counts, found = search.count(s.target), np.zeros(len(s))
        for at in tasks:
            mean = search.scores(np.asarray(counts[at].sum(0)) / len(at))[0]
            found = np.maximum(found, mean) if how == "max" else found + mean / len(tasks)
        return found
