"""The choice of one who knows the labels: what a selection could reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Column, Floats, Length, Method, Scores, Signal, Signals, reasons
from instdiff.methods.random import uniform

UNSPOILED = ("None", "")
"""What a column of flaws holds where there is no flaw."""


@dataclass(frozen=True)
class Oracle(Method):
    """Random rows among those whose ``column`` names no flaw. The others are ``filtered``.

    It is a control, not a method: it measures what there is to gain. ``wanted`` are the values of the column that are
    taken instead, the best first. ``balance`` goes round the values of another column, until each is used up.
    ``rehearse`` mixes this share of rows of the second wanted value with those of the first.
    """

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "control"

    column: str = "flaw"
    wanted: tuple[str, ...] = ()
    balance: str | None = None
    rehearse: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.rehearse < 1 or (self.rehearse and len(self.wanted) < 2):
            raise ValueError("'rehearse' is a share from 0 to below 1, and needs two values of 'wanted'")

    def signals(self) -> dict[str, Signal]:
        """The labels."""
        balance = {"group": Signal(Column(self.balance))} if self.balance else {}
        return {"label": Signal(Column(self.column)), "length": Signal(Length(unit="chars")), **balance}

    def score(self, s: Signals) -> Scores:
        """Minus the place in the order that is wanted; which rows of a kind come first is random."""
        draw, tier = uniform(self.seed, s), self._tiers(s)
        usable = np.isfinite(tier) & np.array([word is None for word in s.reason], bool)
        group = s.group if self.balance else np.full(len(s), "", object)
        turn, place = np.zeros(len(s)), np.zeros(len(s))
        for level, name in sorted(set(zip(tier[usable], group[usable], strict=True))):
            rows = np.flatnonzero(usable & (tier == level) & (group == name))
            turn[rows[np.argsort(-draw[rows], kind="stable")]] = np.arange(len(rows))
        for level in set(tier[usable]):
            rows = np.flatnonzero(usable & (tier == level))
            place[rows[np.lexsort((-draw[rows], turn[rows]))]] = np.arange(len(rows))
        if self.rehearse:
            place[tier == 0] /= 1 - self.rehearse
            place[tier == 1] /= self.rehearse
            tier[tier == 1] = 0
        value = -tier - place / (1 + place.max(initial=0))
        return Scores(value, reasons(len(s), filtered=np.isnan(tier)), tier=tier, place=place)

    def _tiers(self, s: Signals) -> Floats:
        """How much a row is wanted: 0 is best, NaN not at all."""
        tier = np.full(len(s), np.nan)
        for number, values in enumerate([(value,) for value in self.wanted] or [UNSPOILED]):
            tier[np.isin(s.label.astype(str), values)] = number
        return tier
