"""AlpaGasus (Chen et al., ICLR 2024, arXiv:2307.08701): what a judge finds accurate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Asked, Budget, Judged, Length, Method, Scored, Scores, Signal, Signals, reasons


@dataclass(frozen=True)
class AlpaGasus(Method):
    """The judge's score from 0 to 5, highest first. Rows below ``threshold`` are ``filtered``.

    Scores are heavily tied: among equal ones the longest response comes first, which is ours (``ties="longest"``), or
    the lowest id (``ties="id"``). ``prompt`` names the question, a file of the package or of one's own. Where the judge
    writes no number there is no score; ``compat="official"`` gives -1, as the published code does.
    """

    name: ClassVar[str] = "alpagasus"
    paper: ClassVar[str] = "arXiv:2307.08701"

    threshold: float = 4.5
    ties: Literal["longest", "id"] = "longest"
    prompt: str = "accuracy"
    judge: str = "judge"
    compat: Literal["default", "official"] = "default"

    def signals(self) -> dict[str, Signal]:
        """The judge's number, and what breaks ties."""
        length = {"length": Signal(Length("response"))} if self.ties == "longest" else {}
        may_lack = self.compat == "official"
        return {"score": Signal(Judged(0, 5), Asked(self.prompt), self.judge, optional=may_lack), **length}

    def score(self, s: Signals) -> Scores:
        """The score where it is high enough."""
        score = s.score.mean()
        if self.compat == "official":
            score = np.where(np.isnan(score), -1.0, score)
        low = score < self.threshold
        details = {"score": score} | ({"length": s.length} if self.ties == "longest" else {})
        return Scores(np.where(low, np.nan, score), reasons(len(s), filtered=low), **details)

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first, ties as asked for."""
        order = scored.best()
        if self.ties == "longest":
            order = order[np.lexsort((-scored.details["length"][order], -scored.value[order]))]
        return budget.take(order, scored)
