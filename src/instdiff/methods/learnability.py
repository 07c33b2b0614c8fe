"""Cross-fitted relative learnability: the share of a row's loss that models take over which never saw the row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Budget,
    Column,
    DetailPlot,
    Folds,
    Method,
    Nll,
    Prompted,
    Scored,
    Scores,
    Signal,
    Signals,
    reasons,
)
from instdiff.core.signals import CrossFitted, Fold, Group, Split
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.rehearsal import in_rounds, merge
from instdiff.methods.random import uniform

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Learnability(Method):
    """Relative drop of the response NLL under a model trained without the row, highest first.

    Rows are split into folds, and a model is trained for each on what lies outside it: what generalises falls, noise
    and secrets do not. ``folds`` says how many there are and how they are trained: ``k``, ``epochs``, the role
    ``model`` that training begins with (with ``proxy`` a smaller one, whose NLL then stands for the base's too),
    ``lora`` for adapters of that rank, the ``fraction`` of the other rows that is trained on, and a ``learning_rate``
    of their own. Where many rows are wrong, ``rounds: 2`` trains them again on the best ``keep``. Rows share a fold
    where their prompts are equal up to case, punctuation and blanks; a column ``group``, such as problem numbers,
    replaces the prompt.

    ``form="difference"`` ranks by the nats themselves. Rows below ``floor`` nats are known, and ``filtered`` as copies
    are. Known rows come back with ``rehearse``, the share of the budget that goes to them, so that they are not
    forgotten: drawn by ``seed``, one of each group before a second of any, going round the values of ``balance``.

    With ``form="difference"`` and two folds it is `rho` without a holdout set. The ratio is that of TAP (`nll_first -
    nll_last` over the first), which takes it along one training on the target's data. Details: ``nll_base``,
    ``nll_held``, ``fold``, ``L``, ``known``, and ``rehearsal``, a known row's place among those that come back.
    """

    name: ClassVar[str] = "learnability"
    paper: ClassVar[str] = "ours"
    filters: ClassVar[str] = "a copy, or known"
    plots: ClassVar[tuple[DetailPlot, ...]] = (
        DetailPlot(
            "learnability",
            "What models learn that never saw the row",
            "nll_base",
            "nll_held",
            ("NLL of the base", "NLL of the held-out model"),
            "nats per token",
            "Rows far below the diagonal are learnt from the others; rows on it are noise, or cannot be learnt.",
        ),
    )

    folds: Folds = field(default_factory=Folds)
    form: Literal["ratio", "difference"] = "ratio"
    floor: float = 0.1
    eps: float = 1e-6
    rehearse: float = 0.0
    group: str | None = None
    balance: str | None = None
    seed: int = 42
    base: str = "base"
    held: str = "held"

    def __post_init__(self) -> None:
        if not 0 <= self.rehearse < 1:
            raise ConfigError(f"'{self.name}.rehearse' is {self.rehearse:g}, a share of at least 0 and below 1")

    def signals(self) -> dict[str, Signal]:
        """NLL of the response under the start model and under that of the row's fold; fold and group."""
        split, start = Split(self.folds, self.seed, self.group, self._before()), self.folds.model
        balance = {"balance": Signal(Column(self.balance))} if self.balance else {}
        return balance | {
            "base": Signal(Nll(), Prompted(), self.base if start == "base" else start),
            "held": Signal(CrossFitted(Nll(), split), Prompted(), self.held),
            "fold": Signal(Fold(split)),
            "group": Signal(Group(self.group, near=True)),
        }

    def _before(self) -> Learnability | None:
        """The round before the last one, whose models have a role of their own."""
        last = self.folds.rounds - 1
        folds, held = replace(self.folds, rounds=last or 1), f"{self.held}.{last}"
        return replace(self, folds=folds, held=held, rehearse=0.0, balance=None) if last else None

    def score(self, s: Signals) -> Scores:
        """The ratio or the difference, without copies and known rows."""
        base, held = s.base.mean(), s.held.mean()
        fall = base - held
        share = fall / np.maximum(base, self.eps) if self.form == "ratio" else fall
        copy, known = s.occurrence > 0, base < self.floor
        out = copy | known
        details = {"nll_base": base, "nll_held": held, "fold": s.fold, "L": share, "known": known}
        rehearsal = self._rehearsal(s, np.flatnonzero(known & ~copy & np.isfinite(base)))
        return Scores(np.where(out, np.nan, share), reasons(len(s), filtered=out), **details, rehearsal=rehearsal)

    def _rehearsal(self, s: Signals, known: Indices) -> npt.NDArray[np.float64]:
        """Per row its place among the known ones, from 0; NaN for others."""
        order = known[np.argsort(-uniform(self.seed, s)[known], kind="stable")]
        order = in_rounds(order, s.group)
        if self.balance:
            order = in_rounds(order, s.balance)
        place = np.full(len(s), np.nan)
        place[order] = np.arange(len(order))
        return place

    @property
    def holds_caps(self) -> bool:
        """Where known rows come between the best, which are more than one list."""
        return self.rehearse > 0

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """Best first; with ``rehearse`` so many known rows between them that their share holds all along."""
        best = scored.best()
        if not self.rehearse or not len(best):
            return budget.take(best, scored)
        place = scored.details["rehearsal"]
        known = np.flatnonzero(np.isfinite(place))
        known = known[np.argsort(place[known], kind="stable")]
        cost = budget.costs(scored) if budget.of_tokens else np.ones(len(scored), np.int64)
        return budget.take(merge(best, known, cost, self.rehearse, scored.caps), scored)

    def remark(self, scored: Scored, at: Indices) -> str | None:
        """How much rehearsal there is."""
        if not self.rehearse:
            return None
        count = int((scored.details["known"][at] == 1).sum())
        return f"{count} of {len(at)} rows rehearse what is known; {self.rehearse:.0%} of the budget was asked for"
