"""InsTag (Lu et al., ICLR 2024, arXiv:2308.07074): many tags first, and all tags before any comes again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Length, Scores, Signal, Signals, reasons
from instdiff.core.caps import Room
from instdiff.core.columns import first_reason
from instdiff.core.signals import Labels
from instdiff.methods.shared.set_method import Indices, SetMethod


@dataclass(frozen=True)
class InsTag(SetMethod):
    """Rows with most tags first; a pass over them takes each that brings a tag which it does not have yet.

    When a pass ends, the tags are open again and the next begins with the rows that are left. ``column`` holds the tags
    of each row: a list of texts, or what InsTagger writes. Rows without a tag are ``no_tags``. The tags are published,
    the sampler is not: it is our reading, second hand. All rows are ranked at once: ``reach`` is 1. Details:
    ``n_tags``, and ``turn``, the pass that takes the row, from 0.
    """

    name: ClassVar[str] = "instag"
    paper: ClassVar[str] = "arXiv:2308.07074"

    column: str = "tags"
    reach: float = field(default=1.0, kw_only=True)

    def signals(self) -> dict[str, Signal]:
        """The tags of each row."""
        return {"tags": Signal(Labels(self.column)), "length": Signal(Length(unit="chars"))}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows with a tag."""
        return super().ready(s) & (_counts(s) > 0)

    def score(self, s: Signals) -> Scores:
        """Minus the rank, with the number of tags and of the pass."""
        ranks, rows = super().score(s), self.order_rows(s, np.flatnonzero(self.ready(s)))
        turn = np.full(len(s), np.nan)
        turn[rows] = _turns(s.tags[rows])
        reason = first_reason(reasons(len(s), no_tags=_counts(s) == 0), ranks.reason)
        return Scores(ranks.value, reason, n_tags=_counts(s), turn=turn)

    def choose(self, s: Signals, count: int) -> Indices:
        """By the pass that takes them, then by the number of tags."""
        if s.caps is not None:
            return _walk(s.tags, count, Room(s.caps, len(s)))
        return np.lexsort((-_counts(s), _turns(s.tags)))[:count]


def _walk(tags: npt.NDArray[np.object_], count: int, room: Room) -> Indices:
    """Pass after pass, where a row whose value is full is passed over, so that its tags are not seen by it."""
    left, out = sorted(range(len(tags)), key=lambda row: -len(tags[row])), list[int]()
    while left and len(out) < count:
        seen, rest = set[str](), list[int]()
        for row in left:
            if room.shut[row]:
                continue
            if seen.issuperset(tags[row]):
                rest.append(row)
                continue
            out.append(row)
            seen.update(tags[row])
            room.take(row)
        left = rest
    return np.array(out[:count], np.int64)


def _counts(s: Signals) -> npt.NDArray[np.int64]:
    return np.array([len(tags) for tags in s.tags], np.int64)


def _turns(tags: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """The pass that takes each row: the first that lacks one of its tags when the row's turn comes.

    A pass sees the rows with more tags first, then those that come first here, so a row's pass depends on these alone.
    """
    seen: defaultdict[str, set[int]] = defaultdict(set)
    first: defaultdict[str, int] = defaultdict(int)  # the first pass that lacks the tag
    out = np.zeros(len(tags), np.int64)
    for row in sorted(range(len(tags)), key=lambda row: -len(tags[row])):
        out[row] = turn = min(first[tag] for tag in tags[row])
        for tag in tags[row]:
            seen[tag].add(turn)
            while first[tag] in seen[tag]:
                seen[tag].remove(first[tag])
                first[tag] += 1
    return out
