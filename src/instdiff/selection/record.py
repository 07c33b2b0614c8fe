"""The record of a selection: where it lies, and a selection by its record, its rows, or the run that made it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.core import Log
from instdiff.core.files import read_json, writing
from instdiff.core.sums import file_sum
from instdiff.data import Pool, Turns, load
from instdiff.errors import DataError, StoreError
from instdiff.selection.chosen import OUTPUT_SUM, Chosen

RECORD, ROWS, SCORES = "selection.json", "selected.jsonl", "scores.parquet"


def record_path(output: str | Path) -> Path:
    """Where the record of an output goes: ``sel.selection.json`` beside ``sel.jsonl``."""
    path = Path(output)
    return path.with_name(f"{path.stem}.{RECORD}")


def write_selection(folder: Path, chosen: Chosen) -> None:
    """Write the rows that a part of a run selected, and then their record, which says that they are whole."""
    chosen.write(folder / ROWS)
    chosen.write_record(folder / RECORD, folder / ROWS)


def read_selection(folder: Path) -> dict[str, Any] | None:
    """What the record of a part of a run says; None where nothing is selected yet."""
    record: dict[str, Any] | None = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    return record


def copy_record(source: Path, target: Path) -> None:
    """Give a part of a run the record of another."""
    with writing(target / RECORD) as aside:
        shutil.copyfile(source / RECORD, aside)


def rows_beside(record: Path) -> Path:
    """The file of rows that a record is of."""
    named = record.name.endswith(f".{RECORD}")
    return record.with_name(record.name.removesuffix(RECORD) + "jsonl" if named else ROWS)


def tell_changed(record: Mapping[str, Any], rows: Path) -> list[str]:
    """What is to be said of a file of rows that is not as its record says that it was written."""
    if OUTPUT_SUM not in record or file_sum(rows) in (None, record[OUTPUT_SUM]):
        return []
    return [f"warning: '{rows}' was changed since it was selected; its record has the rows as they were"]


def origins(meta: Mapping[str, Any], of: str = "data") -> list[str]:
    """The sources of the data that a record or a score file is of."""
    origin = meta.get(of, {}).get("origin") or []
    return [str(origin)] if isinstance(origin, str) else list(map(str, origin))


def records_in(folder: Path) -> list[Path]:
    """The records of a folder, the newest first."""
    paths = [path for path in (folder / RECORD, *sorted(folder.glob(f"*.{RECORD}"))) if path.is_file()]
    return sorted(paths, key=lambda path: -path.stat().st_mtime_ns)


def recorded_turns(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """How conversations were shown and learnt, of the settings in a record, as ``load`` takes it."""
    names = [field.name for field in fields(Turns)]
    return {name: settings[name] for name in names if name in settings} if settings else {}


@dataclass(frozen=True)
class Reading:
    """How the input is read, where its keys do not say it; what ``Turns`` says goes before a record."""

    format: str | None = None
    map: Mapping[str, str] | None = None
    targets: str | None = None
    reasoning: str | None = None
    system: str | None = None
    longest_line_mb: int = 256

    def load(
        self,
        where: str | list[str],
        settings: Mapping[str, Any] | None = None,
        log: Log | None = None,
        limit: int | None = None,
    ) -> Pool:
        """The rows, or the first ``limit`` of them; ``settings`` are those of the record."""
        own = {"targets": self.targets, "reasoning": self.reasoning, "system": self.system}
        turns = recorded_turns(settings) | {name: value for name, value in own.items() if value is not None}
        how: dict[str, Any] = {"format": self.format, "map": self.map, "longest_line_mb": self.longest_line_mb}
        return load(where, limit=limit, log=log, **how, **turns)


@dataclass(frozen=True)
class Found:
    """A selection, as the user named it.

    Its ``ids`` are in order, and so are its ``rows``, which are positions in the input, where the record has them.
    ``files`` are the record and the rows, where they lie or would lie; empty where it is no file. ``pool`` has its
    rows, where they were read to find it, and ``store`` is that of its scores, where it is known.
    """

    name: str
    ids: Sequence[str]
    rows: list[int] | None
    record: dict[str, Any] | None
    files: tuple[Path, ...]
    pool: Pool | None = None
    store: str | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """With which the rows were scored."""
        settings: Mapping[str, Any] = (self.record or {}).get("settings", {})
        return settings

    @property
    def scores(self) -> Path | None:
        """The score file beside it, where there is one."""
        path = self.files[0].parent / SCORES if self.files else None
        return path if path and path.is_file() else None


def find(where: str, reading: Reading | None = None, log: Log | None = None) -> Found:
    """The selection that a record, a file of rows or a run folder is.

    Raises a DataError where there is nothing of the kind, a StoreError where the record cannot be read.
    """
    reading, path, say = reading or Reading(), Path(where), log or (lambda line: None)
    place = _in_folder(path) if path.is_dir() else path if path.is_file() and _is_record(path) else None
    if place is not None:
        record, rows = _read(place), rows_beside(place)
        for line in tell_changed(record, rows):
            say(line)
        return Found(where, list(record["ids"]), list(record["rows"]), record, (place, rows))
    files = (path, record_path(path), path.parent / RECORD) if path.is_file() else ()
    beside = next((_read(other) for other in files[1:] if other.is_file() and _is_record(other)), None)
    if beside is not None and (
        record_path(path).is_file() or path.name == ROWS
    ):  # else the record may be of another file
        for line in tell_changed(beside, path):
            say(line)
    pool = reading.load(where, (beside or {}).get("settings"), log)
    if beside is not None and Counter(beside["ids"]) != Counter(pool.ids):
        beside = None  # of another selection
    numbers = None if beside is None or beside["ids"] != pool.ids else list(beside["rows"])
    return Found(where, pool.ids, numbers, beside, files, pool)


def found_of(chosen: Chosen) -> Found:
    """A selection that is in memory."""
    known = chosen.ids, chosen.rows.tolist(), chosen.record(), (), chosen.to_pool(), chosen.meta.get("store")
    return Found(chosen.scored.name, *known)


def _in_folder(folder: Path) -> Path | None:
    """The record of a folder: its own, or that of a run's last round; a folder of data files has none."""
    if (folder / RECORD).is_file():
        return folder / RECORD
    rounds = [path for path in folder.glob(f"iter_*/{RECORD}") if path.parent.name[5:].isdigit()]
    if rounds:
        return max(rounds, key=lambda path: int(path.parent.name[5:]))
    if (folder / "config.yaml").is_file():
        raise DataError(f"the run folder '{folder}' has no selection yet: no iter_1/{RECORD}; let the run go on first")
    named = records_in(folder)
    if len(named) > 1:
        names = ", ".join(sorted(path.name for path in named))
        raise DataError(f"'{folder}' holds {len(named)} selections ({names}); name one of them")
    return named[0] if named else None


def _is_record(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    # A file of rows may be an object as well; only a record has its keys.
    return start.startswith(b"{") and {"method", "rows", "ids"} <= set(_object(path))


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except StoreError:  # JSON lines that end in .json, perhaps; reading them as rows says what is wrong
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(path)
    if not isinstance(record, dict) or not {"method", "rows", "ids"} <= set(record):
        raise DataError(f"'{path}' is no record of a selection: it lacks method, rows or ids; `select` writes it")
    return record


def rows_of(
    found: Found,
    data: str | list[str] | None = None,
    reading: Reading | None = None,
    log: Log | None = None,
    limit: int | None = None,
) -> Pool:
    """The selected rows in their order: what was named, or the output beside the record, or rows of the input.

    ``data`` is the input, by default where the record says it was, of which the first ``limit`` rows are read. Raises a
    DataError where the rows are nowhere, or are not those of the record.
    """
    reading = reading or Reading()
    if found.pool is not None:
        return found.pool
    if found.files and not data and found.files[1].is_file():
        pool = reading.load(str(found.files[1]), found.settings, log)
        if pool.ids == found.ids:
            return pool
    origin = data or (found.record or {}).get("data", {}).get("origin")
    if not origin:
        raise DataError(f"'{found.name}' does not say which data it is of; give --data FILE")
    try:
        pool = reading.load(origin, found.settings, log, limit)
    except DataError as error:
        if data:
            raise
        raise DataError(f"the rows of '{found.name}' are of {origin}, which cannot be read ({error})") from None
    return pool.take(places(pool, found.ids, found.rows))


def places(pool: Pool, ids: Sequence[str], rows: Sequence[int] | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in a pool of rows named by id, and by row where it is known; a DataError where the pool lacks one."""
    by_row = {row: at for at, row in enumerate(pool.rows.tolist())}
    at_rows = [by_row.get(row, -1) for row in rows or []]
    if at_rows and all(at >= 0 and pool.ids[at] == name for at, name in zip(at_rows, ids, strict=True)):
        return np.array(at_rows, np.int64)
    left: dict[str, list[int]] = {}
    for at, name in enumerate(pool.ids):
        left.setdefault(name, []).append(at)
    out = []
    for name in ids:
        if name not in left:
            raise DataError(f"{pool.origin} has no row with id {name[:12]}…: it is not the data that was selected from")
        out.append(left[name].pop(0) if len(left[name]) > 1 else left[name][0])
    return np.array(out, np.int64)
