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
    Length,
    Method,
    Pooled,
    Prompted,
    Scored,
    Scores,
    Signal,
    Signals,
    View,
    WholeText,
    Words,
    reasons,
    vectors,
)
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.digit_ratings import expected_score
from instdiff.methods.algorithms.threshold import diverse_by_cell
from instdiff.methods.shared.set_method import Parts, cells_text, check_parts, parts_of

DIGITS = ("1", "2", "3", "4", "5", "6")
PUBLISHED_TURNS, FALLBACK = 10, 3.0
"""Turns that are rated, and the rating of one that fails, in the published way."""


@dataclass(frozen=True)
class DEITA(Method):
    """Complexity times quality, highest first. A selection skips rows that are too similar to one it has.

    Each is what a rater answers, sum over i of i * p_i, p over the six digits alone, from the raw logits after the
    question. Where that fails there is no score (``no_rating``); the published code writes 3.0, which made all rows of
    some data equal.

    ``complexity_prompt`` and ``quality_prompt`` name the questions: the wording that the raters were trained with gives
    their numbers. A row is left out at a cosine above ``threshold``, a similarity; 1 leaves none out. ``parts`` is that
    of ``cosine_filter``: only rows of one cell are compared, by ``auto`` of 1,024 on average. Vectors are the base
    model's last hidden state of the last response token (``hidden``), or of the ``end`` token after it, or those of the
    text ``embedder``. The published code takes the end token of a model of seven billion parameters; in small models
    its states are all alike, and next to no row is left.

    A row is rated once: of several turns the questions that come with the package see the first instruction and the
    last response. With ``turns`` each of the first so many turns is rated and the products are summed, so that long
    talks win; details are means over turns. ``compat="official"`` sums up to ten turns, takes 3.0 for a rating that
    fails and the end token's state, and breaks ties by row.
    """

    name: ClassVar[str] = "deita"
    paper: ClassVar[str] = "arXiv:2312.15685"

    threshold: float = 0.9
    vector: Literal["hidden", "end", "embedder"] = "hidden"
    complexity_prompt: str = "complexity"
    quality_prompt: str = "quality"
    turns: int | None = None
    base: str = "base"
    parts: Parts = None
    seed: int = 42
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts)
        if self.turns is not None and self.turns < 1:
            raise ConfigError(f"'{self.name}.turns' is {self.turns}; the least is 1, and null rates a row once")

    @property
    def approximation(self) -> str | None:
        """Which rows are not compared."""
        return cells_text(self.name, self.parts)

    def signals(self) -> dict[str, Signal]:
        """Both ratings, and a vector for the filter."""
        official, turns = self.compat == "official", self._rated_turns
        view: View = WholeText(end=True) if self.vector == "end" or official else Prompted()
        hidden = Signal(Pooled("last"), view, self.base)
        out = {"vector": Signal(Embedding(), Words("row"), "embedder") if self.vector == "embedder" else hidden}
        for at in range(turns or 1):
            for what, prompt in (("complexity", self.complexity_prompt), ("quality", self.quality_prompt)):
                asked = Asked(prompt, turn=at if turns else None)
                role, may_lack = f"{what}_rater", official or at > 0
                out[_column(what, at)] = Signal(Choice(DIGITS), asked, role, optional=may_lack)
        return out | ({"turns": Signal(Length("row", "turns"))} if turns else {})

    def score(self, s: Signals) -> Scores:
        """The product, or the sum of it over turns; its factors are details."""
        most, failed = self._rated_turns or 1, FALLBACK if self.compat == "official" else np.nan
        turns = np.minimum(s.turns, most) if self._rated_turns else np.ones(len(s))
        total = {"value": np.zeros(len(s)), "complexity": np.zeros(len(s)), "quality": np.zeros(len(s))}
        for at in range(most):
            complexity, quality = (_rating(getattr(s, _column(what, at)), failed) for what in ("complexity", "quality"))
            for name, part in (("value", complexity * quality), ("complexity", complexity), ("quality", quality)):
                total[name] += np.where(at < turns, part, 0)
        value = np.where(turns > 0, total.pop("value"), np.nan)
        with np.errstate(invalid="ignore"):
            details = {name: column / turns for name, column in total.items()}
        return Scores(value, reasons(len(s), no_rating=np.isnan(value)), **details)

    @property
    def _rated_turns(self) -> int:
        """How many turns are rated one by one; 0 where a row is rated once."""
        return self.turns or (PUBLISHED_TURNS if self.compat == "official" else 0)

    @property
    def holds_caps(self) -> bool:
        """A row that is passed over is similar to none."""
        return True

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first, past rows that are too similar to those taken."""
        order, caps = scored.best(), scored.caps
        if self.compat == "official":
            order = np.sort(order)
            order = order[np.argsort(-scored.value[order], kind="stable")]
        target = budget.target(scored)
        if self.threshold >= 1 or target == 0:
            return budget.take(order if caps is None else caps.limit(order), scored)
        x, full = vectors(scored.signals().vector)
        rows, place = np.flatnonzero(full), np.cumsum(full) - 1
        how: dict[str, Any] = {"weights": budget.costs(scored)[rows] if budget.of_tokens else None, "limit": target}
        how |= {"caps": None if caps is None else caps.take(rows), "threshold": self.threshold, "seed": self.seed}
        order = place[order[full[order]]]
        return rows[diverse_by_cell(x, order, cells=parts_of(self.parts, len(x)), **how)]


def _column(what: str, turn: int) -> str:
    return f"{what}_{turn}" if turn else what


def _rating(rated: Any, failed: float) -> Floats:
    """The expected digit per row, or ``failed`` where there are no six probabilities."""
    logits, full = vectors(rated)
    out = np.full(len(rated), failed)
    if full.any():
        out[full] = expected_score(logits)
    return out
