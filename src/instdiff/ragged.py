"""A column of rows of unequal length: one value per token, one offset per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
        if np.any(np.diff(self.offsets) < 0):
            raise ValueError("offsets must not fall")

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: npt.DTypeLike) -> Ragged:
        """Collect a sequence per row."""
        parts = [np.asarray(row, dtype) for row in rows]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Values per row."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """The rows named, in that order, possibly more than once."""
        return Ragged.of((self[int(row)] for row in rows), self.values.dtype)

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
        finite = np.isfinite(self.values)
        # reduceat reads one value for an empty row, so it sees only the rows that have any; unlike a running
        # sum, its result for a row does not depend on the rows before it.
        total = np.zeros(len(self))
        some = self.lengths() > 0
        if some.any():
            values = np.where(finite, self.values, 0.0).astype(np.float64)
            total[some] = np.add.reduceat(values, self.offsets[:-1][some])
        return total

    def count(self) -> npt.NDArray[np.int64]:
        """Finite values per row."""
        before = np.concatenate([[0], np.cumsum(np.isfinite(self.values))])
        return np.asarray(before[self.offsets[1:]] - before[self.offsets[:-1]], np.int64)

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of the finite values of each row, in float64; NaN where there is none."""
        count = self.count()
        return np.where(count > 0, self.sum() / np.maximum(count, 1), np.nan)
