"""Rank correlation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], np.float64)


def spearman(a: Floats, b: Floats) -> float:
    """Over the rows that both have a finite value for; NaN for fewer than three, or where all of one are equal."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = ranks(a[both]), ranks(b[both])
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
