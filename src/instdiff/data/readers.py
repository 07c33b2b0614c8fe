"""Files into records, by the ending of their name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.data.records import Decoder, Record, encodes, read_lines, read_rows, refuse_utf16, reject
from instdiff.errors import DataError

BATCH = 1024
BUFFER = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


Span = tuple[int, int, int]
"""A part of a file: from the first number's share of the third, its size, to the second's."""


def read_file(path: Path, name: str, span: Span | None = None) -> Iterator[Record]:
    """The records of one data file, by its suffix; with a ``span`` only those that begin in it.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    read = reader_for(path)
    if read is None:
        raise DataError(f"{name}: unknown kind of file; known: {', '.join(READERS)}")
    try:
        yield from read(path, name) if span is None else PARTIAL[read](path, name, span)
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read {name}: {reason}; check that the file is whole and that you may read it"
        ) from error


def reader_for(path: Path) -> Callable[[Path, str], Iterator[Record]] | None:
    """The function that reads files with this name, if there is one."""
    name = path.name.lower()
    return next((read for suffix, read in READERS.items() if name.endswith(suffix)), None)


def _read_jsonl(path: Path, name: str) -> Iterator[Record]:
    with _open(path) as file:
        yield from read_lines(file, name)


def _lines_between(path: Path, name: str, span: Span) -> Iterator[Record]:
    start, stop, _ = span
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        ends = iter(lambda: file.readline() if file.tell() < stop else b"", b"")
        yield from read_lines(ends, name)


def _read_json(path: Path, name: str) -> Iterator[Record]:
    """An array of objects, which is read as a whole: what is larger than memory goes into a .jsonl file."""
    with _open(path) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    refuse_utf16(data, name)
    # A byte that is no UTF-8 spoils the record that it lies in, not the file.
    text = data.decode(errors="surrogateescape")
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _read_array(text, start + 1, name)
    elif text[start : start + 1] == "{":
        yield from _read_objects(text, start, data, name)
    elif start < len(text):
        raise DataError(f"{name}: an array of objects is expected, it starts with {text[start : start + 20]!r}")


def _read_array(text: str, at: int, name: str) -> Iterator[Record]:
    decoder = Decoder()
    number = 0
    at = _skip(text, at)
    while text[at : at + 1] != "]" or number:
        number += 1
        value, at = _value(decoder, text, at, name)
        yield _element(decoder, value, name, number)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise _broken_json(text, at, name, "',' or ']' expected")
        at = _skip(text, at + 1)
    at = _skip(text, at + 1)
    if at < len(text):
        raise _broken_json(text, at, name, "text after the end of the array")


def _read_objects(text: str, start: int, data: bytes, name: str) -> Iterator[Record]:
    """A file called .json that starts with an object: JSON lines under another name, or an error."""
    line_end = text.find("\n", start)
    if line_end >= 0 and _skip(text, line_end) < len(text) and isinstance(_try(text[start:line_end]), dict):
        yield from read_lines(io.BytesIO(data), name)
        return
    value, _ = _value(Decoder(), text, start, name)
    inside = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if inside:
        hint = f"its rows seem to lie under '{inside[0]}': jq '.{inside[0]}' {name} > rows.json"
    elif value and all(isinstance(item, dict) for item in value.values()):
        hint = f"its rows seem to lie under {len(value):,} keys: jq '[.[]]' {name} > rows.json"
    else:
        hint = "write it as an array of objects, or one object per line in a .jsonl file"
    raise DataError(f"{name}: one object is not a list of rows (keys: {', '.join(list(value)[:8])}); {hint}")


def _read_csv(path: Path, name: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(rows, [])
        twice = sorted({column for column in header if header.count(column) > 1})
        if twice:
            raise DataError(f"{name}: column '{twice[0]}' is there twice; rename one")
        for number, row in enumerate(_csv_rows(rows), 1):
            if isinstance(row, csv.Error):
                yield reject(name, number, "", f"broken CSV before line {rows.line_num + 1}: {row}")
            elif len(row) != len(header):
                yield reject(name, number, delimiter.join(row), f"{len(row)} fields, the header has {len(header)}")
            else:
                value: dict[str, Any] = dict(zip(header, row, strict=True))
                text = json.dumps(value, ensure_ascii=False)
                good = encodes(text)
                yield Record(name, number, value, text) if good else reject(name, number, text, "invalid UTF-8")


def _csv_rows(rows: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield error
            continue
        if row is None:
            return
        if row:
            yield row


def _read_parquet(path: Path, name: str, span: Span | None = None) -> Iterator[Record]:
    # Without a buffer a whole column of a row group, which may be the whole file, is read at once.
    with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        columns = file.schema_arrow.names
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise DataError(f"{name}: column '{twice[0]}' is there twice; rename one")
        groups = range(file.num_row_groups)
        ends = [0, *accumulate(file.metadata.row_group(group).num_rows for group in groups)]
        first, last = (0, ends[-1]) if span is None else (ends[-1] * at // span[2] for at in span[:2])
        some = [group for group in groups if ends[group] < last and ends[group + 1] > first]
        batches = file.iter_batches(batch_size=BATCH, row_groups=some)
        rows = (row for batch in batches for row in batch.to_pylist())
        start = ends[some[0]] if some else 0
        yield from read_rows(islice(rows, first - start, last - start), name)


def _value(decoder: Decoder, text: str, at: int, name: str) -> tuple[Any, int]:
    try:
        return decoder.next(text, at)
    except json.JSONDecodeError as error:
        raise _broken_json(text, error.pos, name, error.msg) from error
    except (ValueError, RecursionError) as error:
        raise _broken_json(text, at, name, str(error)) from error


def _element(decoder: Decoder, value: Any, name: str, number: int) -> Record:
    text = json.dumps(value, ensure_ascii=False)
    fault = decoder.fault(value)
    if not fault and not encodes(text):
        fault = "invalid UTF-8, or a lone surrogate, which UTF-8 cannot hold"
    return reject(name, number, text, fault) if fault else Record(name, number, value, text)


def _broken_json(text: str, at: int, name: str, reason: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return DataError(
        f"{name}:{line}: broken JSON: {reason} at column {column}; mend the file, "
        "or give it as .jsonl, where only the bad line would be lost"
    )


def _open(path: Path) -> io.BufferedIOBase:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return open(path, "rb")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _try(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


PARTIAL: dict[Callable[[Path, str], Iterator[Record]], Callable[[Path, str, Span], Iterator[Record]]] = {
    _read_jsonl: _lines_between,
    _read_parquet: _read_parquet,
}
"""By how a file is read, how a part of it is."""


def reads_in_part(path: Path) -> bool:
    """Whether a part of a file can be read alone."""
    return reader_for(path) in PARTIAL and not path.name.lower().endswith(".gz")


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
