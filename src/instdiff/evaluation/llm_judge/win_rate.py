"""Win rates from judgements: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.errors import require

VERDICTS: dict[str, tuple[float, float]] = {
    "A>>B": (1.0, 3.0),
    "A>B": (1.0, 1.0),
    "A=B": (0.5, 1.0),
    "B>A": (0.0, 1.0),
    "B>>A": (0.0, 3.0),
}
"""What a verdict is for A (1 a win, 0 a loss), and how many games it counts as."""
RIDGE = 1e-2
"""Half a squared penalty on the slope of length alone, so that it stays finite where length tells all."""


def outcomes(first: npt.ArrayLike, swapped: npt.ArrayLike) -> Floats:
    """1 a win, 0 a tie, -1 a loss of each item that was judged in both orders; NaN where a judgement is missing.

    A win is better in both orders, or better in one and tied in the other; a loss likewise; tied in both, or better in
    one and worse in the other, is a tie.

    Args:
        first: [items], by how much the model was better when its answer stood first.
        swapped: [items], the same when it stood second.
    """
    found: Floats = np.sign(np.sign(np.asarray(first, np.float64)) + np.sign(np.asarray(swapped, np.float64)))
    return found


def margins(scores: npt.ArrayLike, reverse: npt.ArrayLike) -> tuple[Floats, Floats]:
    """By how much the model was better in either order, from the two scores in the order that the judge saw.

    Args:
        scores: [items, 2], the model's answer first.
        reverse: [items, 2], the other's first.
    """
    seen, turned = np.asarray(scores, np.float64), np.asarray(reverse, np.float64)
    return seen[:, 0] - seen[:, 1], turned[:, 1] - turned[:, 0]


@dataclass(frozen=True)
class WinCounts:
    """How many items were won, tied and lost."""

    win: int
    tie: int
    lose: int

    @classmethod
    def of(cls, outcomes: Floats) -> WinCounts:
        """Count; items without an outcome do not count."""
        return cls(*(int((outcomes == sign).sum()) for sign in (1, 0, -1)))

    @property
    def items(self) -> int:
        """All that were judged."""
        return self.win + self.tie + self.lose

    @property
    def win_score(self) -> float | None:
        """Wins minus losses as a share, plus 1: above 1 the model is the better one. None where nothing was judged."""
        return (self.win - self.lose) / self.items + 1 if self.items else None

    def record(self) -> dict[str, Any]:
        """For results."""
        return {"win": self.win, "tie": self.tie, "lose": self.lose, "win_score": self.win_score}


def games(verdicts: list[tuple[str | None, str | None]]) -> tuple[Floats, Floats]:
    """Of each item the share of its two games that was won, and the games that they count as.

    A strong verdict counts as three games, as in version 0.1 of Arena-Hard. Over items, the mean share by these counts
    is what its Bradley-Terry fit gives where there are two models. A game without a verdict does not count; an item
    without any is NaN with weight 0.

    Args:
        verdicts: of each item that with the model as A, and that with the model as B.
    """
    share, count = np.full(len(verdicts), np.nan), np.zeros(len(verdicts))
    for item, (as_a, as_b) in enumerate(verdicts):
        played = [VERDICTS[as_a]] if as_a is not None else []
        if as_b is not None:
            won, weight = VERDICTS[as_b]
            played.append((1.0 - won, weight))
        if played:
            count[item] = sum(weight for _, weight in played)
            share[item] = sum(won * weight for won, weight in played) / count[item]
    return share, count


def length_controlled(preference: Floats, ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float | None:
    """The win rate that is expected where both answers are equally long: a length-controlled win rate of our own.

    A logistic model of the preferences (which may lie between 0 and 1) with a constant for the model and a slope for
    ``tanh(d / s)``, where ``d`` is how much longer the model's answer is and ``s`` the standard deviation of ``d``; the
    value is the model's prediction at ``d = 0``.

    It differs from the published length-controlled AlpacaEval: that has a third term, the difficulty of each
    instruction, whose values were fitted on its leaderboard; it is fitted with weights from cross-validation, and it is
    predicted for each instruction and then averaged. The numbers are close in kind and must not be mixed.

    Args:
        preference: [items] for the model, from 0 to 1; NaN where there is none.
        ours: [items], length of the model's answers.
        theirs: [items], length of the other's.
    """
    known = np.isfinite(preference)
    if not known.any():
        return None
    wins = preference[known]
    longer = np.asarray(ours, np.float64)[known] - np.asarray(theirs, np.float64)[known]
    if wins.min() == wins.max() or not longer.std():
        return float(wins.mean())
    require("sklearn", "a win rate by length")
    from sklearn.linear_model import LogisticRegression

    x = np.tanh(longer / longer.std())[:, None]
    # Each item stands there as won and as lost, with its preference for either as weight.
    model = LogisticRegression(C=1 / (2 * RIDGE), tol=1e-10, max_iter=1000)
    model.fit(np.concatenate([x, x]), np.repeat([1, 0], len(wins)), sample_weight=np.concatenate([wins, 1 - wins]))
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])
