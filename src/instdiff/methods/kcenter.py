"""k-center (Sener & Savarese, ICLR 2018): always the row farthest from all that were taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Listed, Signal, Signals, vectors
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.shared.set_method import Indices, PartitionedMethod


@dataclass(frozen=True)
class KCenter(PartitionedMethod):
    """Greedy: add the row farthest from the chosen ones, which then cover the data within a small radius.

    It starts at a row drawn by ``seed`` (``start="random"``, the paper's) or at the one nearest to the mean of all.
    Outliers come early: a quality filter before it (``then``) is well spent. ``onto`` begins with the rows of the list
    ``selected``, those of the round before in a pipeline, and adds to them (DiverseEvol, arXiv:2311.08182).

    The exact way costs rows times rows taken, and refuses where that would take hours; ``parts=1`` does it all the
    same. ``parts=auto`` deals the rows out to random parts of at most 65,536, or to as many as are named, and takes an
    equal share of each: the radius within which all rows lie grows (docs/scale.md has by how much). With ``over`` = m
    each gives m times its share, of which the exact way takes the last; with ``over`` = ``parts`` the radius is at most
    4 times the best one, where the exact way has 2. ``seed`` also draws the parts.
    """

    name: ClassVar[str] = "kcenter"
    paper: ClassVar[str] = "arXiv:1708.00489"
    of_a_part: ClassVar[int] = 1 << 16

    start: Literal["random", "mean"] = "random"
    onto: bool = False

    def signals(self) -> dict[str, Signal]:
        """One vector for each row, and which rows there are already."""
        held = {"held": Signal(Listed("selected"))} if self.onto else {}
        return {**super().signals(), **held}

    def choose(self, s: Signals, count: int) -> Indices:
        """Farthest first, behind those that are there."""
        x = vectors(s.vector)[0]
        held, caps = np.flatnonzero(s.held)[:count] if self.onto else np.zeros(0, np.int64), s.caps
        if caps is not None:
            held = caps.limit(held)
            caps = caps.after(held)
        choose = partial(kcenter, start=self.start, seed=self.seed)
        return np.concatenate(
            [held, self.choose_rows(x, count - len(held), choose, chosen=held if len(held) else None, caps=caps)]
        )

    def pairs(self, n: int, k: int) -> float:
        """All rows with all that are taken."""
        return float(n) * k
