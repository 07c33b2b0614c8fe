"""Files into records: rows with their place, so that a bad one can be named and skipped."""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import gzip
import io
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.core.files import open_file
from instdiff.errors import DataError

BATCH = 1024
BUFFER = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_TEXT = 10_000


class Record(NamedTuple):
    """One record of a file as the user named it, on a line or, where lines mean nothing, by its number, from 1.

    ``value`` is the row, or None where it cannot be used, which ``reason`` says; ``text`` is the row as JSON text, or
    what was read instead.
    """

    file: str
    line: int
    value: dict[str, Any] | None
    text: str
    reason: str = ""


class Decoder:
    """JSON as the standard has it: numbers are finite, and one that is not does not stop the reading."""

    def __init__(self) -> None:
        self._bad: list[str] = []
        self._json = json.JSONDecoder(parse_constant=self._bad.append, parse_float=self._number)

    def _number(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self._bad.append(text)
        return value

    def decode(self, text: str) -> Any:
        """The value of a whole text."""
        self._bad.clear()
        return self._json.decode(text)

    def next(self, text: str, at: int) -> tuple[Any, int]:
        """The value that starts at a position, and where it ends."""
        self._bad.clear()
        value, end = self._json.raw_decode(text, at)
        return value, end

    def fault(self, value: Any) -> str:
        """What is wrong with the value that was decoded last, or nothing."""
        if not isinstance(value, dict):
            return f"a JSON object is expected, this is {type(value).__name__}"
        return f"{self._bad[0]} is not a JSON number" if self._bad else ""


def read_lines(file: Iterable[bytes], name: str) -> Iterator[Record]:
    """JSON lines; blank ones are skipped, bad ones are records without a row."""
    decoder = Decoder()
    for number, raw in enumerate(file, 1):
        line = raw.strip(b" \t\r\n")
        if number == 1:
            refuse_utf16(line, name)
            line = line.removeprefix(b"\xef\xbb\xbf").lstrip()
        if line:
            yield _line(decoder, line, name, number)


def read_rows(rows: Iterable[Any], name: str) -> Iterator[Record]:
    """Rows that are Python objects already."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            yield reject(name, number, repr(row), f"an object is expected, this is {type(row).__name__}")
            continue
        try:
            text = to_json(row)
            text.encode()
        except UnicodeEncodeError:
            yield reject(name, number, json.dumps(text), "a lone surrogate, which UTF-8 cannot hold")
        except (ValueError, RecursionError) as error:
            yield reject(name, number, repr(row), str(error))
        else:
            yield Record(name, number, json.loads(text), text)


def _line(decoder: Decoder, line: bytes, name: str, number: int) -> Record:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        shown = line.decode(errors="backslashreplace")
        return reject(name, number, shown, f"invalid UTF-8 at byte {error.start + 1}")
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        return reject(name, number, text, f"broken JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return reject(name, number, text, f"broken JSON: {error}")
    fault = decoder.fault(value)
    if not fault and _SURROGATE.search(line) and not encodes(json.dumps(value, ensure_ascii=False)):
        fault = "a lone surrogate, which UTF-8 cannot hold"
    return reject(name, number, text, fault) if fault else Record(name, number, value, text)


def reject(name: str, number: int, text: str, reason: str) -> Record:
    """A record that cannot be used, its text cut and made writable."""
    return Record(name, number, None, text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode(), reason)


def refuse_utf16(start: bytes, name: str) -> None:
    """Raises where a file starts with the mark of UTF-16, of which every line would be bad."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: this is UTF-16; save it as UTF-8")


def encodes(text: str) -> bool:
    """Whether UTF-8 can hold the text; lone surrogates it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not become a sample: its place, as of ``Record``, why, and its text, cut where it is long."""

    file: str
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

StrPath = str | os.PathLike[str]
Reader = Callable[[Any, str], Iterator[Record]]
"""Reads an open binary file, which has this name in messages."""


Span = tuple[int, int, int]
"""A part of a file: from the first number's share of the third, its size, to the second's."""


def read_file(path: StrPath, name: str, span: Span | None = None) -> Iterator[Record]:
    """A data file's or address's records by its suffix, with ``span`` those that begin in it; else a DataError."""
    read = reader_for(path)
    if read is None:
        raise DataError(f"{name}: unknown kind of file; known: {', '.join(READERS)}")
    try:
        with open_file(path) as file:
            yield from read(file, name) if span is None else PARTIAL[read](file, name, span)
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read {name}: {reason}; check that the file is whole and that you may read it"
        ) from error


def reader_for(path: StrPath) -> Reader | None:
    """The function that reads files with this name, if there is one."""
    name = os.path.basename(path).lower()
    return next((read for suffix, read in READERS.items() if name.endswith(suffix)), None)


def _read_zipped(file: BinaryIO, name: str, read: Reader) -> Iterator[Record]:
    with gzip.open(file, "rb") as inside:
        yield from read(inside, name)


def _lines_between(file: BinaryIO, name: str, span: Span) -> Iterator[Record]:
    start, stop, _ = span
    if start:
        file.seek(start - 1)
        file.readline()
    yield from read_lines(iter(lambda: file.readline() if file.tell() < stop else b"", b""), name)


def _read_json(file: BinaryIO, name: str) -> Iterator[Record]:
    """An array of objects, which is read as a whole: what is larger than memory goes into a .jsonl file."""
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


def _read_csv(file: BinaryIO, name: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text_file:
        rows = csv.reader(text_file, delimiter=delimiter, strict=True)
        header = next(rows, [])
        _check_columns(header, name)
        for number, row in enumerate(_csv_rows(rows), 1):
            if isinstance(row, csv.Error):
                yield reject(name, number, "", f"broken CSV before line {rows.line_num + 1}: {row}")
            elif len(row) != len(header):
                yield reject(name, number, delimiter.join(row), f"{len(row)} fields, the header has {len(header)}")
            else:
                value: dict[str, Any] = dict(zip(header, row, strict=True))
                text = json.dumps(value, ensure_ascii=False)
                yield (
                    Record(name, number, value, text) if encodes(text) else reject(name, number, text, "invalid UTF-8")
                )


def _check_columns(columns: list[str], name: str) -> None:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: column '{twice[0]}' is there twice; rename one")


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


def _read_parquet(file: BinaryIO, name: str, span: Span | None = None) -> Iterator[Record]:
    # Without a buffer a whole column of a row group, which may be the whole file, is read at once.
    with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as table:
        _check_columns(table.schema_arrow.names, name)
        groups = range(table.num_row_groups)
        ends = [0, *accumulate(table.metadata.row_group(group).num_rows for group in groups)]
        first, last = (0, ends[-1]) if span is None else (ends[-1] * at // span[2] for at in span[:2])
        some = [group for group in groups if ends[group] < last and ends[group + 1] > first]
        rows = (row for batch in table.iter_batches(batch_size=BATCH, row_groups=some) for row in batch.to_pylist())
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


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _try(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


PARTIAL: dict[Reader, Callable[[Any, str, Span], Iterator[Record]]] = {
    read_lines: _lines_between,
    _read_parquet: _read_parquet,
}
"""By how a file is read, how a part of it is."""


def reads_in_part(path: StrPath) -> bool:
    """Whether a part of a file can be read alone."""
    return reader_for(path) in PARTIAL


READERS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".jsonl.gz": partial(_read_zipped, read=read_lines),
    ".json": _read_json,
    ".json.gz": partial(_read_zipped, read=_read_json),
    ".parquet": _read_parquet,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
}


# ── Python values as JSON can hold them ───────────────────────────────────────────────────────────────────────────────


def plain(value: Any) -> Any:
    """The value in JSON's own types; a ValueError where JSON has nothing for its type.

    NaN, which tables use for a missing value, becomes null; an infinite number is left for the caller to judge. Times
    become ISO 8601, decimals text, bytes text where they are UTF-8 and base64 where not, arrays lists.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _foreign(value)


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise ValueError(f"a value of type {type(value).__name__} has no JSON form")


def to_json(value: Any) -> str:
    """JSON text with characters as they are and keys in order; a ValueError where JSON has nothing for a value."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        simple = plain(value)
    try:
        return json.dumps(simple, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError("Infinity is not a JSON number") from error
