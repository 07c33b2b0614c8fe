"""Keyed columns on disk: cache, resume and growth are one operation, ``missing``.

A column is what one measure reads off one model in one precision; a key is the hash of what the model saw. The view,
the template, the tokenizer and the data set are not named: whatever they change shows in the key.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instdiff.core import Log, Measure
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.display import Shown
from instdiff.core.files import fingerprint, unwritable, write_json
from instdiff.errors import StoreError
from instdiff.store.column import (
    MANY_PARTS,
    TRIES,
    ColumnFolder,
    DamagedPiece,
    count_rows,
    fill,
    hold_unused,
    lengths,
    locate,
    names,
)
from instdiff.store.keys import KEYS_AT_ONCE, Keys

FACTS = "column.json"
MEND = "`instdiff store check --repair` sets it aside"

IN_MEMORY_BYTES = 1 << 22
"""What is read above this goes to a mapped file."""


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


class Store(Shown):
    """Columns under one folder.

    New values come as small parts, named by their keys; pieces of like size are merged into sorted, memory-mapped
    segments. A row costs 24 bytes and 4 for each value; memory holds what is asked for and a bounded piece of the rest.
    Several processes may write the same store. ``log`` is told of damaged files, by default on standard error.
    """

    def __init__(self, root: str | Path | None = None, memo: Path | None = None, log: Log | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self.log: Log = log or _to_stderr
        self.memo = memo or self.root / "models"
        """Where hashes of model files are remembered."""
        self._columns: dict[str, ColumnFolder] = {}

    def __repr__(self) -> str:
        return f"<Store in {self.root}>"

    def folder(self, column: ColumnId) -> Path:
        """Where a column is kept."""
        return self.root / "columns" / column.name

    def _pieces(self, column: ColumnId) -> ColumnFolder:
        folder = self.folder(column)
        return self._columns.setdefault(folder.name, ColumnFolder(folder, self.log))

    def missing(self, column: ColumnId, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no value yet."""
        segments = self._pieces(column).segments()
        out = np.ones(len(keys), bool)
        for at in range(0, len(keys), KEYS_AT_ONCE):
            out[at : at + KEYS_AT_ONCE] = locate(segments, keys[at : at + KEYS_AT_ONCE]) < 0
        return out

    def append(self, column: ColumnId, keys: Keys, values: Ragged) -> None:
        """Add values; the part is whole or absent, and writing it twice changes nothing."""
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys for {len(values)} values")
        if len(keys) == 0:
            return
        pieces = self._pieces(column)
        while not (pieces.hold() and _touch(pieces.folder)):
            facts = {"model": column.model, "dtype": column.dtype, "measure": repr(column.measure)}
            try:
                write_json(pieces.folder / FACTS, facts)
            except StoreError as error:
                # A `gc` may take the folder before it is held; it leaves the one above.
                if not (isinstance(error.__cause__, FileNotFoundError) and pieces.folder.parent.is_dir()):
                    raise
        pieces.add(keys, values)

    def read(self, column: ColumnId, keys: Keys) -> Ragged:
        """Values in the order of the keys; a key that is not there gives an empty row.

        Above 4 MiB the values are in a temporary file that is mapped into memory.
        """
        pieces = self._pieces(column)
        segments = pieces.segments()
        rows = locate(segments, keys)
        offsets = offsets_of(lengths(segments, rows))
        values = _room(int(offsets[-1]), self.root)
        fill(values, offsets, segments, rows)
        _touch(pieces.folder)
        return Ragged(values, offsets)

    def note(self, column: ColumnId, where: str, view: str) -> None:
        """Keep for ``info`` where the model of a column was found and which views of rows were read off it."""
        place = self.folder(column) / FACTS
        with suppress(OSError, ValueError, StoreError):  # it is for people alone
            about = json.loads(place.read_bytes())
            seen = {key: sorted({*about.get(key, []), value}) for key, value in (("where", where), ("views", view))}
            if any(about.get(key) != value for key, value in seen.items()):
                write_json(place, {**about, **seen})

    def compact(self, column: ColumnId, least: int = MANY_PARTS) -> None:
        """Merge a column's parts where there are so many, and segments of like size, unless another process does."""
        self._pieces(column).compact(least)

    def release(self, name: str) -> None:
        """Let go of a column's folder, so that it may be dropped."""
        if name in self._columns:
            self._columns.pop(name).release()

    def hold(self, model: Path) -> None:
        """Keep the folder of a model from being dropped while this store is there, and note that it was of use."""
        self._columns.setdefault(model.name, ColumnFolder(model, self.log)).hold()
        with suppress(OSError):  # of another user
            os.utime(model)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _touch(folder: Path) -> bool:
    """Note that a column was of use, for ``gc``; False where there is none."""
    try:
        os.utime(folder / FACTS)
    except OSError as error:  # somebody else's, or on a disk that is not written, and of use all the same
        return error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
    return True


def _room(count: int, root: Path) -> npt.NDArray[np.float32]:
    if count * 4 <= IN_MEMORY_BYTES:
        return np.empty(count, np.float32)
    with tempfile.TemporaryFile(dir=root if os.access(root, os.W_OK) else None) as file:
        return np.memmap(file, np.float32, "w+", shape=(count,))


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
    where: tuple[str, ...] = ()
    """Folders or hub ids under which the model was found."""
    views: tuple[str, ...] = ()


def info(store: Store) -> list[ColumnFacts]:
    """All columns, the largest first; no value is read. A row that two processes computed at once counts twice.

    What is damaged is told to the store's log and not counted.
    """
    found = (_facts(path.parent, store.log) for path in sorted((store.root / "columns").glob(f"*/{FACTS}")))
    return sorted((facts for facts in found if facts is not None), key=lambda facts: -facts.bytes)


def _facts(folder: Path, log: Log) -> ColumnFacts | None:
    for attempt in range(TRIES):
        try:
            used, about = (folder / FACTS).stat().st_mtime, read_about(folder)
            counts, seen = list(_count(folder, log)), read_seen(folder)
        except FileNotFoundError:  # merged or dropped meanwhile
            if not (folder / FACTS).is_file():
                return None
            time.sleep(min(0.001 * attempt, 0.1))
            continue
        except DamagedPiece as error:
            log(f"warning: {error}; {MEND}")
            return None
        rows, values = (sum(count[n] for count in counts) for n in (0, 1))
        return ColumnFacts(folder.name, *about, rows, values, sum(sizes(folder)), used, *seen)
    raise StoreError(f"'{folder}' keeps changing while it is counted; run again when other processes are done")


def _count(folder: Path, log: Log) -> Iterator[tuple[int, int]]:
    for name in names(folder):
        try:
            yield count_rows(folder / name)
        except DamagedPiece as error:
            log(f"warning: {error}; {MEND}")


def read_about(folder: Path) -> tuple[str, str, str]:
    """The model, precision and measure of a column; a DamagedPiece where they are not those that its folder names."""
    said = (folder / FACTS).read_bytes()
    try:
        about = json.loads(said)
        model, dtype, measure = about["model"], about["dtype"], about["measure"]
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedPiece(f"store file '{folder / FACTS}' is damaged ({error})") from error
    if fingerprint(model, dtype, measure) != folder.name:
        raise DamagedPiece(f"store file '{folder / FACTS}' is damaged (it is of another column)")
    return model, dtype, measure


def read_seen(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where a column's model was found, and the views that were read; empty where nobody has noted it."""
    about = json.loads((folder / FACTS).read_bytes())
    where, views = (tuple(map(str, about.get(key) or ())) for key in ("where", "views"))
    return where, views


def sizes(folder: Path) -> Iterator[int]:
    """Bytes of every file in a folder, as far as it is still there."""
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                yield os.stat(os.path.join(place, name)).st_size


def collect(store: Store, keep: set[str], older_than_s: float | None, *, dry: bool = False) -> list[ColumnFacts]:
    """Drop columns of models that are not in ``keep`` (by fingerprint) and were not used for so long.

    Where nothing is in ``keep`` only age counts; where ``older_than_s`` is None, whatever is not kept goes. With
    ``dry`` it only tells. A column that a running process has read or written stays; the caller's own store lets go of
    what is dropped.
    """
    if not dry:
        _empty_trash(store)  # of what a kill left there
    found = [one for one in info(store) if one.model not in keep and is_old(one.used, older_than_s)]
    return [one for one in found if drop(store, store.root / "columns" / one.name, dry=dry)]


def is_old(used: float, older_than_s: float | None) -> bool:
    """Whether something was not used for so long; always where nothing is said."""
    return older_than_s is None or time.time() - used > older_than_s


def drop(store: Store, folder: Path, *, dry: bool) -> bool:
    """Whether a folder of the store was dropped, or would be: nobody uses it."""
    store.release(folder.name)
    with hold_unused(folder) as free:
        gone = free and (dry or _away(folder, store.root / "trash"))
    if gone and not dry:
        _empty_trash(store)
    return gone


def _empty_trash(store: Store) -> None:
    shutil.rmtree(store.root / "trash", ignore_errors=True)


def _away(folder: Path, trash: Path) -> bool:
    """At once for everybody: nobody sees half a column. False where another process has dropped it."""
    for _ in range(TRIES):
        try:
            trash.mkdir(exist_ok=True)
            os.replace(folder, tempfile.mkdtemp(dir=trash))
        except (FileNotFoundError, FileExistsError):
            if not folder.is_dir():
                return False
            continue  # another process has emptied the trash meanwhile
        except OSError as error:
            raise unwritable(folder, error) from error
        return True
    raise StoreError(f"'{trash}' keeps vanishing; run again when other processes are done")


def check_writable(root: Path) -> None:
    """Fail early, before any model is loaded, with a StoreError where the folder cannot be written."""
    probe = root / f".probe.{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(root, error) from error
