"""SelectIT (Liu et al., NeurIPS 2024, arXiv:2402.16705): what models think of a row, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Asked, Budget, Choice, Floats, Method, Scored, Scores, Signal, Signals
from instdiff.methods.algorithms.digit_ratings import model_level, published_order, sentence_level, token_level

DIGITS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class SelectIT(Method):
    """The model's own rating from 1 to 5, under several prompts and by one model or more, highest first.

    Token level: the likeliest digit times how far it stands out. Sentence level: the mean over the first ``questions``
    prompts of the file ``prompts``, less where they disagree (``alpha``). Model level: the mean over ``models``, roles
    with their sizes as weights, such as ``{base: 7, other: 13}``. ``norm="official"`` takes a second softmax of the
    digits' probabilities, as the published code does and the paper does not. Of several turns the questions that come
    with the package see the first instruction and the last response; with ``turns="first"`` the first turn alone.

    ``compat="official"`` is that norm and that turn, and of equal ratings the later row first. The wording is our own,
    weights have sum 1, and what is too long is ``too_long`` instead of another row's rating.
    """

    name: ClassVar[str] = "selectit"
    paper: ClassVar[str] = "arXiv:2402.16705"
    official_order: ClassVar[bool] = True

    questions: int = 5
    alpha: float = 0.2
    norm: Literal["paper", "official"] = "paper"
    prompts: str = "selectit"
    turns: Literal["ends", "first"] = "ends"
    models: Mapping[str, float] = field(default_factory=lambda: {"base": 1.0})
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions is {self.questions}; the least is 1")
        if not self.models or min(self.models.values()) < 0 or not sum(self.models.values()) > 0:
            raise ValueError("models needs a role or more, with sizes that are not negative and not all 0")

    def signals(self) -> dict[str, Signal]:
        """Log-probabilities of the digits, by model and prompt."""
        turn = 0 if self.compat == "official" or self.turns == "first" else None
        return {
            f"{role}_{number}": Signal(Choice(DIGITS), Asked(self.prompts, number, turn), role)
            for role in self.models
            for number in range(self.questions)
        }

    def score(self, s: Signals) -> Scores:
        """The model level; as details the two below it, of the first model."""
        norm = "official" if self.compat == "official" else self.norm
        tokens = np.stack(
            [
                np.stack([token_level(_probability(getattr(s, f"{role}_{i}")), norm) for i in range(self.questions)], 1)
                for role in self.models
            ],
            1,
        )
        sentences = sentence_level(tokens, self.alpha)
        value = model_level(sentences, list(self.models.values()))
        return Scores(value, token_level=tokens[:, 0, 0], sentence_level=sentences[:, 0])

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first."""
        if self.compat == "default":
            return super().pick(scored, budget)
        order = published_order(np.where(scored.eligible, scored.value, -np.inf))
        return budget.take(order[scored.eligible[order]], scored)


def _probability(logs: Any) -> Floats:
    """Probabilities of the digits [rows, digits], up to a factor; NaN where a row has none."""
    some = np.flatnonzero(logs.lengths() == len(DIGITS))
    out = np.full((len(logs), len(DIGITS)), np.nan)
    out[some] = np.asarray(logs.take(some).values, np.float64).reshape(len(some), len(DIGITS))
    return np.asarray(np.exp(out - out.max(1, keepdims=True)))
