"""k-center (Sener & Savarese, ICLR 2018): always the row farthest from all that were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.choose.kcenter import kcenter
from instdiff.core import Listed, Signal, Signals, vectors
from instdiff.methods.sets import Rows, VectorMethod


@dataclass(frozen=True)
class KCenter(VectorMethod):
    """Farthest first, by Euclidean distance between vectors: the chosen rows cover the data within a small radius.

    It starts at a row drawn by ``seed`` (``start="random"``, the paper's) or at the one nearest to the mean of all.
    Outliers come early: a quality filter before it (``then``) is well spent. ``onto`` begins with the rows of the list
    ``selected``, those of the round before in a pipeline, and adds to them (DiverseEvol, arXiv:2311.08182).
    """

    name: ClassVar[str] = "kcenter"
    paper: ClassVar[str] = "arXiv:1708.00489"

    start: Literal["random", "mean"] = "random"
    seed: int = 42
    onto: bool = False

    def signals(self) -> dict[str, Signal]:
        """One vector for each row, and which rows there are already."""
        held = {"held": Signal(Listed("selected"))} if self.onto else {}
        return {**super().signals(), **held}

    def choose(self, s: Signals, count: int) -> Rows:
        """Farthest first, behind those that are there."""
        x = vectors(s.vector)[0]
        held = np.flatnonzero(s.held)[:count] if self.onto else np.zeros(0, np.int64)
        more = kcenter(x, count - len(held), start=self.start, seed=self.seed, chosen=held if len(held) else None)
        return np.concatenate([held, more])
