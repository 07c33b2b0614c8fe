"""Writing rows: aside first, then in one step to where they belong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.artifact import writing
from instdiff.data.values import plain, to_json
from instdiff.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from instdiff.data.pool import Reject

StrPath = str | os.PathLike[str]


def write_jsonl(path: StrPath, sources: Iterable[str]) -> None:
    """One JSON text per line.

    Raises:
        StoreError: The path cannot be written.
    """
    with writing(path) as aside, open(aside, "wb") as file:
        _put_jsonl(file, sources)


def write_rows(path: StrPath, sources: Iterable[str], extra: Mapping[str, Sequence[Any]]) -> None:
    """Rows given as JSON texts, with extra columns after their own, in the format that the path's ending names.

    Raises:
        ConfigError: Nothing is known about that ending.
        StoreError: The path cannot be written, or the format cannot hold the values.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError(f"cannot tell the format of output {os.fspath(path)}: it must end in {', '.join(_WRITERS)}")
    with writing(path) as aside, open(aside, "wb") as file:
        _WRITERS[suffix](file, _with_extra(sources, extra) if extra else sources)


def write_rejects(rejects: Iterable[Reject], path: StrPath) -> None:
    """Rejected records as JSON lines with ``file``, ``line``, ``reason`` and ``text``.

    Raises:
        StoreError: The path cannot be written.
    """
    keys = ("file", "line", "reason", "text")
    write_jsonl(path, (json.dumps({key: getattr(r, key) for key in keys}, ensure_ascii=False) for r in rejects))


def _with_extra(sources: Iterable[str], extra: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for i, source in enumerate(sources):
        row = json.loads(source)
        for name, values in extra.items():
            row.pop(name, None)
            row[name] = _finite(plain(values[i]))
        yield to_json(row)


def _finite(value: Any) -> Any:
    """The plain value with null for what is infinite: a score that JSON cannot write is one that nobody has."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _put_jsonl(file: BinaryIO, sources: Iterable[str]) -> None:
    for source in sources:
        file.write(source.encode() + b"\n")


def _put_json(file: BinaryIO, sources: Iterable[str]) -> None:
    file.write(b"[")
    for i, source in enumerate(sources):
        file.write((",\n" if i else "\n").encode() + source.encode())
    file.write(b"\n]\n")


def _put_parquet(file: BinaryIO, sources: Iterable[str]) -> None:
    rows = [json.loads(source) for source in sources]
    arrays = {}
    for name in _columns(rows):
        try:
            arrays[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise StoreError(
                f"parquet cannot hold column '{name}', whose values are of different types ({error}); "
                "give an output path that ends in .jsonl"
            ) from error
    pq.write_table(pa.table(arrays), file)


def _put_csv(file: BinaryIO, sources: Iterable[str]) -> None:
    rows = [json.loads(source) for source in sources]
    columns = _columns(rows)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
        text.flush()
    finally:
        # The wrapper would close the file, and fail again on a full disk.
        with contextlib.suppress(OSError):
            text.detach()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
    return list(seen)


_WRITERS: dict[str, Callable[[BinaryIO, Iterable[str]], None]] = {
    ".jsonl": _put_jsonl,
    ".json": _put_json,
    ".parquet": _put_parquet,
    ".csv": _put_csv,
}
