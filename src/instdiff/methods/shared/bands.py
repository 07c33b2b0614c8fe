"""Lowest, middle or highest first: what several methods share."""

from __future__ import annotations

from typing import Literal

import numpy as np

from instdiff.core import Floats

Band = Literal["min", "mid", "max"]


def by_band(x: Floats, band: Band) -> Floats:
    """Scores that prefer the lowest, the middle (by rank) or the highest of ``x``; NaN stays NaN.

    For ``mid`` the score is minus the distance of the rank from the middle rank, so that any budget takes the rows
    around the median.
    """
    if band == "max":
        return x
    if band == "min":
        return -x
    finite = np.isfinite(x)
    out = np.full(len(x), np.nan)
    # Equal values share a rank, so that the input's order does not decide.
    values, inverse, counts = np.unique(x[finite], return_inverse=True, return_counts=True)
    del values
    rank = np.cumsum(counts) - (counts + 1) / 2
    out[finite] = -np.abs(rank[inverse] - (finite.sum() - 1) / 2)
    return out
