"""High-entropy sum (Li et al., arXiv:2605.22389): the few tokens at which a trace decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from instdiff.core import Entropy, Floats, Method, Prompted, Scores, Signal, Signals
from instdiff.errors import ConfigError


@dataclass(frozen=True)
class HighEntropySum(Method):
    """Sum of the entropies of the response tokens with the highest entropy, in nats; highest first.

    ``share`` says how many: ``floor(share (n - 1)) + 1`` of n tokens, which is 1 of 200 and 5 of 1,000. They are those
    at or above a percentile, as another tool has it (authors' code is unknown), but ties add no tokens. The sum grows
    with the length of the row. Details: ``hes_tokens``, how many were added, and ``entropy``, the mean over all tokens.
    """

    name: ClassVar[str] = "hes"
    paper: ClassVar[str] = "arXiv:2605.22389"

    share: float = 0.005
    model: str = "base"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"'{self.name}.share' is {self.share}; a share lies in 0 to 1")

    def signals(self) -> dict[str, Signal]:
        """Entropy at each response token given the prompt."""
        return {"entropy": Signal(Entropy(), Prompted(), self.model)}

    def score(self, s: Signals) -> Scores:
        """The sum of the largest entropies."""
        n = s.entropy.count()
        counts = np.where(n > 0, np.floor(self.share * (n - 1) + 1e-9) + 1, 0).astype(np.int64)
        return Scores(_sum_of_largest(s.entropy, counts), hes_tokens=counts, entropy=s.entropy.mean())


def _sum_of_largest(column: Any, counts: Any) -> Floats:
    """Of each row the sum of so many of its largest values; NaN where it has none."""
    out = np.full(len(column), np.nan)
    for row in np.flatnonzero(counts).tolist():
        values = column[row]
        values = np.asarray(values[np.isfinite(values)], np.float64)
        out[row] = np.partition(values, len(values) - counts[row])[len(values) - counts[row] :].sum()
    return out
