"""Visit rows in order, keep what is not too similar to what was kept: the filter of DEITA (arXiv:2312.15685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.choose.diverse import diverse
from instdiff.core import Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.sets import Rows, VectorMethod


@dataclass(frozen=True)
class CosineFilter(VectorMethod):
    """Keep a row unless ``alike`` kept rows have a cosine above ``threshold`` with it.

    Rows are visited best first by the method before it (``then``), or by id without one. With ``alike`` = m it caps
    near-duplicates: of rows that are all similar m stay. ``threshold`` is a similarity, not a distance.
    """

    name: ClassVar[str] = "cosine_filter"
    paper: ClassVar[str] = "arXiv:2312.15685 section 2.4"

    threshold: float = 0.9
    alike: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alike < 1 or not -1 <= self.threshold <= 1:
            raise ConfigError(
                f"'{self.name}': threshold {self.threshold} is a cosine, -1 to 1, and alike {self.alike} at least 1"
            )

    def choose(self, s: Signals, count: int) -> Rows:
        """In the order of earlier scores, where there are any."""
        visited = np.arange(len(s)) if s.prior is None else np.argsort(-s.prior, kind="stable")
        return diverse(vectors(s.vector)[0], visited, threshold=self.threshold, limit=count, alike=self.alike)
