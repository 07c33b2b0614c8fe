"""Where the data of a task are: a file on this machine, or the hub; and what is in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from instdiff.core import Log
from instdiff.core.files import fingerprint
from instdiff.data.hub import hub_rows
from instdiff.data.readers import SUFFIXES, read_file
from instdiff.errors import ConfigError, DataError, did_you_mean

Record = dict[str, Any]
ENDINGS = (*SUFFIXES, ".zip")
_SLICE = re.compile(r"(?P<path>.+)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")


@dataclass(frozen=True)
class Place:
    """Where a task's rows are looked for.

    Args:
        name: the task's.
        hub: ``owner/name[/config]:split``.
        files: paths without their ending, below the folder that the user names; the task's own name is tried as well.
    """

    name: str
    hub: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A task's rows, with where they are from and the hash of all of them."""

    rows: list[Record]
    where: str
    fingerprint: str


def find(place: Place, task_data: Mapping[str, str], data_dir: str | None, limit: int | None, log: Log) -> Found:
    """The rows of a task: of the file that is named for it, else of a file under the folder, else of the hub.

    Args:
        place: where to look.
        task_data: files by task.
        data_dir: a folder with the files of tasks.
        limit: first so many rows.
        log: is told where they are from.

    Raises:
        DataError: there is none, or one that cannot be read.
    """
    stems = (place.name, *place.files)
    known = " or ".join(f"{stem}.jsonl" for stem in stems)
    path = locate(place.name, stems, data_dir, task_data)
    if path is None and data_dir is not None:
        raise DataError(f"task '{place.name}': '{data_dir}' has no {known}; give data.{place.name}=PATH")
    try:
        rows = [row for _, row in read_rows(path)] if path else hub_rows(place.hub, limit)
        rows = list(islice(rows, limit))
    except DataError as error:
        if path:
            raise
        raise DataError(
            f"task '{place.name}': no file of it was given, and the hub did not help: {error}. "
            f"Offline: --data-dir DIR with {known} in it, or data.{place.name}=PATH"
        ) from None
    where = path or f"hub:{place.hub}"
    if not rows:
        raise DataError(f"task '{place.name}': {where} has no rows")
    log(f"{place.name}: {len(rows):,} problems from {where}")
    return Found(rows, where, fingerprint(repr(rows)))


def locate(task: str, names: Iterable[str], data_dir: str | None, task_data: Mapping[str, str]) -> str | None:
    """The file that is given for a task, else the one in the folder of tasks' files; None where there is neither.

    Args:
        task: its name.
        names: what the file may be called, see ``find_file``.
        data_dir: the folder.
        task_data: files by task.

    Raises:
        DataError: the file that is given, or the folder, is not there.
    """
    given = task_data.get(task)
    if given is not None:
        path, rows = split_slice(given)
        if not path.exists():
            raise DataError(f"the file of task '{task}' is not there: no file '{given}'; check data.{task}")
        return given if rows != slice(None) else str(path)
    if data_dir is None:
        return None
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder '{data_dir}'; --data-dir is where the files of tasks are")
    found = find_file(root, names)
    return None if found is None else str(found)


def find_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first file below a folder that is called like one of some names, whatever its ending and its case.

    A name may be a pattern, and may say in which folder of the folder the file lies.
    """
    for name in names:
        folder, _, stem = name.rpartition("/")
        for place in sorted(root.glob(folder)) if folder else [root]:
            files = {path: ending for path in place.glob("*") if (ending := _ending(path.name)) and path.is_file()}
            for path in sorted(files, key=lambda path: (ENDINGS.index(files[path]), path.name)):
                if fnmatch(path.name[: -len(files[path])].lower(), stem.removesuffix(_ending(stem)).lower()):
                    return path
    return None


def _ending(name: str) -> str:
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")


def split_slice(where: str) -> tuple[Path, slice]:
    """``PATH[start:stop]`` as the path and which of its rows are meant."""
    match = _SLICE.fullmatch(where)
    if match is None or Path(where).expanduser().exists():
        return Path(where).expanduser(), slice(None)
    start, stop = (int(end) if end else None for end in (match["start"], match["stop"]))
    return Path(match["path"]).expanduser(), slice(start, stop)


def read_rows(where: str | Path) -> list[tuple[int, Record]]:
    """The rows of a file with their lines; a JSON object may hold them under a key. ``PATH[:100]`` takes some rows.

    Raises:
        DataError: it cannot be read, or a row is broken: a benchmark that lacks rows is another benchmark.
    """
    path, taken = split_slice(str(where))
    inside = _rows_in_object(path) if path.suffix == ".json" else None
    if inside is not None:
        return list(enumerate(inside, 1))[taken]
    rows = []
    for record in read_file(path, str(path)):
        if record.value is None:
            raise DataError(f"{path}:{record.line}: {record.reason}; correct the file")
        rows.append((record.line, record.value))
    return rows[taken]


def _rows_in_object(path: Path) -> list[Record] | None:
    """The first list in a file that is one object; None for any other file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    lists = [rows for rows in found.values() if isinstance(rows, list)] if isinstance(found, dict) else []
    return lists[0] if lists and all(isinstance(row, dict) for row in lists[0]) else None


def choose_tasks(known: Sequence[str], asked: Sequence[str], suite: str) -> list[str]:
    """The tasks of a suite that are asked for; all where none is.

    Raises:
        ConfigError: one that it does not have.
    """
    for name in asked:
        if name not in known:
            raise ConfigError(f"suite '{suite}' has no task '{name}'{did_you_mean(name, known)}")
    return [name for name in known if not asked or name in asked]


def column(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The first of some columns that a row has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise DataError(f"{where}: a row has none of the columns {', '.join(names)}; it has {', '.join(row)}")
