"""Intervals and differences by bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats

_BLOCK = 64


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap percentile interval."""

    value: float
    low: float
    high: float


def token_mean(total: Floats, count: npt.NDArray[np.int64] | Floats) -> float:
    """Mean per token from a sum and a count per row; NaN where there is no token."""
    return float(total.sum() / count.sum()) if count.sum() else float("nan")


def bootstrap_token_mean(
    total: Floats,
    count: npt.NDArray[np.int64] | Floats,
    *,
    against: Floats | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean per token over rows drawn with replacement; with ``against``, the paired difference to those sums.

    Args:
        total: sum per row.
        count: tokens per row, or weights.
        against: another sum per row, of the same rows and tokens.
        draws: bootstrap samples.
        level: of the percentile interval.
        seed: of the draws.
    """
    value = total if against is None else total - against
    rng = np.random.default_rng(seed)
    n = len(value)
    means = []
    for start in range(0, draws, _BLOCK):
        picks = rng.integers(0, n, (min(_BLOCK, draws - start), n))
        means.append(_over(value[picks].sum(1), count[picks].sum(1)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(token_mean(value, count), float(low), float(high))


def _over(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros(len(total)), where=count > 0)
