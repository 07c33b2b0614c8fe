"""What a selection by informative tokens is made of (T-SHIRT, arXiv:2506.01317, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.core.arrays.quantile import quantiles
from instdiff.core.arrays.ragged import Ragged

ALL = slice(None)


def least_size(draws: Callable[[], Iterable[Ragged]], k: float) -> float:
    """The size that the top ``k`` percent of all tokens reach; ``draws`` begins anew to yield columns per token."""
    sizes = lambda: (np.abs(np.asarray(column.values, np.float32)) for column in draws())  # noqa: E731
    return float(quantiles(sizes, 1 - k / 100).values[0])


def reaches(size: npt.NDArray[Any], least: float, *, strict: bool) -> npt.NDArray[np.bool_]:
    """Which sizes are at ``least`` or above, or where ``strict`` above it."""
    return size > least if strict else size >= least


def selective(column: Ragged, least: float, *, strict: bool) -> tuple[Floats, npt.NDArray[np.int64]]:
    """S-IFD of each row of a column (NLL with the prompt minus without, per token), and of how many tokens it is.

    It is exp of the mean over the tokens whose size reaches ``least``, or lies above it where ``strict``; 1 where none
    does.
    """
    chosen = column.map(lambda values: np.where(reaches(np.abs(values), least, strict=strict), values, np.nan))
    count = chosen.count()
    with np.errstate(over="ignore"):
        return np.exp(chosen.sum() / np.maximum(count, 1)), count


def share_of(column: Ragged, least: float, *, strict: bool) -> Floats:
    """Of each row the share of its tokens that ``selective`` takes; NaN where it has none."""
    size = column.count()
    return np.where(size > 0, selective(column, least, strict=strict)[1] / np.maximum(size, 1), np.nan)


class Running:
    """Mean and population standard deviation per row, of draws seen one at a time, not all of them by all rows."""

    def __init__(self, rows: int) -> None:
        self.number, self.mean, self._squares = np.zeros(rows), np.zeros(rows), np.zeros(rows)

    def add(self, value: Floats, at: npt.NDArray[np.int64] | slice = ALL) -> None:
        """Take in a draw of the rows ``at``."""
        self.number[at] += 1
        with np.errstate(invalid="ignore", over="ignore"):
            step = value - self.mean[at]
            self.mean[at] += step / self.number[at]
            self._squares[at] += step * (value - self.mean[at])

    @property
    def std(self) -> Floats:
        """Of what was seen so far."""
        return np.asarray(np.sqrt(self._squares / np.maximum(self.number, 1)))
