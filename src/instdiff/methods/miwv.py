"""MIWV (Jiang et al., AAAI 2026, arXiv:2511.07074): rows that the most similar row does not teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Demonstrated, Embedding, Method, Nll, Prompted, Scores, Signal, Signals, Words
from instdiff.core.signals import Neighbours


@dataclass(frozen=True)
class MIWV(Method):
    """Response NLL after a demonstration minus NLL without it, per token, highest first (eq. 8).

    The demonstration is the row whose instruction and input are most similar, by cosine of mean-pooled embeddings
    (eq. 1 to 4; ``pooling="own"`` is the embedder's own way); ``shots`` takes several, ``retrieval`` chooses by
    ``bm25`` or at ``random`` instead. Of several turns all of the user are embedded, with ``text="first"`` the first
    instruction alone. Neighbours are found exactly; ``approximate`` finds them with an index, which
    is asked for where the exact way would take hours unless ``approximate`` is false. Rows of equal instructions
    are neighbours of each other. A demonstration ends with the end token, as rows do in training. Where row and
    demonstration do not fit, the demonstration loses its beginning.
    Both terms are means over the same response tokens, the end token not among them.
    """

    name: ClassVar[str] = "miwv"
    paper: ClassVar[str] = "arXiv:2511.07074"

    shots: int = 1
    retrieval: Literal["embedding", "bm25", "random"] = "embedding"
    pooling: Literal["mean", "cls", "own"] = "mean"
    text: Literal["instruction", "first"] = "instruction"
    approximate: bool | None = None
    seed: int = 42
    model: str = "base"
    embedder: str = "embedder"

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(f"shots is {self.shots}; the least is 1")

    @property
    def approximation(self) -> str | None:
        """How demonstrations are not those of the exact way."""
        return f"{self.name}: nearest rows by an index of faiss" if self.approximate else None

    def signals(self) -> dict[str, Signal]:
        """NLL with and without a demonstration, and which row it was."""
        by = None
        if self.retrieval == "embedding":
            by = Signal(Embedding(None if self.pooling == "own" else self.pooling), Words(self.text), self.embedder)
        shown = Demonstrated(by, self.shots, self.retrieval, self.approximate, self.seed)
        return {
            "zero_shot": Signal(Nll(), Prompted(), self.model),
            "one_shot": Signal(Nll(), shown, self.model),
            "neighbours": Signal(Neighbours(), shown, self.model),
        }

    def score(self, s: Signals) -> Scores:
        """How much the demonstration hurts, in nats per token."""
        zero, one = s.zero_shot.mean(), s.one_shot.mean()
        nearest = np.asarray(s.neighbours, np.float64).reshape(len(s), -1)[:, 0]
        neighbour = np.where(nearest >= 0, nearest, np.nan)
        return Scores(one - zero, miwv=one - zero, nll_zero_shot=zero, nll_one_shot=one, neighbour=neighbour)
