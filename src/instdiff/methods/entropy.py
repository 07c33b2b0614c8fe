"""Entropy baselines: lowest, middle or highest mean entropy over the response (InstructDiff paper, App. B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Entropy, Method, Scores, Signal, Signals, reasons
from instdiff.methods.shared.bands import Band, by_band


@dataclass(frozen=True)
class ResponseEntropy(Method):
    """Mean entropy of the base model's predictions over the response tokens, in nats.

    ``band`` takes the lowest (``min``, the default), the middle by rank, or the highest first.
    Rows with fewer than ``min_response_tokens`` scored tokens are ``too_short``.
    """

    name: ClassVar[str] = "entropy"
    paper: ClassVar[str] = "arXiv:2601.23006 App. B"

    band: Band = "min"
    min_response_tokens: int = 1
    model: str = "base"

    def signals(self) -> dict[str, Signal]:
        """Entropy over the response given its prompt."""
        return {"entropy": Signal(Entropy(), model=self.model)}

    def score(self, s: Signals) -> Scores:
        """Mean over response tokens."""
        entropy = s.entropy.mean()
        short = (s.entropy.count() > 0) & (s.entropy.count() < self.min_response_tokens)
        return Scores(
            by_band(np.where(short, np.nan, entropy), self.band), reasons(len(s), too_short=short), entropy=entropy
        )
