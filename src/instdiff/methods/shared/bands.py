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
    return np.asarray(-np.abs(ranks(x) - (np.isfinite(x).sum() - 1) / 2))


def ranks(x: Floats) -> Floats:
    """The rank of each value from the lowest, 0; equal ones have the mean of theirs, and NaN stays NaN.

    So the input's order never decides.
    """
    finite = np.isfinite(x)
    out = np.full(len(x), np.nan)
    _, inverse, counts = np.unique(x[finite], return_inverse=True, return_counts=True)
    out[finite] = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return out
