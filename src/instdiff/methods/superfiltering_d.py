"""Superfiltering.D (Li et al., ACL 2024, arXiv:2402.00530): a small model filters, then diversity decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Method, Scored, Scores, Signal, Signals
from instdiff.methods.combine import Then
from instdiff.methods.facility_location import FacilityLocation
from instdiff.methods.shared.set_method import Parts
from instdiff.methods.superfiltering import Superfiltering


@dataclass(frozen=True)
class SuperfilteringD(Method):
    """The best ``keep`` rows by ``superfiltering``, then those that represent them best (facility location).

    The kernel is the published one, exp(-distance / width) between mean-pooled embeddings; MiniLM-L6 in the paper. It
    is ``then`` with these two methods. ``reach`` is the share of the rows kept that scoring ranks: 10 % of 20 % is the
    published 2 %. ``parts``, ``oversample``, ``neighbours`` and ``seed`` are those of ``facility_location``, for more
    rows than its exact way can take.
    """

    name: ClassVar[str] = "superfiltering_d"
    paper: ClassVar[str] = "arXiv:2402.00530"

    keep: str | int = "20%"
    reach: float = 0.1
    model: str = "proxy"
    parts: Parts = None
    oversample: float = 1.0
    neighbours: int | None = None
    seed: int = 42
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        self.both()

    def both(self) -> Then:
        """The two methods as one."""
        first = Superfiltering(model=self.model, compat=self.compat)
        second = FacilityLocation(
            kernel="official",
            pooling="mean",
            reach=self.reach,
            parts=self.parts,
            oversample=self.oversample,
            neighbours=self.neighbours,
            seed=self.seed,
        )
        return Then(first, self.keep, second)

    @property
    def approximation(self) -> str | None:
        """That of the second method."""
        return self.both().approximation

    def signals(self) -> dict[str, Signal]:
        """Those of both."""
        return self.both().signals()

    def score(self, s: Signals) -> Scores:
        """Minus the rank among the rows kept."""
        return self.both().score(s)

    @property
    def holds_caps(self) -> bool:
        """As the second method does."""
        return self.both().holds_caps

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """The head of the ranking."""
        return self.both().pick(scored, budget)
