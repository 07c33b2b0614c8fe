"""Rows of parquet and Arrow files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from typing import Any, BinaryIO

import pyarrow as pa

from instdiff.data.json_values import read_rows
from instdiff.data.notes import Notes
from instdiff.data.records import Record, check_columns, record, reject
from instdiff.store.parquet import reading_parquet

BATCH = 1024
BUFFER = 1 << 20


def read_tables(
    tables: Iterable[pa.Table | pa.RecordBatch], name: str, first: int = 0, stop: int = sys.maxsize
) -> Iterator[Record]:
    """Rows ``first`` to ``stop`` of tables that follow each other, without the nulls that come from other rows.

    A column of objects has for each row the keys of all rows: within tools, calls and their arguments, where a key that
    is there is shown, those that are null are dropped.
    """
    rows = ((row, filled) for table in tables for filled in [_filled(table.schema)] for row in _values(table))
    for number, ((row, raw, wrong), filled) in enumerate(islice(rows, first, stop), 1):
        if wrong:
            yield reject(name, number, repr(row), wrong)
            continue
        cleaned = {**row, **{key: _without_nulls(row[key], key in _FILLED) for key in filled}} if filled else row
        try:
            text = _encoder(cleaned)
            text.encode()
        except (TypeError, ValueError, RecursionError):
            yield from (record._replace(line=number) for record in read_rows([cleaned], name))
        else:
            note = (Notes.RAW, raw) if raw else (Notes.NULLS, "") if filled and cleaned != row else None
            yield record(name, number, cleaned, text, note)


def _values(table: pa.Table | pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Rows; of each the last column that has a number where a time should be, and why it cannot be used.

    One value that Python cannot hold spoils its row alone, and not even that where it is a time.
    """
    try:
        rows = table.to_pylist()
    except Exception:  # noqa: BLE001 - of a value that Python cannot hold, Arrow raises many kinds
        names = table.schema.names
        yield from (_row(dict(zip(names, (c[at] for c in table.columns), strict=True))) for at in range(table.num_rows))
    else:
        yield from ((row, "", "") for row in rows)


def _row(scalars: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    row: dict[str, Any] = {}
    raw = wrong = ""
    for key, scalar in scalars.items():
        try:
            row[key] = scalar.as_py()
        except Exception as error:  # noqa: BLE001 - the same
            if pa.types.is_temporal(scalar.type) and hasattr(scalar, "value"):
                row[key], raw = scalar.value, key
            else:
                wrong = wrong or f"column '{key}': {str(error) or type(error).__name__}"
    return row, raw, wrong


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_FILLED = ("tools", "tool_calls", "function_call", "arguments", "chat_template_kwargs")


def _filled(schema: pa.Schema) -> list[str]:
    """The columns with objects within tools or calls, which a file fills with the keys of all rows."""

    def objects(type: pa.DataType, inside: bool) -> bool:
        if pa.types.is_struct(type) and inside:
            return True
        fields = [type.field(at) for at in range(type.num_fields)]
        return any(objects(field.type, inside or field.name in _FILLED) for field in fields)

    return [field.name for field in schema if objects(field.type, field.name in _FILLED)]


def _without_nulls(value: Any, inside: bool) -> Any:
    if type(value) is dict:
        return {
            key: _without_nulls(item, inside or key in _FILLED) if type(item) in (dict, list) else item
            for key, item in value.items()
            if item is not None or not inside
        }
    if type(value) is list:
        return [_without_nulls(item, inside) if type(item) in (dict, list) else item for item in value]
    return value


def read_parquet(file: BinaryIO, name: str, longest: int, span: tuple[int, int, int] | None = None) -> Iterator[Record]:
    """A parquet file, or its rows that begin in ``span``."""
    # Without a buffer a whole column of a row group, which may be the whole file, is read at once.
    with reading_parquet(file, whole=False, buffer_size=BUFFER, pre_buffer=False) as table:
        check_columns(table.schema_arrow.names, name)
        groups = range(table.num_row_groups)
        ends = [0, *accumulate(table.metadata.row_group(group).num_rows for group in groups)]
        first, last = (0, ends[-1]) if span is None else (ends[-1] * at // span[2] for at in span[:2])
        some = [group for group in groups if ends[group] < last and ends[group + 1] > first]
        start = ends[some[0]] if some else 0
        batches = table.iter_batches(batch_size=BATCH, row_groups=some)
        yield from read_tables(batches, name, first - start, last - start)


def read_arrow(file: BinaryIO, name: str, longest: int) -> Iterator[Record]:
    """An Arrow file or stream, as ``datasets`` writes."""
    source = pa.PythonFile(file, "r")
    if source.read(6) == b"ARROW1":
        with pa.ipc.open_file(source) as whole:
            check_columns(whole.schema.names, name)
            yield from read_tables(map(whole.get_batch, range(whole.num_record_batches)), name)
    else:
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            check_columns(stream.schema.names, name)
            yield from read_tables(stream, name)
