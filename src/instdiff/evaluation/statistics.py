"""Intervals and differences: of one model over items by bootstrap, of trainings over seeds and items by variances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


MIN_SEEDS = 3
"""Fewer trainings say nothing of how much trainings differ."""
_FLOOR = 0.1
_MOST = 2.0


@dataclass(frozen=True)
class Estimate:
    """A mean or difference over seeds and items, its 95 % t interval, the two-sided p-value against zero, its error.

    Floats, or arrays of them for many problems at once. With too few seeds interval, p-value and standard error are
    NaN; with one item there is no interval, and p is 1.
    """

    value: Any
    low: Any
    high: Any
    p: Any
    error: Any


@dataclass(frozen=True)
class _Parts:
    """Variance components of weighted means, each with a leading axis of its own or none."""

    value: Floats
    item: Floats
    seed: Floats
    rest: Floats
    seeds: int


def estimate(
    score: Floats, weight: Floats, against: Floats | None = None, *, fixed: bool = False, fixed_against: bool = False
) -> Estimate:
    """A weighted mean with its interval; with ``against``, the difference to it, paired by item and not by seed.

    Args:
        score: [..., seeds, items], without NaN; leading axes are problems of their own.
        weight: [items].
        against: [..., seeds, items], the other side's scores of the same items.
        fixed: the model is no sample of trainings, such as a base that nobody has trained here: its seeds vary nothing.
        fixed_against: the same of the other side.

    The variance is the sum of what seeds add on each side and what items add, minus the residuals that both hold;
    subtraction never brings it below a tenth of what seeds or residuals add.
    """
    sides = [_parts(score, weight, fixed)] + ([_parts(against, weight, fixed_against)] if against is not None else [])
    value, item = sides[0].value, sides[0].item
    if len(sides) > 1:
        value, item = value - sides[1].value, item - sides[1].item
    count = int((weight > 0).sum())
    drawn = [side.seeds for side in sides if side.seeds]
    if any(seeds < MIN_SEEDS for seeds in drawn) or count < 2:
        nothing = np.full(np.shape(value), np.nan)
        p = np.where(any(seeds < MIN_SEEDS for seeds in drawn), nothing, 1.0)
        return Estimate(value[()], nothing[()], nothing[()], p[()], nothing[()])
    total = (item**2).sum(-1) * count / (count - 1) + sum(side.seed - side.rest for side in sides)
    spread = sum((side.seed for side in sides), np.zeros(np.shape(value)))
    total = np.maximum(total, _FLOOR * np.maximum(spread, sum(side.rest for side in sides)))
    return judge(value, total, [(side.seed, side.seeds) for side in sides if side.seeds], count)


def judge(value: Floats, variance: Floats, seeds: Sequence[tuple[Floats, int]], items: int) -> Estimate:
    """The interval and p-value of a value whose variance is known by parts.

    Args:
        value: a mean or difference.
        variance: of it, all parts together.
        seeds: of each side that is a sample of trainings, the part that its seeds add, and how many they are.
        items: how many.

    The degrees of freedom are Satterthwaite's of the seeds, divided by their share of the variance, up to those of the
    items: his formula for all parts together takes a variance of three seeds that is small by chance for a well-known
    one. The p-value has at most twice the degrees of freedom of both sides' seeds, since the smallest p of many lines
    is that of the smallest variance. ``benchmarks/coverage.py`` shows what comes of it.
    """
    from scipy.special import stdtr, stdtrit

    part = sum((one for one, _ in seeds), np.zeros(np.shape(value)))
    squares = sum((one**2 / (count - 1) for one, count in seeds), np.zeros(np.shape(value)))
    freedom = np.divide(part * variance, squares, out=np.full(np.shape(value), float(items)), where=squares > 0)
    freedom = np.clip(freedom, min((count - 1 for _, count in seeds), default=1), items - 1)
    # As wide as rounding, so that the same numbers on both sides are no difference.
    error = np.maximum(np.sqrt(variance), 1e-12)
    reach = stdtrit(freedom, 0.975) * error
    most = _MOST * sum(count - 1 for _, count in seeds) if seeds else np.inf
    p = 2 * stdtr(np.minimum(freedom, most), -np.abs(value) / error)
    return Estimate(value[()], (value - reach)[()], (value + reach)[()], p[()], error[()])


def ratio(part: Estimate, whole: Estimate, between: Estimate) -> Interval:
    """Which share of one difference another is, with Fieller's interval; NaN for its ends where it is open.

    Args:
        part: a line's difference to the control.
        whole: another line's difference to the same control.
        between: the first line's difference to the second, which says how the two go together.
    """
    reach = max((one.high - one.value) / one.error for one in (part, whole))
    together = (part.error**2 + whole.error**2 - between.error**2) / 2
    # The shares s for which part - s * whole is not told apart from zero.
    square = whole.value**2 - (reach * whole.error) ** 2
    middle = part.value * whole.value - reach**2 * together
    inside = middle**2 - square * (part.value**2 - (reach * part.error) ** 2)
    if not (square > 0 and inside >= 0):
        return Interval(part.value / whole.value, np.nan, np.nan)
    half = inside**0.5
    return Interval(part.value / whole.value, float((middle - half) / square), float((middle + half) / square))


def _parts(score: Floats, weight: Floats, fixed: bool) -> _Parts:
    """What seeds, items and the rest add to a side's variance; ``item`` are the items' weighted deviations."""
    share = weight / weight.sum()
    seed, item = score @ share, score.mean(-2)
    value = seed.mean(-1)
    deviation = (item - value[..., None]) * share
    seeds, items = score.shape[-2], int((weight > 0).sum())
    zero = np.zeros(np.shape(value))
    if fixed or seeds < 2 or items < 2:
        return _Parts(value, deviation, zero, zero, 0 if fixed else seeds)
    rest = (score - item[..., None, :] - seed[..., None] + value[..., None, None]) * share
    residual = (rest**2).sum((-1, -2)) * items / ((seeds - 1) * (items - 1)) / seeds
    return _Parts(value, deviation, seed.var(-1, ddof=1) / seeds, residual, seeds)


def holm(p: list[float], level: float = 0.05) -> list[bool]:
    """Which of several tests hold together at a level (Holm, 1979)."""
    held = [False] * len(p)
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[at] * (len(p) - rank) > level:
            break
        held[at] = True
    return held
