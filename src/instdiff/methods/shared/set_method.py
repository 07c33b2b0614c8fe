"""Methods that take rows one after the other: what they share, and the vectors that most of them go by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    NOT_REACHED,
    Budget,
    Embedding,
    Method,
    Pooled,
    Scored,
    Scores,
    Signal,
    Signals,
    WholeText,
    Words,
    reasons,
    vectors,
)
from instdiff.errors import ConfigError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetMethod(Method):
    """A method whose score is minus the rank at which it took the row: 0, -1, -2, ...

    Scoring ranks the share ``reach`` of the rows; the others are ``not_reached``. A selection within that takes the
    head, and a larger one ranks on, with the columns of the store. Rows that are left when none can be taken any more
    are ``filtered``.
    """

    reach: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.reach <= 1:
            raise ConfigError(f"'{self.name}.reach' is {self.reach}; a share lies in 0 to 1")

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that can be taken."""
        return np.array([word is None for word in s.reason], bool)

    def choose(self, s: Signals, count: int) -> Indices:
        """The first ``count`` rows in the order taken, of rows that can all be taken; ties go to the lowest.

        A larger ``count`` must give the same rows and then more.
        """
        raise NotImplementedError

    def order_rows(self, s: Signals, rows: Indices) -> Indices:
        """The order in which ``choose`` is shown the rows: by content, so that the input's order never matters."""
        return s.ids.order(rows)

    def order(self, s: Signals, count: int) -> Indices:
        """Up to ``count`` rows in the order taken."""
        rows = self.order_rows(s, np.flatnonzero(self.ready(s)))
        count = min(count, len(rows))
        return rows[self.choose(s.take(rows), count)] if count else rows[:0]

    def score(self, s: Signals) -> Scores:
        """Minus the rank, for a share of the rows."""
        ready = self.ready(s)
        count = min(max(1, int(np.ceil(self.reach * len(s) - 1e-9))), int(ready.sum()))
        return self.rank_scores(s, ready, self.order(s, count), count)

    def rank_scores(self, s: Signals, ready: npt.NDArray[np.bool_], order: Indices, count: int) -> Scores:
        """Scores of rows taken in this order, where ``count`` were asked for."""
        value = np.full(len(s), np.nan)
        value[order[::-1]] = 0.0 - np.arange(len(order))[::-1]
        left = ready & np.isnan(value)
        done = len(order) < count
        return Scores(value, reasons(len(s), no_signal=~ready, **{"filtered" if done else NOT_REACHED: left}))

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """The head of the ranking; a longer one is made where the budget goes beyond it."""
        order = scored.best()
        more = bool(np.isin(scored.reason, NOT_REACHED).any())
        while more and not budget.is_filled_by(order, scored):
            count = 2 * max(1, len(order)) if budget.of_tokens else budget.target(scored)
            order = self.order(scored.signals(), count)
            more = budget.of_tokens and len(order) == count
        return budget.take(order, scored)


@dataclass(frozen=True)
class VectorMethod(SetMethod):
    """A set method that goes by one vector for each row.

    ``model`` is the role that gives it: the text embedder, which reads ``text`` (the ``row``, its ``instruction`` or
    its ``response``), or any other role, whose hidden states over the whole row are pooled at ``layer``. ``pooling`` is
    the embedder's own or, of hidden states, ``mean`` where nothing is said.
    """

    model: str = field(default="embedder", kw_only=True)
    text: Literal["row", "instruction", "response"] = field(default="row", kw_only=True)
    pooling: Literal["mean", "cls", "last", "weighted"] | None = field(default=None, kw_only=True)
    layer: int = field(default=-1, kw_only=True)

    def signals(self) -> dict[str, Signal]:
        """One vector for each row."""
        return {"vector": vector(self.model, self.text, self.pooling, self.layer)}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that have a vector."""
        return super().ready(s) & vectors(s.vector)[1]


def vector(
    model: str = "embedder",
    text: Literal["row", "instruction", "response"] = "row",
    pooling: Literal["mean", "cls", "last", "weighted"] | None = None,
    layer: int = -1,
) -> Signal:
    """The signal for a vector of each row, as of ``VectorMethod``."""
    if model == "embedder":
        return Signal(Embedding(pooling), Words(text), model)
    return Signal(Pooled(pooling or "mean", layer), WholeText(), model)
