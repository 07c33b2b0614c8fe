"""Choosing in two stages, for more rows than the exact way can take: within random parts, then among what they chose.

GreeDi, Mirzasoleiman et al., NIPS 2013; random parts, Barbosa et al., ICML 2015; k-center, Malkomes et al., NIPS 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.choose.blocks import Matrix, Rows, count

Chooser = Callable[[Matrix, int], Rows]
"""Vectors [n, d] and a number of rows in, row indices in the order taken out: ``kcenter``, ``facility``."""


def partitioned(x: npt.NDArray[Any], k: int, choose: Chooser, *, parts: int, over: float = 2.0, seed: int = 0) -> Rows:
    """Take ``k`` rows: in each random part ``over`` times its share, then ``k`` among all of these.

    With one part it is ``choose`` itself. Where each part gives ``k`` rows (``over`` at ``parts`` or above), the radius
    of farthest-first k-center is at most 4 times the best one instead of 2, and a greedy of a monotone submodular sum,
    as facility location, reaches (1 - 1/e) / 2 of the best one in expectation instead of 1 - 1/e. A smaller ``over``
    has no such bound: it is a choice of speed, and its loss must be measured on rows for which the exact way ends.

    Args:
        x: [n, d]; may be a memory map. A part at a time is in memory, and then the rows of the second stage.
        k: rows to take.
        choose: the exact way.
        parts: of about n / parts rows each. For a cost of n k, a part costs ``over`` n k / parts².
        over: how many times its share of ``k`` each part gives; 1 leaves the second stage nothing but the order.
        seed: of the parts.

    Returns:
        [k] row indices in the order of the second stage, in which a row's place among equals is that of its index.

    Raises:
        ValueError: ``k`` exceeds the rows, there are fewer rows than ``parts``, or ``over`` is below 1.
    """
    n = len(x)
    count(k, n)
    if not 1 <= parts <= max(n, 1):
        raise ValueError(f"{parts} parts of {n} rows; each must have one at least")
    if over < 1:
        raise ValueError(f"over is {over}; below 1 the parts together give fewer rows than are asked for")
    if parts == 1 or k == 0:
        return choose(np.asarray(x), k) if k else np.zeros(0, np.int64)
    order = np.random.default_rng(seed).permutation(n)
    kept = []
    for part in np.array_split(order, parts):
        rows = np.sort(part)  # a mapped file is read forwards
        share = min(len(rows), max(1, int(np.ceil(min(over, parts) * k * len(rows) / n))))
        kept.append(rows[choose(np.asarray(x[rows]), share)])
    left = np.sort(np.concatenate(kept))
    return np.asarray(left[choose(np.asarray(x[left]), k)], np.int64)
