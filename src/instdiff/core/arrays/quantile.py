"""Exact quantiles of more float32 values than fit into memory, by counting instead of sorting.

Non-negative floats sort like the integers that their bits are, and negative ones the other way round. One pass counts
the upper halves of these integers, which tells in which of 65,536 buckets a rank lies; a second counts the lower halves
within those buckets, which tells the value itself. The error is 0, and memory does not grow with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged

Array = npt.NDArray[Any]
Source = Callable[[], Iterable[Array]] | Ragged | Array
"""An array or ragged column (mapped files are read in chunks), or a function that begins anew to yield chunks."""
METHODS = ("linear", "lower", "higher")
AT_ONCE = 1 << 20
BUCKETS_AT_ONCE = 128
"""Buckets that one pass looks into: 64 MiB of counts."""
HALF = 1 << 16
SIGN = np.uint32(1 << 31)


@dataclass(frozen=True)
class Quantiles:
    """Values in the order of the levels asked for, and how many values they are of."""

    values: npt.NDArray[np.float64]
    count: int
    nan: int


def quantiles(source: Source, levels: float | Sequence[float], method: str = "linear") -> Quantiles:
    """What ``numpy.quantile`` gives for the values in float64, NaN left out and counted.

    The values, whatever float32 holds exactly, are read twice, and once more for each 128 buckets beyond the first 128;
    64 levels never need more. A level between two values is answered by ``method``: ``linear``, ``lower`` or
    ``higher``. Between equal neighbours, infinite ones included, the result is that neighbour, and between -inf and inf
    NaN. No values, a level or method that is none, or two readings that differ are a ValueError; values that do not fit
    into float32 are a TypeError.
    """
    wanted = np.atleast_1d(np.asarray(levels, np.float64))
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError(f"levels must be between 0 and 1, not {levels}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    upper, nan = _upper(source)
    count = int(upper.sum())
    if count == 0:
        raise ValueError(f"no values to take quantiles of ({nan} NaN left out)")
    at = wanted * (count - 1)
    below, above = np.floor(at).astype(np.int64), np.ceil(at).astype(np.int64)
    if method != "linear":
        return Quantiles(_values_at_ranks(source, upper, below if method == "lower" else above), count, nan)
    ends = _values_at_ranks(source, upper, np.concatenate([below, above]))
    return Quantiles(_between(ends[: len(at)], ends[len(at) :], at - below), count, nan)


def _between(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> Array:
    """Numpy's interpolation, to the last bit."""
    with np.errstate(invalid="ignore"):
        out = np.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))
    return np.where((a == b) | (t == 0), a, out)


def _chunks(source: Source) -> Iterator[npt.NDArray[np.uint32]]:
    """Values as integers in their order, few at a time; a NaN is above ``_order(inf)`` or below ``_order(-inf)``."""
    pieces = source() if callable(source) else [source.values if isinstance(source, Ragged) else source]
    for piece in pieces:
        if not np.can_cast(piece.dtype, np.float32):
            raise TypeError(f"values of {piece.dtype} do not fit into float32")
        flat = piece.reshape(-1)
        for start in range(0, len(flat), AT_ONCE):
            yield _order(flat[start : start + AT_ONCE].astype(np.float32, copy=False))


def _order(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    flips = (bits.view(np.int32) >> 31).view(np.uint32) | SIGN  # all bits of a negative one, else the sign
    return np.asarray(bits ^ flips, np.uint32)


def _values(order: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    bits = np.where(order >> 31, order ^ int(SIGN), order ^ (HALF * HALF - 1)).astype(np.uint32)
    return bits.view(np.float32).astype(np.float64)


LEAST, MOST = (int(_order(np.array([end], np.float32))[0]) for end in (-np.inf, np.inf))


def _upper(source: Source) -> tuple[npt.NDArray[np.int64], int]:
    """How many values there are with each upper half, and how many NaN."""
    counts, nan = np.zeros(HALF, np.int64), 0
    for order in _chunks(source):
        real = order
        if len(order) and (order.min() < LEAST or order.max() > MOST):
            real = order[(order >= LEAST) & (order <= MOST)]
        nan += len(order) - len(real)
        counts += np.bincount(real >> 16, minlength=HALF)
    return counts, nan


def _values_at_ranks(
    source: Source, upper: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The values that have these ranks, from 0, among all."""
    ends = np.cumsum(upper)
    bucket = np.searchsorted(ends, ranks, "right")
    out = np.zeros(len(ranks))
    needed = np.unique(bucket)
    for start in range(0, len(needed), BUCKETS_AT_ONCE):
        some = needed[start : start + BUCKETS_AT_ONCE]
        lower = _lower(source, some)
        if not np.array_equal(lower.sum(1), upper[some]):
            raise ValueError("the values changed between two readings; the source must give the same ones each time")
        for counts, high in zip(lower, some, strict=True):
            mine = bucket == high
            within = ranks[mine] - (ends[high] - upper[high])
            out[mine] = _values(high * HALF + np.searchsorted(np.cumsum(counts), within, "right"))
    return out


def _lower(source: Source, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many values there are with each lower half, per bucket."""
    wanted = np.zeros(HALF, bool)
    wanted[buckets] = True
    slot = np.cumsum(wanted) - 1
    counts = np.zeros(len(buckets) * HALF, np.int64)
    for order in _chunks(source):
        here = order[wanted[order >> 16]]
        here = here[(here >= LEAST) & (here <= MOST)]  # a NaN may share its upper half with infinity
        np.add.at(counts, slot[here >> 16] * HALF + (here & (HALF - 1)), 1)
    return counts.reshape(len(buckets), HALF)
