"""A rater's choice between two answers to a question about the row, as Select2Reason (arXiv:2505.17266) asks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Asked, Choice, Method, Scores, Signal, Signals


@dataclass(frozen=True)
class RatersChoice(Method):
    """Probability that a model answers ``yes`` and not ``no`` to a question about the row, highest first.

    ``prompt`` names the question, a file of the package or of one's own; ``difficulty`` asks whether the instruction is
    difficult, in our own wording. Both options are one token each, ``1`` and ``0``, and both probabilities always
    count: ``p(yes) / (p(yes) + p(no))``. Details: ``mass``, the probability of both options together, which is low
    where the model wants to say something else.
    """

    name: ClassVar[str] = "choice"
    paper: ClassVar[str] = "ours; the question of arXiv:2505.17266"

    prompt: str = "difficulty"
    yes: str = "1"
    no: str = "0"
    model: str = "rater"

    def signals(self) -> dict[str, Signal]:
        """Log-probabilities of both options after the question."""
        return {"options": Signal(Choice((self.no, self.yes)), Asked(self.prompt), self.model)}

    def score(self, s: Signals) -> Scores:
        """The share of ``yes``."""
        logs, some = np.full((len(s), 2), np.nan), np.flatnonzero(s.options.lengths() == 2)
        logs[some] = np.asarray(s.options.take(some).values, np.float64).reshape(len(some), 2)
        return Scores(1 / (1 + np.exp(logs[:, 0] - logs[:, 1])), mass=np.exp(logs).sum(1))
