"""Random rows: the control that selection has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Column, Floats, Length, Method, Scores, Signal, Signals


def uniform(seed: int, s: Signals) -> Floats:
    """A number in [0, 1) per row that depends on the seed and the row's content alone.

    Rows keep their number when the pool is shuffled or grows; the copies of a row get different ones.
    """
    out = np.empty(len(s))
    for row, (name, copy) in enumerate(zip(s.ids, s.occurrence, strict=True)):
        digest = hashlib.blake2b(f"{seed}|{name}|{copy}".encode(), digest_size=8).digest()
        out[row] = int.from_bytes(digest, "big") / 2**64
    return out


@dataclass(frozen=True)
class Random(Method):
    """A uniform draw without replacement.

    With ``balance`` the draw goes round the values of that column of the input, such as ``source``, until each is
    used up: a stronger control where sources differ in size (Ivison et al., 2025, arXiv:2503.01807).
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "control"

    seed: int = 42
    balance: str | None = None

    def signals(self) -> dict[str, Signal]:
        """The column to balance, if any."""
        balance = {"group": Signal(Column(self.balance))} if self.balance else {}
        return {"length": Signal(Length(unit="chars")), **balance}

    def score(self, s: Signals) -> Scores:
        """Seeded by the row's content, so that order and growth of the pool change nothing."""
        draw = uniform(self.seed, s)
        if not self.balance:
            return Scores(draw)
        turn = np.zeros(len(s))
        groups = np.array([str(value) for value in s.group], object)
        usable = np.array([word is None for word in s.reason], bool)
        for group in sorted(set(groups)):
            rows = np.flatnonzero((groups == group) & usable)
            turn[rows[np.argsort(-draw[rows], kind="stable")]] = np.arange(len(rows))
        return Scores(draw - turn, turn=turn)
