"""DEITA (Liu et al., ICLR 2024, arXiv:2312.15685): complex, good and different from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Asked,
    Budget,
    Choice,
    Embedding,
    Floats,
    Method,
    Pooled,
    Prompted,
    Scored,
    Scores,
    Signal,
    Signals,
    Words,
    reasons,
    vectors,
)
from instdiff.methods.algorithms.digit_ratings import expected_score
from instdiff.methods.algorithms.threshold import diverse_by_cell
from instdiff.methods.shared.set_method import Parts, cells_text, check_parts, parts_of

DIGITS = ("1", "2", "3", "4", "5", "6")


@dataclass(frozen=True)
class DEITA(Method):
    """Complexity times quality, highest first; a selection leaves out rows too similar to one that it has.

    Each is what a rater answers, sum over i of i * p_i, p over the six digits alone, from the raw logits after the
    question. Where that fails there is no score (``no_rating``); the published code writes 3.0, which made all rows of
    some data equal. ``complexity_prompt`` and ``quality_prompt`` name the questions: the wording that the raters were
    trained with gives their numbers. Vectors are the base model's last hidden state of the last token, or those of the
    text ``embedder``. A row is left out at a cosine above ``threshold``, a similarity; 1 leaves none out. ``parts`` is
    that of ``cosine_filter``: only rows of one cell are compared, by ``auto`` of 1,024 on average.

    A row is rated once. The published code rates each turn and sums, so that long talks win; for a row of one turn that
    is the same number, and of several turns the questions that come with the package see the first instruction and the
    last response. ``compat="official"`` breaks ties by row.
    """

    name: ClassVar[str] = "deita"
    paper: ClassVar[str] = "arXiv:2312.15685"

    threshold: float = 0.9
    vector: Literal["hidden", "embedder"] = "hidden"
    complexity_prompt: str = "complexity"
    quality_prompt: str = "quality"
    base: str = "base"
    parts: Parts = None
    seed: int = 42
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts)

    @property
    def approximation(self) -> str | None:
        """Which rows are not compared."""
        return cells_text(self.name, self.parts)

    def signals(self) -> dict[str, Signal]:
        """Both ratings, and a vector for the filter."""
        hidden = Signal(Pooled("last"), Prompted(), self.base)
        return {
            "complexity": Signal(Choice(DIGITS), Asked(self.complexity_prompt), "complexity_rater"),
            "quality": Signal(Choice(DIGITS), Asked(self.quality_prompt), "quality_rater"),
            "vector": Signal(Embedding(), Words("row"), "embedder") if self.vector == "embedder" else hidden,
        }

    def score(self, s: Signals) -> Scores:
        """The product; its factors are details."""
        complexity, quality = _expected_rating(s.complexity), _expected_rating(s.quality)
        value = complexity * quality
        return Scores(value, reasons(len(s), no_rating=np.isnan(value)), complexity=complexity, quality=quality)

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first, past rows that are too similar to those taken."""
        order = scored.best()
        if self.compat == "official":
            order = np.sort(order)
            order = order[np.argsort(-scored.value[order], kind="stable")]
        target = budget.target(scored)
        if self.threshold >= 1 or target == 0:
            return budget.take(order, scored)
        x, full = vectors(scored.signals().vector)
        rows, place = np.flatnonzero(full), np.cumsum(full) - 1
        weights = scored.n_tokens[rows] if budget.of_tokens else None
        order = place[order[full[order]]]
        cells = parts_of(self.parts, len(x))
        return rows[
            diverse_by_cell(
                x, order, cells=cells, seed=self.seed, threshold=self.threshold, limit=target, weights=weights
            )
        ]


def _expected_rating(rated: Any) -> Floats:
    """The expected digit per row; NaN where there are no six probabilities."""
    logits, full = vectors(rated)
    out = np.full(len(rated), np.nan)
    if full.any():
        out[full] = expected_score(logits)
    return out
