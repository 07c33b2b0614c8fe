"""Rows into batches: longest first, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def batches(lengths: npt.NDArray[np.int64], max_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions per batch, so that rows times the longest row stay within ``max_tokens``.

    Longest first: memory peaks on the first batch and estimates of the time left err on the safe side. A row longer
    than the budget is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        size = max(1, max_tokens // width)
        yield order[start : start + size]
        start += size
