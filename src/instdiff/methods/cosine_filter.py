"""Visit rows in order, keep what is not too similar to what was kept: the filter of DEITA (arXiv:2312.15685)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from instdiff.core import Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_effort
from instdiff.methods.algorithms.threshold import diverse_by_cell
from instdiff.methods.shared.set_method import Indices, Parts, VectorMethod, cells_text, check_parts, parts_of


@dataclass(frozen=True)
class CosineFilter(VectorMethod):
    """Drop a row where ``alike`` kept rows have a cosine above ``threshold`` with it.

    Rows are visited best first by the method before it (``then``), or by id without one. With ``alike`` = m it caps
    near-duplicates: of rows that are all similar m stay. ``threshold`` is a similarity, not a distance.

    The exact way compares a row with all that were kept, and refuses where that would take hours; ``parts=1`` does it
    all the same. ``parts=auto`` compares only rows of one cell, of 1,024 on average, by a k-means that ``seed`` starts;
    a number names the cells. Similar rows on two sides of a border between cells both stay.
    """

    name: ClassVar[str] = "cosine_filter"
    paper: ClassVar[str] = "arXiv:2312.15685 section 2.4"

    threshold: float = 0.9
    alike: int = 1
    parts: Parts = field(default=None, kw_only=True)
    seed: int = field(default=42, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.name, self.parts)
        if self.alike < 1 or not -1 <= self.threshold <= 1:
            raise ConfigError(
                f"'{self.name}': threshold {self.threshold} is a cosine, -1 to 1, and alike {self.alike} at least 1"
            )

    def choose(self, s: Signals, count: int) -> Indices:
        """In the order of earlier scores, where there are any."""
        visited = np.arange(len(s)) if s.prior is None else np.argsort(-s.prior, kind="stable")
        x, cells = vectors(s.vector)[0], parts_of(self.parts, len(s))
        if self.parts is None and self.threshold < 1:
            check_effort(self.name, len(x) * count / 2 * x.shape[1], f"'{self.name}.parts' to auto")
        how: dict[str, Any] = {"threshold": self.threshold, "limit": count, "alike": self.alike, "caps": s.caps}
        return diverse_by_cell(x, visited, cells=cells, seed=self.seed, **how)

    @property
    def approximation(self) -> str | None:
        """Which rows are not compared."""
        return cells_text(self.name, self.parts)
