"""Facility location: the rows that together stand for all rows best (Superfiltering.D, arXiv:2402.00530; QDIT)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from instdiff.core import Floats, Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.shared.set_method import Indices, PartitionedMethod


@dataclass(frozen=True)
class FacilityLocation(PartitionedMethod):
    """Greedy: add the row that most raises the total similarity of all rows to their nearest chosen row.

    ``kernel`` is ``cosine``, ``rbf`` = exp(-gamma |x - y|^2), or ``official`` = exp(-|x - y| / width), that of
    Superfiltering.D. With ``alpha`` above 0 it is QDIT (arXiv:2311.14736): (1 - alpha) gain + alpha quality. Quality is
    the score of the method before it (``then``), brought to 0..1, where a gain of 1 is one more row fully represented;
    this scale is ours.

    The exact way costs rows times rows, and refuses where that would take hours; ``parts=1`` does it all the same.
    ``parts=auto`` deals the rows out to random parts of at most 8,192, or to as many as are named, and takes an equal
    share of each: some of the sum is lost (docs/scale.md has how much). With ``oversample`` = m each gives m times its
    share, of which the exact way takes the last. With ``oversample`` = ``parts`` the sum is at least (1 - 1/e) / 2 of
    the best one in expectation, where the exact way has 1 - 1/e. ``seed`` draws the parts.

    ``neighbours=256`` counts a gain over the 256 rows alone that are most like the candidate. It is faster and has no
    guarantee; docs/scale.md has what is lost. They should be several times the rows for each one chosen.
    """

    name: ClassVar[str] = "facility_location"
    paper: ClassVar[str] = "arXiv:2402.00530; arXiv:2311.14736"

    kernel: Literal["cosine", "rbf", "official"] = "cosine"
    gamma: float = 1.0
    alpha: float = 0.0
    neighbours: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"'{self.name}.alpha' is {self.alpha}; it lies in 0 to 1")
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(f"'{self.name}.neighbours' is {self.neighbours}; the least is 1, the row itself")

    @property
    def approximation(self) -> str | None:
        """Parts, and gains over neighbours alone."""
        sparse = self.neighbours and f"{self.name}: gains are counted over the nearest {self.neighbours:,} rows alone"
        return "; ".join(text for text in (super().approximation, sparse) if text) or None

    def choose(self, s: Signals, count: int) -> Indices:
        """Lazy greedy."""
        beside: dict[str, Any] = {"quality": self._quality(s)} if self.alpha else {}
        x = vectors(s.vector)[0]
        names = "kernel", "gamma", "alpha", "neighbours"
        choose = partial(facility, **{name: getattr(self, name) for name in names})
        return self.choose_rows(x, count, choose, caps=s.caps, **beside)

    def pairs(self, n: int, k: int) -> float:
        """All rows with all, and again with those that a row represents when it is taken: ever fewer."""
        return float(n * (n + k)) if self.neighbours else n * n * float(0.5 + np.log(k + 1))

    def _quality(self, s: Signals) -> Floats:
        """The earlier scores in 0..1; rows without one have the lowest."""
        if s.prior is None:
            raise ConfigError(
                f"'{self.name}.alpha' weighs an earlier method's scores, and there is none; put it second in 'then'"
            )
        known = s.prior[np.isfinite(s.prior)]
        if len(known) == 0:
            return np.zeros(len(s))
        low, high = float(known.min()), float(known.max())
        return np.where(np.isfinite(s.prior), (s.prior - low) / (high - low if high > low else 1.0), 0.0)
