"""Content ids of rows, as bytes side by side: a list of text would take three times the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.spill import SpillingArray

AT_ONCE = 4096


class Ids(Sequence[str]):
    """A read-only sequence of text. Of many rows it lies in a mapped file.

    ``column`` [n] are the ids as UTF-8, which sorts as the text does. No id ends in a zero byte.
    """

    def __init__(self, column: npt.NDArray[np.bytes_]) -> None:
        self.column = column

    @classmethod
    def of(cls, names: Iterable[str]) -> Ids:
        """Ids from text, taken as they are where they are ids already."""
        if isinstance(names, Ids):
            return names
        left = iter(names)
        parts = iter(lambda: [name.encode() for name in islice(left, AT_ONCE)], [])
        return cls.concat([np.array(part, np.bytes_) for part in parts])

    @classmethod
    def concat(cls, parts: Sequence[npt.NDArray[np.bytes_]]) -> Ids:
        """Columns one after the other."""
        out = SpillingArray(np.dtype(("S", max([1, *(part.dtype.itemsize for part in parts)]))))
        for part in parts:
            out.extend(part)
        return cls(out.array())

    def take(self, rows: npt.NDArray[np.int64]) -> Ids:
        """Those of the rows named, in that order."""
        return Ids(self.column[rows])

    def order(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows named, by id."""
        return rows[np.argsort(self.column[rows], kind="stable")]

    def occurrence(self) -> npt.NDArray[np.int64]:
        """How many earlier rows have the same id."""
        order = np.argsort(self.column, kind="stable")
        first = np.ones(len(order), bool)
        for at in range(1, len(order), AT_ONCE):
            end = min(at + AT_ONCE, len(order))
            first[at:end] = self.column[order[at:end]] != self.column[order[at - 1 : end - 1]]
        place = np.arange(len(order))
        out = np.empty(len(order), np.int64)
        out[order] = place - np.maximum.accumulate(np.where(first, place, 0))
        return out

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Ids: ...
    def __getitem__(self, at: int | slice) -> str | Ids:
        return Ids(self.column[at]) if isinstance(at, slice) else self.column[at].decode()

    def __iter__(self) -> Iterator[str]:
        parts = (self.column[at : at + AT_ONCE].tolist() for at in range(0, len(self), AT_ONCE))
        return map(bytes.decode, chain.from_iterable(parts))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return np.array_equal(self.column, other.column)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """As text, four bytes for each character."""
        return np.char.decode(self.column).astype(dtype or np.str_)

    def __repr__(self) -> str:
        return f"Ids({len(self)} ids)"
