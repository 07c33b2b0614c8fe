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
from typing import Any, BinaryIO

import pyarrow as pa

from instdiff.core.files import writing
from instdiff.data.json_values import plain, to_json
from instdiff.data.records import Reject
from instdiff.errors import ConfigError, StoreError
from instdiff.store.parquet import writing_parquet

StrPath = str | os.PathLike[str]
Sources = Callable[[], Iterable[str]]
"""Rows as JSON texts, from the first one at each call."""
ROWS_AT_ONCE, CHARACTERS_AT_ONCE = 1 << 15, 1 << 26


def write_jsonl(path: StrPath, sources: Iterable[str]) -> None:
    """One JSON text per line."""
    with writing(path) as aside, open(aside, "wb") as file:
        _put_jsonl(file, lambda: sources)


def write_rows(path: StrPath, sources: Sources, extra: Mapping[str, Sequence[Any]]) -> None:
    """Rows given as JSON texts, with extra columns after their own, in the format that the path's ending names.

    Formats with columns need all rows twice: to know the columns, and to write them. An unknown ending is a
    ConfigError; a path that cannot be written, or values that the format cannot hold, are a StoreError.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError(f"cannot tell the format of output {os.fspath(path)}: it must end in {', '.join(_WRITERS)}")
    with writing(path) as aside, open(aside, "w+b") as file:
        _WRITERS[suffix](file, (lambda: with_extra(sources(), extra)) if extra else sources)


def write_rejects(rejects: Iterable[Reject], path: StrPath) -> None:
    """Rejected records as JSON lines with ``file``, ``line``, ``reason`` and ``text``."""
    keys = ("file", "line", "reason", "text")
    write_jsonl(path, (json.dumps({key: getattr(r, key) for key in keys}, ensure_ascii=False) for r in rejects))


def with_extra(sources: Iterable[str], extra: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The rows with extra columns after their own, one value for each row; one of the same name is replaced."""
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


def _put_jsonl(file: BinaryIO, sources: Sources) -> None:
    for source in sources():
        file.write(source.encode() + b"\n")


def _put_json(file: BinaryIO, sources: Sources) -> None:
    file.write(b"[")
    for i, source in enumerate(sources()):
        file.write((",\n" if i else "\n").encode() + source.encode())
    file.write(b"\n]\n")


def _put_parquet(file: BinaryIO, sources: Sources) -> None:
    schema = pa.schema([])
    for rows in _parse_parts(sources):
        found = [pa.field(name, _array(name, rows).type) for name in _columns(rows)]
        for field in found:
            schema = _unify_field(schema, field)
    for field in schema:
        _holdable(field.name, field.type)
    with writing_parquet(file, schema) as writer:
        for rows in _parse_parts(sources):
            arrays = [_array(field.name, rows, field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _parse_parts(sources: Sources) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    characters = 0
    for source in sources():
        part.append(json.loads(source))
        characters += len(source)
        if len(part) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _array(name: str, rows: list[dict[str, Any]], type: pa.DataType | None = None) -> pa.Array:
    try:
        return pa.array([row.get(name) for row in rows], type)
    except (pa.ArrowException, OverflowError) as error:
        raise _mixed_types_error(name, error) from error


def _unify_field(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    try:
        return pa.unify_schemas([schema, pa.schema([field])], promote_options="permissive")
    except pa.ArrowException as error:
        raise _mixed_types_error(field.name, error) from error


def _holdable(name: str, type: pa.DataType) -> None:
    """Parquet has no empty objects."""
    if pa.types.is_struct(type) and not type.num_fields:
        raise StoreError(
            f"parquet cannot hold column '{name}', where an object is empty in every row; "
            "give an output path that ends in .jsonl"
        )
    for place in range(type.num_fields):
        _holdable(name, type.field(place).type)


def _mixed_types_error(name: str, error: Exception) -> StoreError:
    return StoreError(
        f"parquet cannot hold column '{name}', whose values are of different types ({error}); "
        "give an output path that ends in .jsonl"
    )


def _put_csv(file: BinaryIO, sources: Sources) -> None:
    columns = _columns(json.loads(source) for source in sources())
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text)
        writer.writerow(columns)
        for row in map(json.loads, sources()):
            writer.writerow([_cell(row.get(name)) for name in columns])
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


_WRITERS: dict[str, Callable[[BinaryIO, Sources], None]] = {
    ".jsonl": _put_jsonl,
    ".json": _put_json,
    ".parquet": _put_parquet,
    ".csv": _put_csv,
}
