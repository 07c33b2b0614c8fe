"""Where the data of a task are: a file on this machine, or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.core import Log
from instdiff.core.files import fingerprint
from instdiff.data.hub import hub_rows
from instdiff.data.readers import READERS, read_file
from instdiff.errors import ConfigError, DataError, did_you_mean


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

    rows: list[dict[str, Any]]
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
    path = _file(place, task_data.get(place.name), data_dir)
    try:
        rows = _take_limit(_rows_of(path) if path else hub_rows(place.hub, limit), limit)
    except DataError as error:
        if path:
            raise
        raise DataError(
            f"task '{place.name}': no file of it was given, and the hub did not help: {error}. "
            f"Offline: --data-dir DIR with {' or '.join(_stems(place))}.jsonl in it, or data.{place.name}=PATH"
        ) from None
    where = str(path or f"hub:{place.hub}")
    if not rows:
        raise DataError(f"task '{place.name}': {where} has no rows")
    log(f"{place.name}: {len(rows):,} problems from {where}")
    return Found(rows, where, fingerprint(repr(rows)))


def _take_limit(rows: Iterator[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for row in rows:
        if limit is not None and len(out) == limit:
            break
        out.append(row)
    return out


def _stems(place: Place) -> list[str]:
    return [place.name, *place.files]


def _file(place: Place, named: str | None, data_dir: str | None) -> Path | None:
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise DataError(f"task '{place.name}': no file '{named}'; check data.{place.name}")
        return path
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"no folder '{data_dir}'; --data-dir is where the files of tasks are")
    tried = (folder / f"{stem}{ending}" for stem in _stems(place) for ending in READERS)
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        known = " or ".join(f"{stem}.jsonl" for stem in _stems(place))
        raise DataError(f"task '{place.name}': '{data_dir}' has no {known}; give data.{place.name}=PATH")
    return found


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    for record in read_file(path, str(path)):
        if record.value is None:
            # A benchmark that lacks rows is another benchmark.
            raise DataError(f"{path}:{record.line}: {record.reason}; mend the file")
        yield record.value


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
