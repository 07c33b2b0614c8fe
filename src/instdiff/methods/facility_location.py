"""Facility location: the rows that together stand for all rows best (Superfiltering.D, arXiv:2402.00530; QDIT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.choose.facility import facility
from instdiff.core import Floats, Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.sets import Rows, VectorMethod


@dataclass(frozen=True)
class FacilityLocation(VectorMethod):
    """Greedily the row that raises most the sum, over all rows, of the similarity to their nearest chosen row.

    ``kernel`` is ``cosine``, ``rbf`` = exp(-gamma |x - y|^2), or ``official`` = exp(-|x - y| / width), that of
    Superfiltering.D. With ``alpha`` above 0 it is QDIT (arXiv:2311.14736): (1 - alpha) gain + alpha quality. Quality is
    the score of the method before it (``then``), brought to 0..1, where a gain of 1 is one more row fully represented;
    this scale is ours.
    """

    name: ClassVar[str] = "facility_location"
    paper: ClassVar[str] = "arXiv:2402.00530; arXiv:2311.14736"

    kernel: Literal["cosine", "rbf", "official"] = "cosine"
    gamma: float = 1.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"'{self.name}.alpha' is {self.alpha}; it lies in 0 to 1")

    def choose(self, s: Signals, count: int) -> Rows:
        """Lazy greedy."""
        quality = self._quality(s) if self.alpha else None
        x = vectors(s.vector)[0]
        return facility(x, count, kernel=self.kernel, gamma=self.gamma, quality=quality, alpha=self.alpha)

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
