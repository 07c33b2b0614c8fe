"""The files of one column: small parts as they come, and the sorted segments that they are merged into.

Pieces of like size are merged, so that a value is written again about as often as the logarithm of the column's rows to
base ``FANOUT``, and the pieces stay few. A merged segment names its sources: one that is still there after a kill is
redundant, harmless to readers, and removed by the next merge.

A segment is memory-mapped. Keys are 16 bytes, whose halves, read big-endian, sort like the bytes. Nothing is read into
memory but the pages that a look-up touches, so a column may be larger than memory. A row costs 24 bytes and its values
four each.

Every file has a sum, which is checked when it is opened. A damaged piece is set aside under another name, and its rows
count as missing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock, Timeout

from instdiff.core import Log
from instdiff.core.arrays.ragged import Ragged, spans
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.files import ASIDE, building, fingerprint, lock_folder, set_aside, sync, sync_entries, writing
from instdiff.core.sums import NPY_TAIL, check_npy, npy_tail
from instdiff.errors import StoreError
from instdiff.store.keys import KEYS_AT_ONCE, Halves, Keys, halves
from instdiff.store.parquet import reading_parquet, writing_parquet

MANY_PARTS = 16
"""Parts from which on they are merged."""
FANOUT_BITS = 3
FANOUT = 1 << FANOUT_BITS
"""Segments of like size from which on they are merged; like are those in one tier of rows, ``FANOUT`` times wide."""
PARTS_AT_ONCE = 512
FRESH_PARTS = 128
"""Parts of this process's own that are not read again to be merged."""
SETTLED_NS = 100_000_000
"""Age from which on a folder's time of change tells: clocks of file systems tick in milliseconds."""
ABANDONED_S = 3600.0
SYNC_EVERY_S = 1.0
"""Parts are put onto the disk together, so often; what a power cut takes of them is computed again."""
"""Ends the name of what was set aside."""


TRIES = 100
"""Listings of a folder in which others merge, about ten seconds in all."""


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
    def open(cls, folder: Path, *, check: bool = True) -> Segment:
        """Map the segment in a folder; a ValueError where it was changed, for which ``check`` reads all of it."""
        found = cls(*(_map(folder / f"{name}.npy", np.dtype(dtype), check) for name, dtype in FILES.items()))
        if not len(found.high) == len(found.low) == len(found.offsets) - 1:
            raise ValueError("its files are of different lengths")
        if check and (found.offsets[0] != 0 or found.offsets[-1] != len(found.values)):
            raise ValueError("its rows do not end with its values")
        return found

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


def _npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    # numpy leaves room in a header for the length to grow
    about, out = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}, io.BytesIO()
    np.lib.format.write_array_header_1_0(out, about)
    return out.getvalue()


def _map(path: Path, dtype: np.dtype[Any], check: bool) -> npt.NDArray[Any]:
    size, start = path.stat().st_size, len(_npy_header(dtype, 0))
    tail = NPY_TAIL if (size - start) % dtype.itemsize else 0  # an earlier version wrote no sums
    length, rest = divmod(size - start - tail, dtype.itemsize)
    with open(path, "rb") as file:
        header = file.read(start)
    # numpy's own reader of headers runs into errors of many kinds where one is damaged
    if rest or length < 0 or header != _npy_header(dtype, length):
        raise ValueError(f"'{path.name}' is cut, or its header was changed")
    if tail and check:
        check_npy(path, start)
    return np.asarray(np.memmap(path, dtype, "r", start, (length,)).view(np.ndarray))


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


class _NpyFile:
    """A one-dimensional .npy file that is written end to end; its length is known when it is closed."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.dtype, self.length, self._sum = np.dtype(dtype), 0, 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._start = self._file.write(_npy_header(self.dtype, 0))

    def add(self, values: npt.NDArray[Any]) -> None:
        block = np.ascontiguousarray(values, self.dtype)
        self._file.write(block.data)
        self._sum = zlib.crc32(block.data, self._sum)
        self.length += len(block)

    def close(self) -> None:
        header = _npy_header(self.dtype, self.length)
        assert len(header) == self._start
        with self._file:
            self._file.write(npy_tail(self._sum, header))
            self._file.seek(0)
            self._file.write(header)


def merge(segments: Sequence[Segment], folder: Path, sources: Sequence[str] = ()) -> int:
    """Write one segment of all keys of several, and return its rows; of equal keys the first segment's value stays.

    All are read and the result is written forwards, a range of keys at a time: memory holds one such range, whatever
    the size. The folder appears when it is whole and names its sources, which may go from then on.
    """
    with building(folder) as aside:
        files = {name: _NpyFile(aside / f"{name}.npy", dtype) for name, dtype in FILES.items()}
        files["offsets"].add(np.zeros(1, np.int64))
        for ranges in _ranges(segments):
            piece = _merge(segments, ranges)
            for name in ("high", "low", "values"):
                files[name].add(getattr(piece, name))
            files["offsets"].add(piece.offsets[1:] + (files["values"].length - len(piece.values)))
        for file in files.values():
            file.close()
        (aside / SOURCES).write_text(json.dumps(list(sources)), encoding="utf-8")
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


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────────────


class ColumnFolder:
    """A column's folder, with what is open of it. Nothing drops the folder while this object uses it.

    ``log`` is told of what is damaged.
    """

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self.log = folder, log
        self._unsynced: list[Path] = []
        self._synced = -SYNC_EVERY_S
        self._lost: set[str] = set()
        """Damaged pieces that could not be set aside."""
        self._open: dict[str, Segment] = {}
        self._current: list[Segment] = []
        self._seen: tuple[int, int] | None = None
        self._held: tuple[int, weakref.finalize[[int], ColumnFolder]] | None = None

    def segments(self) -> list[Segment]:
        """All pieces, the largest first; what others wrote or merged meanwhile is noticed."""
        self.hold()
        stamp = _stamp(self.folder)
        if stamp is None or stamp != self._seen:
            opened = self._open_segments()
            self._open, self._current = opened, sorted(opened.values(), key=len, reverse=True)
            self._seen = stamp if stamp is not None and time.time_ns() - stamp[1] > SETTLED_NS else None
        return self._current

    def _open_segments(self) -> dict[str, Segment]:
        for attempt in range(TRIES):
            try:
                return self._load_all(names(self.folder))
            except FileNotFoundError:
                time.sleep(min(0.001 * attempt, 0.1))
        raise StoreError(f"'{self.folder}' keeps changing while it is read; run again when other processes are done")

    def _load_all(self, some: Sequence[str]) -> dict[str, Segment]:
        """The pieces of these names; those that are damaged are set aside."""
        found = {}
        for name in some:
            try:
                if name not in self._lost:
                    found[name] = self._load(name)
            except DamagedPiece as error:
                self.log(f"warning: {error}; {set_aside(self.folder / name)}, and its rows are computed again")
                if (self.folder / name).exists():
                    self._lost.add(name)
        return found

    def _load(self, name: str) -> Segment:
        if name in self._open:
            return self._open[name]
        return read_piece(self.folder / name)

    def add(self, keys: Keys, values: Ragged) -> None:
        """Write a part; it is named by its keys, so that writing it twice changes nothing."""
        raw = keys.astype("S16").tobytes()
        name = f"{hashlib.blake2b(raw, digest_size=12).hexdigest()}.parquet"
        table = pa.table(
            {
                "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(raw)]),
                "value": pa.LargeListArray.from_arrays(
                    pa.array(values.offsets, pa.int64()), pa.array(values.values.astype(np.float32))
                ),
            }
        ).replace_schema_metadata({VALUES: str(len(values.values))})
        with (
            writing(self.folder / name, lasting=False) as aside,
            writing_parquet(aside, table.schema, compression="zstd", use_dictionary=False) as file,
        ):
            file.write_table(table)
        self._unsynced.append(self.folder / name)
        if time.monotonic() - self._synced >= SYNC_EVERY_S:
            self.sync()
        self._seen = None
        if len(self._open) < FRESH_PARTS:
            self._open[name] = Segment.of(keys, values)

    def sync(self) -> None:
        """Put the parts that this object wrote onto the disk."""
        for path in self._unsynced:
            with suppress(FileNotFoundError):  # merged by another process
                sync(path)
        if self._unsynced:
            sync_entries(self.folder)
        self._unsynced, self._synced = [], time.monotonic()

    def compact(self, least: int) -> None:
        """Merge what there is much of, unless another process does."""
        if self.hold():
            with alone(self.folder / ".lock") as mine:
                if mine:
                    self._compact(least)
        self.sync()

    def _compact(self, least: int) -> None:
        _tidy(self.folder, self.log)
        parts = [name for name in names(self.folder) if not _is_segment(name)]
        if len(parts) >= least:
            for start in range(0, len(parts), PARTS_AT_ONCE):
                self._merge(parts[start : start + PARTS_AT_ONCE])
        while many := self._many():
            self._merge(many)
        self._seen = None

    def _many(self) -> list[str]:
        """The segments of the highest tier that is full and of those below it."""
        tiers: dict[int, list[str]] = {}
        for name, segment in self._load_all([name for name in names(self.folder) if _is_segment(name)]).items():
            self._open[name] = segment
            tiers.setdefault(len(segment).bit_length() // FANOUT_BITS, []).append(name)
        full = max((tier for tier, found in tiers.items() if len(found) >= FANOUT), default=-1)
        return [name for tier, found in sorted(tiers.items(), reverse=True) if tier <= full for name in found]

    def _merge(self, sources: list[str]) -> None:
        found = self._load_all(sources)
        if not found:
            return
        merge(list(found.values()), self.folder / f"seg-{fingerprint(list(found))}", list(found))
        for name in found:
            self._open.pop(name, None)
            _remove(self.folder / name)

    def hold(self) -> bool:
        """Keep the folder from being dropped from now on; False where there is none."""
        at = _stamp(self.folder)
        if self._held is not None:
            if at is not None and at[0] == self._held[0]:
                return True
            self.release()
        if at is None:
            return False
        handle = lock_folder(self.folder, exclusive=False)
        if handle is None:
            return self.folder.is_dir()
        self._held = os.fstat(handle).st_ino, weakref.finalize(self, os.close, handle)
        return True

    def release(self) -> None:
        """Let others drop the folder, and forget what was open."""
        if self._held is not None:
            self._held[1]()
        self._held, self._seen, self._open, self._current = None, None, {}, []


def names(folder: Path) -> list[str]:
    """The pieces that there are.

    A folder may change while it is listed, so that a merged segment is not shown yet and its sources no more; a listing
    that shows all of the one before is right.
    """
    found = _list(folder)
    while not found <= (again := _list(folder)):
        found = again
    return sorted(again)


def _list(folder: Path) -> set[str]:
    try:
        there = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {name for name in there if name[0] != "." and (_is_segment(name) or name.endswith(".parquet"))}


def _is_segment(name: str) -> bool:
    return name.startswith("seg-") and not name.endswith(ASIDE)


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _tidy(folder: Path, log: Log) -> None:
    """Remove what a kill left: sources of a merged segment, half-built segments, half-written parts."""
    there = set(names(folder))
    for name in filter(_is_segment, sorted(there)):
        try:
            sources = read_sources(folder / name)
        except DamagedPiece as error:
            log(f"warning: {error}; {set_aside(folder / name / SOURCES)}")
            continue
        for source in there.intersection(sources):
            _remove(folder / source)
    now = _now(folder)
    for path in folder.glob(".*.partial"):
        # A segment is built under the lock that is held here; a part may be on its way.
        with suppress(FileNotFoundError):
            if path.is_dir() or now - path.stat().st_mtime > ABANDONED_S:
                _remove(path)


def _now(folder: Path) -> float:
    """By the clock that dates the folder's files: a shared one's is not this machine's."""
    lock = folder / ".lock"
    try:
        os.utime(lock)
        return lock.stat().st_mtime
    except OSError:
        return time.time()


# ── one piece ─────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = b"values"


class DamagedPiece(StoreError):
    """A file of the store does not hold what was written into it."""


@contextmanager
def _guarded(path: Path, what: str) -> Iterator[None]:
    """What a damaged file brings about becomes a DamagedPiece; one that cannot be read is a StoreError."""
    try:
        yield
    except FileNotFoundError:
        if not path.is_dir() or path.stat().st_mtime >= time.time() - ABANDONED_S:
            raise  # it is being removed
        raise DamagedPiece(f"store {what} '{path}' lacks a file") from None
    except MemoryError:
        raise StoreError(f"store {what} '{path}' does not fit into memory; free some, then run it again") from None
    except (OSError, ValueError, EOFError, LookupError, TypeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
            raise StoreError(
                f"store {what} '{path}' cannot be read: {error.strerror}; give yourself the right"
            ) from None
        raise DamagedPiece(f"store {what} '{path}' is damaged ({error})") from error


def _open_segment(path: Path) -> Segment:
    with _guarded(path, "segment"):
        return Segment.open(path)


def _read_part(path: Path) -> Segment:
    with _guarded(path, "part"):
        with reading_parquet(io.BytesIO(path.read_bytes())) as file:
            table = file.read(columns=["key", "value"], use_threads=False)
        keys, values = table["key"].combine_chunks(), table["value"].combine_chunks()
        raw = np.frombuffer(keys.buffers()[1], "S16", count=len(keys), offset=keys.offset * 16)
        offsets = values.offsets.to_numpy().astype(np.int64)
        return Segment.of(raw, Ragged(values.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]))


def read_piece(path: Path) -> Segment:
    """A part or a segment, of which every byte was read; a DamagedPiece where it is not what was written."""
    return _open_segment(path) if path.is_dir() else _read_part(path)


def count_rows(path: Path) -> tuple[int, int]:
    """Rows and values of a piece; only its header is read."""
    if path.is_dir():
        with _guarded(path, "segment"):
            segment = Segment.open(path, check=False)
        return len(segment), len(segment.values)
    with _guarded(path, "part"), reading_parquet(path, whole=False) as file:
        found = file.metadata
        if VALUES in (found.metadata or {}):
            return found.num_rows, int(found.metadata[VALUES])
        # A part of an earlier version; an empty row counts as one value.
        return found.num_rows, sum(found.row_group(n).column(1).num_values for n in range(found.num_row_groups))


def read_sources(segment: Path) -> list[str]:
    """The pieces that a segment was merged from."""
    if not (segment / SOURCES).is_file():
        return []
    with _guarded(segment / SOURCES, "index"):
        found: list[str] = json.loads((segment / SOURCES).read_bytes())
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("it is no list of names")
        return found


# ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether this process alone may do what a lock file stands for, such as merging, now; never waits."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):  # another one does, or this one may not
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def hold_unused(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a column or a model, and nobody can begin to in this block."""
    try:
        handle = lock_folder(folder, exclusive=True)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if handle is not None:
            os.close(handle)
