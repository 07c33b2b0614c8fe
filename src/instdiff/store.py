"""Keyed columns on disk: cache, resume and growth are one operation, ``missing``.

A column is what one measure reads off one model in one precision; a key is the hash of what the model saw. The view,
the template, the tokenizer and the data set are not named: whatever they change shows in the key.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.artifact import fingerprint, unwritable, write_json, writing
from instdiff.core import Measure
from instdiff.errors import StoreError
from instdiff.ragged import Ragged

Keys = npt.NDArray[np.bytes_]
"""Sixteen bytes each."""


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


@dataclass
class _Index:
    """Sorted keys of the parts seen so far, and where each is: part number and row in it."""

    parts: list[Path]
    keys: Keys
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]


class Store:
    """Columns under one folder. Several processes may write the same store: parts are named by content."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self._indexes: dict[str, _Index] = {}

    @property
    def memo(self) -> Path:
        """Where hashes of model files are remembered."""
        return self.root / "models"

    def missing(self, column: ColumnId, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no value yet."""
        return self._find(self._index(column), keys) < 0

    def append(self, column: ColumnId, keys: Keys, values: Ragged) -> None:
        """Add values; the part is whole or absent, and writing it twice changes nothing.

        Raises:
            StoreError: the store cannot be written.
        """
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys for {len(values)} values")
        if len(keys) == 0:
            return
        folder = self.root / "columns" / column.name
        if not (folder / "column.json").is_file():
            write_json(
                folder / "column.json",
                {"model": column.model, "dtype": column.dtype, "measure": repr(column.measure)},
            )
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
        """Values in the order of the keys; a key that is not there gives an empty row."""
        index = self._index(column)
        found = self._find(index, keys)
        rows: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(keys)
        have = np.flatnonzero(found >= 0)
        part_of = index.part[found[have]]
        for number in np.unique(part_of):
            wanted = have[part_of == number]
            column_values = self._values(index.parts[number])
            for at in wanted:
                rows[at] = column_values[int(index.row[found[at]])]
        return Ragged.of(rows, np.float32)

    def _values(self, part: Path) -> Ragged:
        values = _read_part(part, "value")
        offsets = values.offsets.to_numpy().astype(np.int64)
        return Ragged(values.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])

    def _find(self, index: _Index, keys: Keys) -> npt.NDArray[np.int64]:
        """Place of each key in the index, -1 where it is not."""
        if len(index.keys) == 0:
            return np.full(len(keys), -1, np.int64)
        place = np.minimum(np.searchsorted(index.keys, keys), len(index.keys) - 1)
        return np.where(index.keys[place] == keys, place, -1).astype(np.int64)

    def _index(self, column: ColumnId) -> _Index:
        """The column's index, with parts that have come since it was last asked for."""
        known = self._indexes.get(column.name)
        if known is None:
            known = _Index([], np.zeros(0, "S16"), np.zeros(0, np.int32), np.zeros(0, np.int64))
        folder = self.root / "columns" / column.name
        seen = set(known.parts)
        fresh = sorted(path for path in folder.glob("[!.]*.parquet") if path not in seen)
        if fresh:
            known = self._extend(known, fresh)
            self._indexes[column.name] = known
        return known

    def _extend(self, known: _Index, fresh: list[Path]) -> _Index:
        keys, part, row = [known.keys], [known.part], [known.row]
        parts = list(known.parts)
        for path in fresh:
            column = _read_part(path, "key")
            raw = column.buffers()[1]
            here = np.frombuffer(raw, "S16", count=len(column), offset=column.offset * 16)
            keys.append(here)
            part.append(np.full(len(here), len(parts), np.int32))
            row.append(np.arange(len(here)))
            parts.append(path)
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        return _Index(parts, joined[order], np.concatenate(part)[order], np.concatenate(row)[order])


def _read_part(path: Path, column: str) -> pa.Array:
    try:
        return pq.read_table(path, columns=[column])[column].combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(f"store part '{path}' cannot be read ({error}); delete it and run again") from error


def check_writable(root: Path) -> None:
    """Fail early, before any model is loaded.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe.{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise unwritable(root, error) from error
