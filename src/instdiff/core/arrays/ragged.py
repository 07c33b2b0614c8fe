"""A column of rows of unequal length: one value per token, one offset per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.spill import ROWS_AT_ONCE, SpillingArray

Array = npt.NDArray[Any]

AT_ONCE = 1 << 18
"""Values worked on at once, so that what is derived from mapped columns stays small."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """``values[offsets[i]:offsets[i + 1]]`` is row i.

    Binary operations need equal row lengths. A NaN is a token without a value; ``mean`` leaves it out.
    """

    values: Array
    offsets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(f"offsets must start at 0 and end at {len(self.values)}, the number of values")
        if np.any(self.offsets[1:] < self.offsets[:-1]):
            raise ValueError("offsets must not fall")

    def __repr__(self) -> str:
        return f"<Ragged of {len(self):,} rows, {len(self.values):,} values, {self.values.dtype}>"

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: npt.DTypeLike) -> Ragged:
        """Collect a sequence per row."""
        parts = [np.asarray(row, dtype) for row in rows]
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype), offsets_of([len(part) for part in parts]))

    @classmethod
    def of_matrix(cls, values: Array) -> Ragged:
        """Rows of equal length, [rows, values]."""
        return cls(values.reshape(-1), np.arange(len(values) + 1, dtype=np.int64) * values.shape[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Values per row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Values in each of the rows named."""
        at = np.asarray(rows, np.int64)
        return self.offsets[at + 1] - self.offsets[at]

    def spans(self) -> Iterator[slice]:
        """All rows in order, a bounded number of values at a time."""
        return spans(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """The rows named, in that order, possibly more than once."""
        lengths = self.lengths_of(rows)
        offsets = offsets_of(lengths)
        values = SpillingArray(self.values.dtype)
        for span in spans(offsets):
            start = np.repeat(self.offsets[:-1][rows[span]] - offsets[span], lengths[span])
            values.extend(self.values[start + np.arange(offsets[span.start], offsets[span.stop])])
        return Ragged(values.array(), offsets)

    def keep_last(self, counts: npt.NDArray[np.int64]) -> Ragged:
        """The last ``counts`` values of each row, which must not be more than it has."""
        if np.any(counts > self.lengths()) or np.any(counts < 0):
            raise ValueError("more values of a row are asked for than it has")
        offsets = offsets_of(counts)
        values = SpillingArray(self.values.dtype)
        for span in spans(self.offsets):
            ends = self.offsets[span.start + 1 : span.stop + 1]
            size = counts[span]
            start = np.repeat(ends - size - (offsets[span.start : span.stop]), size)
            values.extend(self.values[start + np.arange(offsets[span.start], offsets[span.stop])])
        return Ragged(values.array(), offsets)

    def map(self, function: Callable[..., Array], *others: Ragged) -> Ragged:
        """Apply ``function`` to the values of this and of others with the same row lengths."""
        for other in others:
            if not np.array_equal(self.offsets, other.offsets):
                raise ValueError("ragged operands have different row lengths")
        return Ragged(function(self.values, *(other.values for other in others)), self.offsets)

    def __sub__(self, other: Ragged) -> Ragged:
        return self.map(np.subtract, other)

    def sum(self) -> npt.NDArray[np.float64]:
        """Sum of the finite values of each row, in float64; 0 where there is none."""
        # reduceat reads one value for an empty row, so it sees only the rows that have any; unlike a running
        # sum, its result for a row does not depend on the rows before it.
        total = np.zeros(len(self))
        for span in self.spans():
            values, starts, some = self._some(span)
            if len(some):
                finite = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
                total[some] = np.add.reduceat(finite, starts)
        return total

    def count(self) -> npt.NDArray[np.int64]:
        """Finite values per row."""
        total = np.zeros(len(self), np.int64)
        for span in self.spans():
            values, starts, some = self._some(span)
            if len(some):
                total[some] = np.add.reduceat(np.isfinite(values), starts, dtype=np.int64)
        return total

    def _some(self, span: slice) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Values of a span, and where in them its rows that are not empty start; with those rows."""
        offsets = self.offsets[span.start : span.stop + 1]
        some = np.flatnonzero(np.diff(offsets) > 0)
        return self.values[offsets[0] : offsets[-1]], offsets[some] - offsets[0], some + span.start

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of the finite values of each row, in float64; NaN where there is none."""
        mean = np.full(len(self), np.nan)
        for span in self.spans():
            values, starts, some = self._some(span)
            if len(some):
                finite = np.isfinite(values)
                count = np.add.reduceat(finite, starts, dtype=np.int64)
                total = np.add.reduceat(np.where(finite, values, 0.0).astype(np.float64), starts)
                mean[some] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return mean


def offsets_of(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Where rows of these lengths start, and the end of the last; of many rows not to be written to."""
    lengths = np.asarray(lengths)
    if len(lengths) <= ROWS_AT_ONCE:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    out, end = SpillingArray(np.int64), 0
    out.extend([0])
    for at in range(0, len(lengths), ROWS_AT_ONCE):
        ends = np.cumsum(lengths[at : at + ROWS_AT_ONCE], dtype=np.int64) + end
        out.extend(ends)
        end = int(ends[-1])
    return out.array()


def spans(offsets: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Slices of the rows between these offsets, each of at most ``AT_ONCE`` values and rows, or of one row."""
    start, stop = 0, len(offsets) - 1
    while start < stop:
        end = int(np.searchsorted(offsets, offsets[start] + AT_ONCE, side="right")) - 1
        end = min(max(end, start + 1), start + AT_ONCE, stop)
        yield slice(start, end)
        start = end
