"""The choice of one who knows the labels of `builtin:skills`: how good a selection can be there."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Column, Method, Scores, Signal
from instdiff.methods.random import uniform

TIERS = ("learnable", "known", "filler", "duplicate", "beyond", "noise")
"""Kinds of rows, the ones wanted most first."""


@dataclass(frozen=True)
class Oracle(Method):
    """Clean rows of learnable skills first, going round the skills, so that each is shown as often as there are rows.

    Which rows of a skill come first is random, by ``seed``. Of the rows that are taken before the learnable ones are
    used up, ``rehearse`` is the share of known skills, so that these are not forgotten.
    """

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "control"

    seed: int = 42
    rehearse: float = 0.0

    def signals(self):
        """The labels."""
        return {"kind": Signal(Column("kind")), "skill": Signal(Column("skill"))}

    def score(self, s):
        """Minus the place in the order that is wanted."""
        draw = uniform(self.seed, s)
        tier = np.array([TIERS.index(kind) for kind in s.kind], float)
        turn, place = np.zeros(len(s)), np.zeros(len(s))
        for group in sorted(set(zip(tier, s.skill, strict=True))):
            rows = np.flatnonzero((tier == group[0]) & (s.skill == group[1]))
            turn[rows[np.argsort(-draw[rows], kind="stable")]] = np.arange(len(rows))
        for kind in set(tier):
            rows = np.flatnonzero(tier == kind)
            place[rows[np.lexsort((-draw[rows], turn[rows]))]] = np.arange(len(rows))
        if self.rehearse:
            place[tier == 0] /= 1 - self.rehearse
            place[tier == 1] /= self.rehearse
            tier[tier == 1] = 0
        wide = 1 + place.max()
        return Scores(-tier - place / wide, tier=tier, place=place)
