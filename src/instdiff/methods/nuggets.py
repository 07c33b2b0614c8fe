"""NUGGETS (Li et al., ACL 2024, arXiv:2312.10302): rows that help the model with the most other tasks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Anchored, Floats, MeanNll, Pooled, Prompted, Scores, Signal, Signals, reasons
from instdiff.core.signals import Anchors, Neighbours
from instdiff.errors import ConfigError
from instdiff.methods.shared.race import RacingMethod, goes_on


@dataclass(frozen=True)
class Nuggets(RacingMethod):
    """Share of the anchors whose response becomes likelier with the row as a demonstration, highest first.

    Anchors are the rows nearest to the centres of ``anchors`` clusters of mean-pooled hidden states, cut to ``limit``
    tokens. Rows whose prompt alone is that long are never anchors, both terms are of the same tokens, and hidden states
    are pooled without padding. No anchor counts for itself or a copy of it. With ``compat="official"`` it does, and
    an anchor whose prompt is that long counts as a loss for every row. A demonstration ends with the end token.
    ``above`` filters the rows at that share or below (published: 0.5 to 0.9). This costs a forward pass for each row
    and anchor.

    With ``race``, a number or share of rows such as ``10%``, rows that ``race_after`` anchors put outside it are not
    shown to the other anchors. They keep the share so far and come last; ``contends`` tells.
    """

    name: ClassVar[str] = "nuggets"
    paper: ClassVar[str] = "arXiv:2312.10302"

    anchors: int = 100
    limit: int = 200
    above: float | None = None
    seed: int = 0
    model: str = "base"
    compat: Literal["default", "official"] = "default"
    race_after: int = field(default=30, kw_only=True)

    def __post_init__(self) -> None:
        if self.anchors < 1 or self.limit < 2:
            raise ValueError("anchors is 1 or more, limit 2 or more")
        super().__post_init__()
        if self.race is not None and (self.compat == "official" or self.race_budget().of_tokens):
            raise ConfigError(f"'{self.name}.race' is {self.race}; it is a number of rows, and goes without compat")

    @property
    def all_draws(self) -> int:
        """Anchors."""
        return self.anchors

    def signals(self) -> dict[str, Signal]:
        """Mean NLL of each anchor after each row and alone, and which rows the anchors are."""
        by = Signal(Pooled(), Prompted(), self.model)
        how = by, self.anchors, self.limit, self.seed, self.compat == "official"
        alone, given = Anchors(*how), Anchored(*how)
        asked = {
            "given": Signal(MeanNll(), given, self.model),
            "alone": Signal(MeanNll(), alone, self.model),
            "anchor": Signal(Neighbours(), alone, self.model),
        }
        if self.race is None:
            return asked
        asked["given"] = Signal(MeanNll(), replace(given, stop=self.first_draws), self.model)
        asked["rest"] = self.late(Signal(MeanNll(), replace(given, start=self.first_draws), self.model))
        return asked | self.contends(given)

    def score(self, s: Signals) -> Scores:
        """The share, and as a detail how many nats per token the row saves on average."""
        alone = s.alone.mean()  # one value for each anchor, as of its ids
        value, saved = np.full(len(s), np.nan), np.full(len(s), np.nan)
        on = goes_on(s)
        first = len(alone) if self.race is None else self.first_draws
        for row in range(len(s)):
            given = np.concatenate([s.given[row], s.rest[row]]) if on[row] else s.given[row]
            gain = alone[: len(given)] - given if len(given) in (first, len(alone)) else np.zeros(0)
            known = np.isfinite(gain)
            if self.compat == "default":
                known &= s.anchor[: len(gain)] != s.ids[row]
            if known.any():
                of = self.anchors if self.compat == "official" else known.sum()
                value[row], saved[row] = (gain[known] > 0).sum() / of, gain[known].mean()
        low = np.zeros(len(s), bool) if self.above is None else value <= self.above
        return Scores(
            np.where(low, np.nan, value), reasons(len(s), filtered=low), share=value, saved=saved, **self.told(s)
        )

    def interval(self, scores: Scores, margin: float) -> tuple[Floats, Floats]:
        """The share; that of few anchors varies as if one more had been won and one lost."""
        share = np.where(scores.reason == None, scores.details["share"], np.nan)  # noqa: E711 - elementwise
        likely = (share * self.race_after + 1) / (self.race_after + 2)
        away = margin * np.sqrt(likely * (1 - likely))
        return share - away, share + away
