"""How well a ranking tells two sorts of rows apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.evaluation.statistics import Interval

Mask = npt.NDArray[np.bool_]


def last(value: Floats) -> Floats:
    """Scores in which the rows without one share a place below all others: no selection takes them."""
    finite = np.isfinite(value)
    lowest = float(value[finite].min()) if finite.any() else 0.0
    return np.where(finite, value, lowest - 1.0)


def auc(score: Floats, sought: Mask) -> float:
    """Chance that a row that is sought has the higher score than one that is not; equal scores count half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    some, others = int(sought.sum()), int((~sought).sum())
    if not some or not others:
        return float("nan")
    return float((rank[sought].sum() - some * (some + 1) / 2) / (some * others))


def auc_interval(score: Floats, sought: Mask, *, draws: int = 1000, seed: int = 0) -> Interval:
    """``auc`` with its 95 % percentile interval; both sorts are drawn with replacement, each as many as there are."""
    rng = np.random.default_rng(seed)
    some, others = np.flatnonzero(sought), np.flatnonzero(~sought)
    mark = np.arange(len(score)) < len(some)
    found = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(some, len(some)), rng.choice(others, len(others))])
        found.append(auc(score[rows], mark))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(auc(score, sought), float(low), float(high))


def spread(values: list[float], name: str) -> dict[str, Any]:
    """Mean and range of a number over seeds, as fields of a record."""
    return {name: float(np.mean(values)), f"{name}_low": min(values), f"{name}_high": max(values)}
