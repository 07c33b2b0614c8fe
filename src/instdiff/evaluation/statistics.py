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
        means.append(_divide(value[picks].sum(1), count[picks].sum(1)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(token_mean(value, count), float(low), float(high))


def _divide(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros(len(total)), where=count > 0)


@dataclass(frozen=True)
class Difference:
    """How much better or worse one side is, with its bootstrap interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def bootstrap_over_seeds(score: Floats, weight: Floats, *, draws: int, seed: int = 0) -> Floats:
    """Means of score over seeds and items, both drawn with replacement.

    Two calls with the same ``weight`` and ``seed`` draw the same items, so that their difference is paired by item.

    Args:
        score: [seeds, items], without NaN.
        weight: [items].
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        [draws].
    """
    rng = np.random.default_rng(seed)
    items = score.shape[1]
    means = np.empty((draws, len(score)))
    for start in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - start)
        counts = rng.multinomial(items, np.full(items, 1 / items), size) * weight
        means[start : start + size] = counts @ score.T / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    # Another stream, so that the items stay the same whatever the number of seeds.
    picks = np.random.default_rng([seed, len(score)]).integers(0, len(score), (draws, len(score)))
    drawn: Floats = np.take_along_axis(means, picks, 1).mean(1)
    return drawn


def difference(value: float, draws: Floats, *, level: float = 0.95) -> Difference:
    """An estimated difference and its bootstrap draws as interval and p-value."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    side = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    return Difference(value, float(low), float(high), min(1.0, 2 * max(side, 1 / len(draws))))


def holm(p: list[float], level: float = 0.05) -> list[bool]:
    """Which of several tests hold together at a level (Holm, 1979)."""
    held = [False] * len(p)
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[at] * (len(p) - rank) > level:
            break
        held[at] = True
    return held
