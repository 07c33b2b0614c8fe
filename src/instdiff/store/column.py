"""The files of one column: small parts as they come, and the sorted segments that they are merged into.

Pieces of like size are merged, so that a value is written again about as often as the logarithm of the column's rows to
base ``FANOUT``, and the pieces stay few. A merged segment names its sources: one that is still there after a kill is
redundant, harmless to readers, and removed by the next merge.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from instdiff.core.arrays.ragged import Ragged
from instdiff.core.files import fingerprint, writing
from instdiff.errors import StoreError
from instdiff.store.keys import Keys
from instdiff.store.segment import SOURCES, Segment, merge

if sys.platform != "win32":
    import fcntl

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


TRIES = 100
"""Listings of a folder in which others merge, about ten seconds in all."""


class ColumnFolder:
    """A column's folder, with what is open of it. Nothing drops the folder while this object uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
            settled = stamp is not None and time.time_ns() - stamp[1] > SETTLED_NS
            self._seen = stamp if settled else None
        return self._current

    def _open_segments(self) -> dict[str, Segment]:
        for attempt in range(TRIES):
            try:
                return {name: self._load(name) for name in names(self.folder)}
            except FileNotFoundError:
                time.sleep(min(0.001 * attempt, 0.1))
        raise StoreError(f"'{self.folder}' keeps changing while it is read; run again when other processes are done")

    def _load(self, name: str) -> Segment:
        if name in self._open:
            return self._open[name]
        path = self.folder / name
        return _open_segment(path) if path.is_dir() else _read_part(path)

    def add(self, keys: Keys, values: Ragged) -> None:
        """Write a part; it is named by its keys, so that writing it twice changes nothing.

        Raises:
            StoreError: the folder cannot be written.
        """
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
        with writing(self.folder / name) as aside:
            pq.write_table(table, aside, compression="zstd", use_dictionary=False)
        self._seen = None
        if len(self._open) < FRESH_PARTS:
            self._open[name] = Segment.of(keys, values)

    def compact(self, least: int) -> None:
        """Merge what there is much of, unless another process does.

        Raises:
            StoreError: the folder cannot be written, or a piece of it cannot be read.
        """
        if not self.hold():
            return
        with merging(self.folder) as mine:
            if not mine:
                return
            _tidy(self.folder)
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
        for name in filter(_is_segment, names(self.folder)):
            self._open[name] = segment = self._load(name)
            tiers.setdefault(len(segment).bit_length() // FANOUT_BITS, []).append(name)
        full = max((tier for tier, found in tiers.items() if len(found) >= FANOUT), default=-1)
        return [name for tier, found in sorted(tiers.items(), reverse=True) if tier <= full for name in found]

    def _merge(self, sources: list[str]) -> None:
        merge([self._load(name) for name in sources], self.folder / f"seg-{fingerprint(sources)}", sources)
        for name in sources:
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
        handle = _lock(self.folder, exclusive=False)
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
    return name.startswith("seg-")


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


def _tidy(folder: Path) -> None:
    """Remove what a kill left: sources of a merged segment, half-built segments, half-written parts."""
    there = set(names(folder))
    for name in filter(_is_segment, sorted(there)):
        path = folder / name / SOURCES
        for source in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []:
            if source in there:
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


def _open_segment(path: Path) -> Segment:
    try:
        return Segment.open(path)
    except FileNotFoundError:
        if path.is_dir() and path.stat().st_mtime < time.time() - ABANDONED_S:
            raise StoreError(f"store segment '{path}' lacks a file; delete it and run again") from None
        raise
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"store segment '{path}' cannot be read ({error}); delete it and run again") from error


def _read_part(path: Path) -> Segment:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=["key", "value"], use_threads=False)
        keys, values = table["key"].combine_chunks(), table["value"].combine_chunks()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged_error(path, error) from error
    raw = np.frombuffer(keys.buffers()[1], "S16", count=len(keys), offset=keys.offset * 16)
    offsets = values.offsets.to_numpy().astype(np.int64)
    return Segment.of(raw, Ragged(values.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]))


def _damaged_error(path: Path, error: Exception) -> StoreError:
    return StoreError(f"store part '{path}' cannot be read ({error}); delete it and run again")


def count_rows(path: Path) -> tuple[int, int]:
    """Rows and values of a piece; only its header is read."""
    if path.is_dir():
        segment = _open_segment(path)
        return len(segment), len(segment.values)
    try:
        found = pq.read_metadata(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(path, error) from error
    if VALUES in (found.metadata or {}):
        return found.num_rows, int(found.metadata[VALUES])
    # A part of an earlier version; an empty row counts as one value.
    return found.num_rows, sum(found.row_group(n).column(1).num_values for n in range(found.num_row_groups))


# ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def merging(folder: Path) -> Iterator[bool]:
    """Whether this process alone may merge in a folder now; never waits."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(folder: Path, *, exclusive: bool) -> int | None:
    """A handle that holds a lock on a folder, or None where there is no folder or nothing that can be locked.

    Raises:
        BlockingIOError: others hold it, and it is wanted exclusively.
    """
    if sys.platform == "win32":
        return None
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            os.close(handle)
            return None
        at = _stamp(folder)
        if at is not None and at[0] == os.fstat(handle).st_ino:
            return handle
        os.close(handle)  # dropped meanwhile, and perhaps made anew


@contextmanager
def hold_unused(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a column, and nobody can begin to in this block."""
    try:
        handle = _lock(folder, exclusive=True)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if handle is not None:
            os.close(handle)
