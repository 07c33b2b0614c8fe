"""What an exact way costs on this machine, and a clear word where that is too much."""

from __future__ import annotations

import os
import time
from functools import cache

import numpy as np

from instdiff.errors import ConfigError

HOURS = 2.0
"""What the exact way may take where nobody asked for it."""
_SOON = 2e13  # operations below which no machine takes hours
_ROUNDS = 100  # of a k-means over all rows, about


def check_effort(name: str, products: float, mend: str) -> None:
    """Refuse with a ConfigError what would take hours for so many ``products``; ``mend`` says what to set."""
    hours = _hours(products)
    if hours > HOURS:
        raise ConfigError(
            f"'{name}' would take about {hours:,.0f} hours on this machine; set {mend}, which is an approximation, "
            f"lower '{name}.reach' or the budget, or set '{name}.parts' to 1 and wait"
        )


def check_search(n: int, width: int, mend: str) -> None:
    """Refuse with a ConfigError an exact search among ``n`` rows that would take hours; ``mend`` says what to set."""
    if (hours := _hours(float(n) * n * width)) > HOURS:
        raise ConfigError(f"the nearest rows of {n:,} would take about {hours:,.0f} hours on this machine; {mend}")


def check_kmeans(name: str, shape: tuple[int, ...], clusters: int) -> None:
    """Refuse with a ConfigError a k-means over all rows that would take hours, or most of the memory."""
    n, width = shape
    mend = f"set '{name}.engine' to faiss or minibatch, which learn the clusters from a part of the rows"
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")
    if 4.0 * n * width > room / 2:
        raise ConfigError(f"'{name}' would copy {4e-9 * n * width:,.0f} GB of vectors into memory; {mend}")
    if (hours := _hours(_ROUNDS * float(n) * clusters * width)) > HOURS:
        raise ConfigError(f"'{name}' would take about {hours:,.0f} hours on this machine; {mend}")


def _hours(products: float) -> float:
    """Of multiplications and additions, in pairs; none where it is little."""
    if 2 * products < _SOON:
        return 0.0
    return 2 * products / (_rate() / 2) / 3600  # half the time goes to other things than products


@cache
def _rate() -> float:
    """Operations in a second, in products of float32 matrices."""
    a, b = np.ones((512, 384), np.float32), np.ones((384, 4096), np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2.0 * a.size * b.shape[1] / min(seconds)
