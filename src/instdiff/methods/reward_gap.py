"""Difficulty-based preference selection (Qi, Xu and Jin, arXiv:2508.04149): pairs by the gap of implicit rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Method, Nll, Scores, Side, Signal, Signals, reasons
from instdiff.methods.shared.preference import SIDES, reward_gaps, same_sides, total


@dataclass(frozen=True)
class RewardGap(Method):
    """Implicit reward of the chosen answer minus that of the rejected one, smallest first, with its sign.

    The implicit reward of an answer is ``beta`` times the drop of its summed NLL from the model ``base`` to the model
    ``policy``, which is trained by DPO. A small gap is a hard pair. The most negative ones are often pairs whose sides
    are mixed up; ``floor`` leaves out pairs with a gap below it. Pairs whose sides are the same are left out too.
    ``beta`` does not change the order.

    Take a policy that has not seen the pairs. The published code tokenises prompt and answer as one text and counts
    padding; here neither is done. Details: ``gap``, and ``base_chosen``, ``base_rejected``, ``policy_chosen`` and
    ``policy_rejected``, the summed NLLs in nats.
    """

    name: ClassVar[str] = "reward_gap"
    paper: ClassVar[str] = "arXiv:2508.04149"
    filters: ClassVar[str] = "two equal sides, or a gap below the floor"

    beta: float = 0.1
    floor: float | None = None
    base: str = "base"
    policy: str = "policy"

    def signals(self) -> dict[str, Signal]:
        """NLL of both sides under both models."""
        roles = {"base": self.base, "policy": self.policy}
        return {f"{name}_{side}": Signal(Nll(), Side(side), roles[name]) for name in roles for side in SIDES}

    def score(self, s: Signals) -> Scores:
        """Minus the gap."""
        sums = {name: total(getattr(s, name)) for name in self.signals()}
        base, policy = ((sums[f"{name}_chosen"], sums[f"{name}_rejected"]) for name in ("base", "policy"))
        gap = reward_gaps(self.beta, base, policy)
        out = same_sides(s.base_chosen, s.base_rejected)
        if self.floor is not None:
            out = out | (gap < self.floor)
        return Scores(np.where(out, np.nan, -gap), reasons(len(s), filtered=out), **sums, gap=gap)
