"""Perplexity baselines: lowest, middle or highest mean NLL of the response (InstructDiff paper, App. B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Method, Nll, Prompted, Scores, Signal, Signals, WholeText, reasons
from instdiff.methods.shared.bands import Band, by_band


@dataclass(frozen=True)
class Perplexity(Method):
    """Mean NLL per response token under the base model.

    ``band`` takes the lowest (``min``, the default), the middle by rank, or the highest first. ``compat="official"``
    averages over the whole text, prompt included, and starts ``mid`` at rank floor(0.33 n) of the falling order, as
    published baselines do. Rows with fewer than ``min_response_tokens`` scored tokens are ``too_short``.
    """

    name: ClassVar[str] = "perplexity"
    paper: ClassVar[str] = "arXiv:2601.23006 App. B; arXiv:2503.01807"

    band: Band = "min"
    min_response_tokens: int = 1
    model: str = "base"
    compat: Literal["default", "official"] = "default"

    def signals(self) -> dict[str, Signal]:
        """NLL of the response given its prompt."""
        return {"nll": Signal(Nll(), WholeText() if self.compat == "official" else Prompted(), self.model)}

    def score(self, s: Signals) -> Scores:
        """Ranked in nats; exp of it is the perplexity, with the same order."""
        nll = s.nll.mean()
        short = (s.nll.count() > 0) & (s.nll.count() < self.min_response_tokens)
        kept = np.where(short, np.nan, nll)
        if self.compat == "official" and self.band == "mid":
            falling = np.argsort(-kept, kind="stable")[: int(np.isfinite(kept).sum())]
            rank = np.full(len(kept), np.nan)
            rank[falling] = np.arange(len(falling))
            early = rank < int(0.33 * len(falling))
            return Scores(np.where(early, np.nan, -rank), reasons(len(s), too_short=short, filtered=early), nll=nll)
        return Scores(by_band(kept, self.band), reasons(len(s), too_short=short), nll=nll)
