"""DS2 (Pang et al., ICLR 2025, arXiv:2410.10877): mend a judge's scores by those of near rows, then prefer the rare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Asked,
    Budget,
    Column,
    Floats,
    Judged,
    Method,
    Scored,
    Scores,
    Signal,
    Signals,
    reasons,
    vectors,
)
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.curation import curate_labels, ds2_order, infer_labels, long_tail, suspects, transition
from instdiff.methods.algorithms.effort import check_search
from instdiff.methods.algorithms.neighbours import nearest
from instdiff.methods.algorithms.vectors import blocks, unit
from instdiff.methods.shared.set_method import vector

Indices = npt.NDArray[np.int64]
_NEIGHBOURS, _NEAR = 14, 10


@dataclass(frozen=True)
class DS2(Method):
    """Judge scores corrected by similar rows, highest first. Ties go to the row farthest from its ten nearest.

    The score is a judge's overall rating of the row from 1 to 10 or, with ``column``, a number in the input file. It is
    rounded and brought into ``low`` to ``high``; each whole number is a level. The levels of similar rows show how
    ratings go wrong, and which rows have a wrong one. A correction of at least ``confidence`` is taken. Rows whose
    neighbours have other levels are found by Bayes' rule, which is ours. ``compat="official"`` votes as published,
    rounds rarity to four decimals, counts a row among its own neighbours for it, and breaks ties by row. The search for
    neighbours is exact and made once. Where it would take hours it is refused; ``how`` names an index of faiss, or
    ``exact`` to wait.

    The value is curated score + rarity, which lies in 0 to 1.
    """

    name: ClassVar[str] = "ds2"
    paper: ClassVar[str] = "arXiv:2410.10877"
    official_order: ClassVar[bool] = True

    column: str | None = None
    low: int = 4
    high: int = 9
    confidence: float = 0.5
    how: Literal["exact", "hnsw", "ivf"] | None = None
    seed: int = 42
    prompt: str = "overall"
    judge: str = "judge"
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ConfigError(f"'ds2.low' is {self.low} and 'ds2.high' {self.high}; levels need low below high")

    @property
    def approximation(self) -> str | None:
        """How near rows are not those of the exact way."""
        return f"{self.name}: nearest rows by {self.how} of faiss" if self.how in ("hnsw", "ivf") else None

    def signals(self) -> dict[str, Signal]:
        """A score and a vector for each row."""
        judged = Signal(Judged(1, 10), Asked(self.prompt), self.judge)
        score = Signal(Column(self.column)) if self.column else judged
        return {"score": score, "vector": vector(pooling="mean")}

    def score(self, s: Signals) -> Scores:
        """Curated level plus rarity."""
        given = np.array([_number(text) for text in s.score]) if self.column else s.score.mean()
        full = vectors(s.vector)[1] & np.isfinite(given) & np.array([word is None for word in s.reason], bool)
        rows = np.flatnonzero(full)
        if self.compat == "default":  # the detectors are told rows by content, so that the input's order never matters
            rows = s.ids.order(rows)
        labels = np.rint(np.clip(given[rows], self.low, self.high)).astype(np.int64) - self.low
        mended, rarity = self._curate(labels, vectors(s.vector.take(rows))[0])
        details = {name: np.full(len(s), np.nan) for name in ("curated", "long_tail")}
        details["curated"][rows], details["long_tail"][rows] = mended + self.low, rarity
        reason = reasons(len(s), no_score=np.isnan(given), no_vector=~full)
        return Scores(details["curated"] + details["long_tail"], reason, score=given, **details)

    def _curate(self, labels: Indices, x: npt.NDArray[np.float32]) -> tuple[Indices, Floats]:
        """The labels mended, and the rarity of each row; of fewer than four rows nothing can be said."""
        if len(labels) < 4:
            return labels, np.zeros(len(labels))
        official = self.compat == "official"
        if self.how is None:
            mend = f"set '{self.name}.how' to hnsw or ivf, which find most of them with an index, or to exact and wait"
            check_search(len(x), x.shape[1], mend)
        near = nearest(x, min(_NEIGHBOURS, len(x) - 1), how=self.how or "exact", seed=self.seed)
        far = _distances(unit(x), near)
        near = np.where(near < 0, np.arange(len(near))[:, None], near)
        matrix, prior = transition(labels, near, self.high - self.low + 1)
        if official:
            found = suspects(labels, near, far, matrix, prior, k=min(_NEAR, near.shape[1]), seed=self.seed)
        else:
            found = infer_labels(labels, near, far, matrix, prior, k=_NEAR)
        rarity = long_tail(far, min(_NEAR, near.shape[1]), official=official)
        return curate_labels(labels, found, confidence=self.confidence), rarity

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """Best first; the published order breaks ties by row."""
        if self.compat == "default":
            return super().pick(scored, budget)
        rows = np.flatnonzero(scored.eligible)
        order = ds2_order(scored.details["curated"][rows], scored.details["long_tail"][rows])
        return budget.take(rows[order], scored)


def _distances(x: npt.NDArray[np.float32], near: Indices) -> Floats:
    """Cosine distances to the neighbours; one that an approximate search did not find is as far as can be."""
    out = np.empty(near.shape)
    for part in blocks(len(x), 512):
        out[part] = 1 - np.einsum("id,ikd->ik", x[part], x[near[part]], dtype=np.float64)
    return np.where(near < 0, 1.0, out)


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return float("nan")
