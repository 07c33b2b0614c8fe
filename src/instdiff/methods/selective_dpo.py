"""Selective DPO (Gao et al., ICML 2025, arXiv:2502.09650): pairs that models learn from others, easy ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Folds, Method, Nll, Scores, Side, Signal, Signals, reasons
from instdiff.core.arrays.ranking import best_first
from instdiff.core.signals import CrossFitted, Fold, Split
from instdiff.errors import ConfigError
from instdiff.methods.shared.preference import SIDES, reward_gaps, same_sides, total


@dataclass(frozen=True)
class SelectiveDPO(Method):
    """DPO loss of a pair under models trained by DPO on other pairs, lowest first; the upper half is left out.

    The pairs are split into halves at random, once for each of the ``seeds``. For each half there is a model that was
    trained on the other one: ``dpo/0/0`` and ``dpo/0/1`` for the first seed, and so on. You train them, and bind them;
    a model that has seen a pair or a prompt of its own half is refused. With ``evaluations`` above 1 each model is read
    at as many points of its training: ``dpo/0.1/0`` to ``dpo/0.5/0``. Published are 5, of which the early ones know
    little; the default is the trained model alone. ``beta`` is that of the training.

    ``split_seed`` draws the halves, and does not change with the seed of a run, because the models belong to them.
    Of the pairs with a loss the lowest ``keep`` stay, and a selection has them from easy to hard. Pairs whose sides are
    the same are left out. Pairs share a half where their prompts are near copies, or where the column ``group`` has one
    value. `reward_gap` prefers what this method leaves out, by a policy that may have seen the pair.

    Details: ``loss`` and ``gap``, means over the models; ``base_chosen``, ``base_rejected``, ``dpo_chosen`` and
    ``dpo_rejected``, summed NLLs in nats, those of the models as means; ``half_0`` and so on, the half of each seed.
    """

    name: ClassVar[str] = "selective_dpo"
    paper: ClassVar[str] = "arXiv:2502.09650"
    filters: ClassVar[str] = "two equal sides, or a loss in the upper half"

    keep: float = 0.5
    beta: float = 0.01
    seeds: int = 3
    evaluations: int = 1
    group: str | None = None
    split_seed: int = 42
    base: str = "base"
    dpo: str = "dpo"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"'{self.name}.keep' is {self.keep:g}, a share above 0 and up to 1")
        if self.seeds < 1 or self.evaluations < 1:
            raise ConfigError(f"'{self.name}' wants 1 or more 'seeds' and 'evaluations'")

    def split(self, number: int) -> Split:
        """The halves of a seed, from 0."""
        return Split(Folds(k=2), self.split_seed + number, self.group, given=True)

    def roles(self) -> dict[str, Split]:
        """The role of each evaluation of each seed, with its halves; its two models are ``ROLE/0`` and ``ROLE/1``."""
        ends = [""] if self.evaluations == 1 else [f".{at}" for at in range(1, self.evaluations + 1)]
        return {f"{self.dpo}/{seed}{end}": self.split(seed) for seed in range(self.seeds) for end in ends}

    def signals(self) -> dict[str, Signal]:
        """NLL of both sides under the base and under the model of the other half; the halves."""
        base = {f"base_{side}": Signal(Nll(), Side(side), self.base) for side in SIDES}
        crossed = {
            f"{role}_{side}": Signal(CrossFitted(Nll(), split), Side(side), role)
            for role, split in self.roles().items()
            for side in SIDES
        }
        return base | crossed | {f"half_{seed}": Signal(Fold(self.split(seed))) for seed in range(self.seeds)}

    def score(self, s: Signals) -> Scores:
        """Minus the mean loss of the lowest share."""
        base = {f"base_{side}": total(getattr(s, f"base_{side}")) for side in SIDES}
        dpo = {side: np.array([total(getattr(s, f"{role}_{side}")) for role in self.roles()]) for side in SIDES}
        gaps = np.array(
            [
                reward_gaps(self.beta, (base["base_chosen"], base["base_rejected"]), pair)
                for pair in zip(dpo["chosen"], dpo["rejected"], strict=True)
            ]
        )
        with np.errstate(invalid="ignore"):
            loss = np.logaddexp(0, -gaps).mean(axis=0)
        same = same_sides(s.base_chosen, s.base_rejected)
        usable = np.where(same | (s.reason != None), np.nan, -loss)  # noqa: E711 - elementwise
        order = best_first(usable, s.ids)
        hard = order[int(self.keep * len(order) + 1e-9) :]
        out = same.copy()
        out[hard] = True
        details = base | {f"dpo_{side}": column.mean(axis=0) for side, column in dpo.items()}
        details |= {f"half_{seed}": getattr(s, f"half_{seed}") for seed in range(self.seeds)}
        value = np.where(out, np.nan, -loss)
        return Scores(value, reasons(len(s), filtered=out), **details, gap=gaps.mean(axis=0), loss=loss)
