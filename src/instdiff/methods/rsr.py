"""Rank-surprisal ratio (Yang et al., ACL 2026, arXiv:2601.14249): traces that are informative and within reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Method, Nll, Prompted, Rank, Scored, Scores, Signal, Signals
from instdiff.errors import ConfigError

LEAST = 1e-12
"""Nats below which a row's NLL does not divide."""


@dataclass(frozen=True)
class RankSurprisal(Method):
    """Sum of the ranks of the response tokens, each at most ``clip``, over the sum of their NLL; lowest first.

    A low ratio means tokens that the model finds unlikely and yet ranks high: they are new to it and within its reach.
    The ranking compares answers of one problem, so use it with ``--per prompt 1``; across problems it also orders by
    difficulty. Tokens with an equal logit share the better rank, in fp32; the published code compares bf16 logits and
    reads up to 32,768 tokens. The record of a selection has the ratio of the whole set, by which a teacher is chosen:
    the mean over rows of their mean rank, divided by the mean over rows of their mean NLL. Details: ``ratio``,
    ``rank`` and ``nll``, the means over the row's tokens.
    """

    name: ClassVar[str] = "rsr"
    paper: ClassVar[str] = "arXiv:2601.14249"

    clip: int = 100
    model: str = "base"

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise ConfigError(f"'{self.name}.clip' is {self.clip}; the best rank is 1")

    def signals(self) -> dict[str, Signal]:
        """Rank and NLL of each response token given the prompt."""
        return {
            "rank": Signal(Rank(self.clip), Prompted(), self.model),
            "nll": Signal(Nll(), Prompted(), self.model),
        }

    def score(self, s: Signals) -> Scores:
        """Minus the ratio."""
        rank, nll = s.rank.mean(), s.nll.mean()
        ratio = np.where(np.isfinite(nll), s.rank.sum() / np.maximum(s.nll.sum(), LEAST), np.nan)
        return Scores(-ratio, ratio=ratio, rank=rank, nll=nll)

    def remark(self, scored: Scored, at: npt.NDArray[np.int64]) -> str | None:
        """The ratio of the rows as a set."""
        ratio = ratio_of_set(scored.details["rank"][at], scored.details["nll"][at])
        return f"rank-surprisal ratio of these rows as a set: {ratio:.4f}" if np.isfinite(ratio) else None


def ratio_of_set(rank: Floats, nll: Floats) -> float:
    """That of several rows [N] by their mean ranks and mean NLL; not the mean of their ratios."""
    known = np.isfinite(rank) & np.isfinite(nll)
    return float(rank[known].mean() / max(nll[known].mean(), LEAST)) if known.any() else float("nan")
