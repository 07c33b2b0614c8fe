"""k-center (Sener & Savarese, ICLR 2018): always the row farthest from all that were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from instdiff.choose.kcenter import kcenter
from instdiff.core import Signals, vectors
from instdiff.methods.sets import Rows, VectorMethod


@dataclass(frozen=True)
class KCenter(VectorMethod):
    """Farthest first, by Euclidean distance between vectors: the chosen rows cover the data within a small radius.

    It starts at a row drawn by ``seed`` (``start="random"``, the paper's) or at the one nearest to the mean of all.
    Outliers come early: a quality filter before it (``then``) is well spent.
    """

    name: ClassVar[str] = "kcenter"
    paper: ClassVar[str] = "arXiv:1708.00489"

    start: Literal["random", "mean"] = "random"
    seed: int = 42

    def choose(self, s: Signals, count: int) -> Rows:
        """Farthest first."""
        return kcenter(vectors(s.vector)[0], count, start=self.start, seed=self.seed)
