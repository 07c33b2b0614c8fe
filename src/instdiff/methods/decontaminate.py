"""Rows that overlap no benchmark, by the report of `instdiff decontaminate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Leak, Method, Scores, Signal, Signals, reasons


@dataclass(frozen=True)
class Decontaminate(Method):
    """A filter: rows that overlap an item of a benchmark, a held-out row or a row of another file are left out.

    ``report`` is the file that `instdiff decontaminate --output` wrote for these rows. Its rows are ``contaminated``,
    its near copies within the data ``near_duplicate``; all others have the score 0. It stands first in `then`, with
    ``keep: 100%``. Details: ``coverage`` and ``jaccard`` of the item that the row overlaps most.
    """

    name: ClassVar[str] = "decontaminate"
    paper: ClassVar[str] = "ours"

    report: str = ""

    def signals(self) -> dict[str, Signal]:
        """What the report says of each row."""
        return {what: Signal(Leak(what, self.report)) for what in ("hit", "copy", "coverage", "jaccard")}

    def score(self, s: Signals) -> Scores:
        """0 for rows that stay."""
        hit, copy = s.hit > 0, s.copy > 0
        value = np.where(hit | copy, np.nan, 0.0)
        why = reasons(len(s), contaminated=hit, near_duplicate=copy)
        return Scores(value, why, coverage=s.coverage, jaccard=s.jaccard)
