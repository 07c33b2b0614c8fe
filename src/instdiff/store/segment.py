"""A sorted, memory-mapped piece of a column: keys as two integers, values end to end.

Keys are 16 bytes; their halves, read big-endian, sort like the bytes. Nothing is read into memory but the pages that a
look-up touches, so a column may be larger than memory. A row costs 24 bytes and its values four each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged, spans
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.files import building
from instdiff.store.keys import KEYS_AT_ONCE, Halves, Keys, halves

Indices = npt.NDArray[np.int64]

ROWS_AT_ONCE, VALUES_AT_ONCE = 1 << 14, 1 << 16
"""What is merged or copied at once: all that a store needs in memory beside its results."""

FILES = {"high": np.uint64, "low": np.uint64, "offsets": np.int64, "values": np.float32}
SOURCES = "sources.json"


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
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in FILES))

    @classmethod
    def of(cls, keys: Keys, values: Ragged) -> Segment:
        """Sort keys and values in memory."""
        high, low = halves(keys)
        order = np.lexsort((low, high))
        taken = gather(values.values.astype(np.float32, copy=False), values.offsets, order)
        return cls(high[order], low[order], taken.offsets, taken.values)

    def __len__(self) -> int:
        return len(self.high)

    def find(self, wanted: Halves) -> Indices:
        """Row of each key, -1 where it is not here; sorted keys are found many times faster."""
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

    def lengths(self, rows: Indices) -> Indices:
        """Values in each of these rows."""
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows], np.int64)


def gather(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], rows: Indices) -> Ragged:
    """The rows named, in that order."""
    starts = np.asarray(offsets[rows], np.int64)
    ends = np.concatenate([[0], np.cumsum(offsets[rows + 1] - starts)]).astype(np.int64)
    return Ragged(np.asarray(values[_positions(starts, ends)]), ends)


def _positions(starts: Indices, ends: Indices) -> Indices:
    """Where the values of rows stand that begin at ``starts`` and are as long as ``ends`` says."""
    return np.asarray(np.repeat(starts - ends[:-1], np.diff(ends)) + np.arange(ends[-1]), np.int64)


# ── looking up in several segments ────────────────────────────────────────────────────────────────────────────────────


def _starts(segments: Sequence[Segment]) -> Indices:
    return np.concatenate([[0], np.cumsum([len(segment) for segment in segments])]).astype(np.int64)


def locate(segments: Sequence[Segment], keys: Keys) -> Indices:
    """The row of each key, counted through all segments; -1 where none has it, the first where several have."""
    starts = _starts(segments)
    out = SpillingArray(np.int64)
    for begin in range(0, len(keys), KEYS_AT_ONCE):
        high, low = halves(keys[begin : begin + KEYS_AT_ONCE])
        here = np.full(len(high), -1, np.int64)
        order = np.argsort(high)  # neighbours look at the same pages
        high, low = high[order], low[order]
        for start, segment in zip(starts, segments, strict=False):
            found = segment.find((high, low))
            hit = found >= 0
            here[order[hit]] = found[hit] + start
            order, high, low = order[~hit], high[~hit], low[~hit]
        out.extend(here)
    return out.array()


def lengths(segments: Sequence[Segment], rows: Indices) -> Indices:
    """Values in each of these rows, as ``locate`` counts them; none where there is no row."""
    starts = _starts(segments)
    out = SpillingArray(np.int64)
    for begin in range(0, len(rows), KEYS_AT_ONCE):
        some = rows[begin : begin + KEYS_AT_ONCE]
        here = np.zeros(len(some), np.int64)
        for start, stop, segment in zip(starts, starts[1:], segments, strict=False):
            mine = np.flatnonzero((some >= start) & (some < stop))
            here[mine] = segment.lengths(some[mine] - start)
        out.extend(here)
    return out.array()


def fill(out: npt.NDArray[np.float32], ends: Indices, segments: Sequence[Segment], rows: Indices) -> None:
    """Put rows, as ``locate`` counts them, into ``out``: row i ends at ``ends[i + 1]``."""
    starts = _starts(segments)
    for piece in spans(ends):
        some = rows[piece]
        order = np.argsort(some)  # a file is read forwards
        bounds = np.searchsorted(some[order], starts)
        for start, here, there, segment in zip(starts, bounds, bounds[1:], segments, strict=False):
            mine = order[here:there]
            taken = gather(segment.values, segment.offsets, some[mine] - start)
            out[_positions(ends[piece][mine], taken.offsets)] = taken.values


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Growing:
    """A one-dimensional .npy file that is written end to end; its length is known when it is closed."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._start = self._header()

    def _header(self) -> int:
        # numpy leaves room in a header for the length to grow
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, about)
        return self._file.tell()

    def add(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        with self._file:
            self._file.seek(0)
            assert self._header() == self._start


def merge(segments: Sequence[Segment], folder: Path, names: Sequence[str] = ()) -> int:
    """Write one segment that holds all keys of several; of equal keys the first segment's value stays.

    All are read and the result is written forwards, a range of keys at a time: memory holds one such range, whatever
    the size. The folder appears when it is whole and names its sources, which may go from then on.

    Returns:
        Rows written.
    """
    with building(folder) as aside:
        files = {name: _Growing(aside / f"{name}.npy", dtype) for name, dtype in FILES.items()}
        files["offsets"].add(np.zeros(1, np.int64))
        for ranges in _ranges(segments):
            piece = _merge(segments, ranges)
            for name in ("high", "low", "values"):
                files[name].add(getattr(piece, name))
            files["offsets"].add(piece.offsets[1:] + (files["values"].length - len(piece.values)))
        for file in files.values():
            file.close()
        (aside / SOURCES).write_text(json.dumps(list(names)), encoding="utf-8")
    return files["high"].length


def _ranges(segments: Sequence[Segment]) -> Iterator[list[slice]]:
    """The same range of keys in each segment, range after range."""
    rows, values = sum(len(s) for s in segments), sum(len(s.values) for s in segments)
    step = max(1, min(ROWS_AT_ONCE, VALUES_AT_ONCE * rows // max(values, 1)) // len(segments))
    at = [0] * len(segments)
    while any(start < len(s) for start, s in zip(at, segments, strict=True)):
        last = [s.high[start + step - 1] for start, s in zip(at, segments, strict=True) if start + step <= len(s)]
        stops = [len(s) for s in segments]
        if last:  # keys that share their first half stay together
            tails = [s.high[start:] for start, s in zip(at, segments, strict=True)]
            stops = [a + int(np.searchsorted(tail, min(last), "right")) for a, tail in zip(at, tails, strict=True)]
        yield [slice(*pair) for pair in zip(at, stops, strict=True)]
        at = stops


def _merge(segments: Sequence[Segment], ranges: Sequence[slice]) -> Segment:
    pairs = [(s, here) for s, here in zip(segments, ranges, strict=True) if here.start < here.stop]
    high, low = (np.concatenate([getattr(s, name)[here] for s, here in pairs]) for name in ("high", "low"))
    ends = [s.offsets[here.start : here.stop + 1] for s, here in pairs]
    values = np.concatenate([s.values[e[0] : e[-1]] for (s, _), e in zip(pairs, ends, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(e) for e in ends]))]).astype(np.int64)
    order = _sort_runs(high, low)
    high, low = high[order], low[order]
    new = np.ones(len(order), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    taken = gather(values, offsets, order[new])
    return Segment(high[new], low[new], taken.offsets, taken.values)


def _sort_runs(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> Indices:
    """The order of keys that come in sorted runs; equal ones stay as they stood."""
    order = np.argsort(high, kind="stable")  # merges the runs, several times as fast as sorting by both
    first, second = high[order], low[order]
    if np.any((first[1:] == first[:-1]) & (second[1:] < second[:-1])):
        return np.lexsort((low, high))
    return order
