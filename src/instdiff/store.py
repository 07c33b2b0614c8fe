"""Keyed columns on disk: cache, resume and growth are one operation, ``missing``.

A column is what one measure reads off one model in one precision; a key is the hash of what the model saw. The view,
the template, the tokenizer and the data set are not named: whatever they change shows in the key.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from instdiff.artifact import fingerprint, read_json, unwritable, write_json, writing
from instdiff.core import Measure
from instdiff.errors import StoreError
from instdiff.ragged import Ragged
from instdiff.segment import Keys, Segment, chunks, fill, halves, merge

MANY_PARTS, MANY_SEGMENTS = 16, 8
"""Pieces of a column above which they are merged."""
IN_MEMORY_BYTES = 1 << 30
"""Values above this are read into a mapped file."""


def default_root() -> Path:
    """``INSTDIFF_STORE``, or the user's cache folder."""
    named = os.environ.get("INSTDIFF_STORE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "instdiff" / "store"


@dataclass(frozen=True)
class ColumnId:
    """What makes a column: weights, precision, measure."""

    model: str
    dtype: str
    measure: Measure

    @property
    def name(self) -> str:
        """The column's folder."""
        return fingerprint(self.model, self.dtype, repr(self.measure))


class Store:
    """Columns under one folder.

    New values come as small parts, named by their content; parts are merged into sorted, memory-mapped segments.
    Several processes may write the same store.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self._open: dict[Path, Segment] = {}

    @property
    def memo(self) -> Path:
        """Where hashes of model files are remembered."""
        return self.root / "models"

    def folder(self, column: ColumnId) -> Path:
        """Where a column is kept."""
        return self.root / "columns" / column.name

    def missing(self, column: ColumnId, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no value yet."""
        return _find(self._segments(self.folder(column)), keys)[0] < 0

    def append(self, column: ColumnId, keys: Keys, values: Ragged) -> None:
        """Add values; the part is whole or absent, and writing it twice changes nothing.

        Raises:
            StoreError: the store cannot be written.
        """
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys for {len(values)} values")
        if len(keys) == 0:
            return
        folder = self.folder(column)
        if not (folder / "column.json").is_file():
            facts = {"model": column.model, "dtype": column.dtype, "measure": repr(column.measure)}
            write_json(folder / "column.json", facts)
        raw = keys.astype("S16").tobytes()
        name = hashlib.blake2b(raw, digest_size=12).hexdigest()
        table = pa.table(
            {
                "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(raw)]),
                "value": pa.LargeListArray.from_arrays(
                    pa.array(values.offsets, pa.int64()), pa.array(values.values.astype(np.float32))
                ),
            }
        )
        with writing(folder / f"{name}.parquet") as aside:
            pq.write_table(table, aside, compression="zstd", use_dictionary=False)

    def read(self, column: ColumnId, keys: Keys) -> Ragged:
        """Values in the order of the keys; a key that is not there gives an empty row.

        Above a gigabyte the values are in a temporary file that is mapped into memory.
        """
        folder = self.folder(column)
        segments = self._segments(folder)
        part, row = _find(segments, keys)
        lengths = np.zeros(len(keys), np.int64)
        for number, segment in enumerate(segments):
            mine = part == number
            lengths[mine] = segment.lengths(row[mine])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = _room(int(offsets[-1]), self.root)
        for piece in chunks(len(keys)):
            fill(values[offsets[piece.start] : offsets[piece.stop]], segments, part[piece], row[piece])
        if (folder / "column.json").is_file():
            os.utime(folder / "column.json")  # when the column was last of use, for `gc`
        return Ragged(values, offsets)

    def compact(self, column: ColumnId, least: int = MANY_PARTS) -> None:
        """Merge a column's parts into a segment, and its segments where there are many, unless another process does.

        Raises:
            StoreError: the store cannot be written.
        """
        folder = self.folder(column)
        with _lock(folder) as mine:
            if not mine:
                return
            parts = sorted(folder.glob("[!.]*.parquet"))
            if len(parts) >= least:
                self._merge(folder, parts)
            segments = sorted(folder.glob("seg-*"))
            if len(segments) > MANY_SEGMENTS:
                self._merge(folder, segments)

    def _merge(self, folder: Path, sources: list[Path]) -> None:
        merge([self._load(path) for path in sources], folder / f"seg-{fingerprint([path.name for path in sources])}")
        for path in sources:
            self._open.pop(path, None)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _segments(self, folder: Path) -> list[Segment]:
        """All pieces of a column; what another process merged meanwhile is looked for again."""
        for _ in range(10):
            paths = [*sorted(folder.glob("seg-*")), *sorted(folder.glob("[!.]*.parquet"))]
            try:
                return [self._load(path) for path in paths]
            except FileNotFoundError:
                continue
        raise StoreError(f"'{folder}' keeps changing while it is read; run again when other processes are done")

    def _load(self, path: Path) -> Segment:
        if path not in self._open:
            self._open[path] = Segment.open(path) if path.is_dir() else _read_part(path)
        return self._open[path]


def _find(segments: list[Segment], keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each key the segment that has it, -1 where none does, and its row there."""
    part, row = np.full(len(keys), -1, np.int64), np.full(len(keys), -1, np.int64)
    high, low = halves(keys)
    for number, segment in enumerate(segments):
        open_ = np.flatnonzero(part < 0)
        found = segment.find((high[open_], low[open_]))
        part[open_[found >= 0]] = number
        row[open_] = found
    return part, row


def _read_part(path: Path) -> Segment:
    try:
        table = pq.read_table(path, columns=["key", "value"])
        keys, values = table["key"].combine_chunks(), table["value"].combine_chunks()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(f"store part '{path}' cannot be read ({error}); delete it and run again") from error
    raw = np.frombuffer(keys.buffers()[1], "S16", count=len(keys), offset=keys.offset * 16)
    offsets = values.offsets.to_numpy().astype(np.int64)
    return Segment.of(raw, Ragged(values.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]))


def _room(count: int, root: Path) -> npt.NDArray[np.float32]:
    if count * 4 <= IN_MEMORY_BYTES:
        return np.empty(count, np.float32)
    with tempfile.TemporaryFile(dir=root) as file:
        return np.memmap(file, np.float32, "w+", shape=(count,))


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether this process alone may merge in a folder now; never waits."""
    if not folder.is_dir():
        yield False
        return
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


@dataclass(frozen=True)
class ColumnFacts:
    """What the store holds of a column."""

    name: str
    model: str
    dtype: str
    measure: str
    rows: int
    values: int
    bytes: int
    used: float


def info(store: Store) -> list[ColumnFacts]:
    """All columns, the largest first. ``rows`` counts a row twice that two processes computed at once."""
    out = []
    for path in sorted((store.root / "columns").glob("*/column.json")):
        folder, said = path.parent, read_json(path)
        segments = store._segments(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        counts = sum(map(len, segments)), sum(len(segment.values) for segment in segments)
        out.append(
            ColumnFacts(folder.name, said["model"], said["dtype"], said["measure"], *counts, size, path.stat().st_mtime)
        )
    return sorted(out, key=lambda facts: -facts.bytes)


def collect(store: Store, keep: set[str], older_than_s: float | None, *, dry: bool = False) -> list[ColumnFacts]:
    """Drop columns of models that are not in ``keep`` (by fingerprint) and were not used for so long.

    Args:
        store: the store.
        keep: fingerprints of models whose columns stay; with none given only age counts.
        older_than_s: seconds since the last use; None drops whatever is not kept.
        dry: only tell.
    """
    now = time.time()
    gone = [
        facts
        for facts in info(store)
        if facts.model not in keep and (older_than_s is None or now - facts.used > older_than_s)
    ]
    for facts in gone:
        if not dry:
            shutil.rmtree(store.root / "columns" / facts.name)
    return gone


def check_writable(root: Path) -> None:
    """Fail early, before any model is loaded.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    probe = root / f".probe.{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(root, error) from error
