"""MIWV's ablations: its lowest rows, and the loss after a demonstration alone."""

from dataclasses import dataclass
from typing import ClassVar

from instdiff.core import Scores
from instdiff.methods.miwv import MIWV


@dataclass(frozen=True)
class LowestMIWV(MIWV):
    """Rows that a demonstration helps most."""

    name: ClassVar[str] = "lowestmiwv"

    def score(self, s):
        """MIWV with its sign turned."""
        found = super().score(s)
        return Scores(-found.value, reason=found.reason, **found.details)


@dataclass(frozen=True)
class OneShotLoss(MIWV):
    """Rows that stay hard after a demonstration."""

    name: ClassVar[str] = "oneshotloss"

    def score(self, s):
        """The one-shot loss."""
        found = super().score(s)
        return Scores(found.details["nll_one_shot"], reason=found.reason, **found.details)
