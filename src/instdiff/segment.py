"""A sorted, memory-mapped piece of a column: keys as two integers, values end to end.

Keys are 16 bytes; their halves, read big-endian, sort like the bytes. Nothing is read into memory but the pages that a
look-up touches, so a column may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.artifact import building
from instdiff.ragged import Ragged

Keys = npt.NDArray[np.bytes_]
"""Sixteen bytes each."""
Halves = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]
Places = npt.NDArray[np.int64]

ROWS_AT_ONCE = 1 << 16
FILES = ("high", "low", "offsets", "values")


def halves(keys: Keys) -> Halves:
    """Keys as pairs of integers in the order of their bytes."""
    pairs = np.frombuffer(keys.astype("S16").tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


@dataclass(frozen=True)
class Segment:
    """Sorted keys with a row of values each; the arrays may be memory-mapped."""

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path) -> Segment:
        """Map the segment in a folder."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES))

    @classmethod
    def of(cls, keys: Keys, values: Ragged) -> Segment:
        """Sort keys and values in memory."""
        high, low = halves(keys)
        order = np.lexsort((low, high))
        taken = gather(values.values.astype(np.float32, copy=False), values.offsets, order)
        return cls(high[order], low[order], taken.offsets, taken.values)

    def __len__(self) -> int:
        return len(self.high)

    def find(self, wanted: Halves) -> Places:
        """Row of each key, -1 where it is not here."""
        high, low = wanted
        if len(self) == 0:
            return np.full(len(high), -1, np.int64)
        place = np.searchsorted(self.high, high)
        out = np.full(len(high), -1, np.int64)
        open_ = np.arange(len(high))
        while len(open_):
            # Keys that share their first half stand side by side; there is hardly ever more than one.
            open_ = open_[place[open_] < len(self)]
            open_ = open_[self.high[place[open_]] == high[open_]]
            hit = self.low[place[open_]] == low[open_]
            out[open_[hit]] = place[open_[hit]]
            open_ = open_[~hit]
            place[open_] += 1
        return out

    def lengths(self, rows: Places) -> Places:
        """Values in each of these rows."""
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows], np.int64)


def gather(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], rows: Places) -> Ragged:
    """The rows named, in that order."""
    lengths = np.asarray(offsets[rows + 1] - offsets[rows], np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.repeat(np.asarray(offsets[rows], np.int64) - ends[:-1], lengths) + np.arange(ends[-1])
    return Ragged(np.asarray(values[at]), ends)


def chunks(count: int) -> Iterator[slice]:
    """Slices that keep what is gathered at once small."""
    for start in range(0, count, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, count))


def merge(segments: Sequence[Segment], folder: Path) -> None:
    """Write one segment that holds all keys of several; of equal keys the first segment's value stays.

    Memory holds the keys and a chunk of values. The folder appears when it is whole.
    """
    high = np.concatenate([s.high for s in segments])
    low = np.concatenate([s.low for s in segments])
    part = np.repeat(np.arange(len(segments)), [len(s) for s in segments])
    row = np.concatenate([np.arange(len(s)) for s in segments])
    order = np.lexsort((part, low, high))
    new = np.ones(len(order), bool)
    new[1:] = (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]])
    order = order[new]
    part, row = part[order], row[order]
    lengths = np.empty(len(order), np.int64)
    for number, segment in enumerate(segments):
        mine = part == number
        lengths[mine] = segment.lengths(row[mine])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with building(folder) as aside:
        np.save(aside / "high.npy", high[order])
        np.save(aside / "low.npy", low[order])
        np.save(aside / "offsets.npy", offsets)
        if offsets[-1] == 0:
            np.save(aside / "values.npy", np.zeros(0, np.float32))
            return
        out = np.lib.format.open_memmap(aside / "values.npy", "w+", np.float32, (int(offsets[-1]),))
        for piece in chunks(len(order)):
            fill(out[offsets[piece.start] : offsets[piece.stop]], segments, part[piece], row[piece])
        out.flush()
        del out


def fill(out: npt.NDArray[np.float32], segments: Sequence[Segment], part: Places, row: Places) -> None:
    """Put the rows named (segment and row in it; -1 for none) end to end into ``out``."""
    lengths = np.zeros(len(part), np.int64)
    for number, segment in enumerate(segments):
        mine = part == number
        lengths[mine] = segment.lengths(row[mine])
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for number, segment in enumerate(segments):
        mine = np.flatnonzero(part == number)
        taken = gather(segment.values, segment.offsets, row[mine])
        at = np.repeat(ends[mine] - taken.offsets[:-1], lengths[mine]) + np.arange(len(taken.values))
        out[at] = taken.values
