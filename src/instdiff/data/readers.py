"""Files into records: rows with their place, so that a bad one can be named and skipped."""

from __future__ import annotations

import base64
import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
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

from instdiff.core.files import open_file
from instdiff.data.notes import Notes
from instdiff.errors import DataError
from instdiff.store.parquet import reading_parquet

BATCH = 1024
BUFFER = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_TEXT = 10_000


class Record(NamedTuple):
    """One record of a file as the user named it, on a line or, where lines mean nothing, by its number, from 1.

    ``value`` is the row, or None where it cannot be used, which ``reason`` says; ``text`` is the row as JSON text, or
    what was read instead. ``note`` is what the log says once about such rows.
    """

    file: str
    line: int
    value: dict[str, Any] | None
    text: str
    reason: str = ""
    note: tuple[str, str] | None = None


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


def read_tables(
    tables: Iterable[pa.Table | pa.RecordBatch], name: str, first: int = 0, stop: int = sys.maxsize
) -> Iterator[Record]:
    """Rows ``first`` to ``stop`` of tables that follow each other, without the nulls that come from other rows.

    A column of objects has for each row the keys of all rows: within tools, calls and their arguments, where a key that
    is there is shown, those that are null are dropped.
    """
    rows = ((row, filled) for table in tables for filled in [_filled(table.schema)] for row in table.to_pylist())
    for number, (row, filled) in enumerate(islice(rows, first, stop), 1):
        cleaned = {**row, **{key: _without_nulls(row[key], key in _FILLED) for key in filled}} if filled else row
        try:
            text = _encoder(cleaned)
            text.encode()
        except (TypeError, ValueError, RecursionError):
            yield from (record._replace(line=number) for record in read_rows([cleaned], name))
        else:
            note = (Notes.NULLS, "") if filled and cleaned != row else None
            yield Record(name, number, cleaned, text, "", note)


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
        raise DataError(f"{name}: unknown kind of file; known: {known_kinds()}")
    try:
        with open_file(path) as file:
            yield from read(file, name) if span is None else PARTIAL[read](file, name, span)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read {name}: {reason}; check that the file is whole and that you may read it"
        ) from error


def reader_for(path: StrPath) -> Reader | None:
    """The function that reads files with this name, if there is one."""
    name = os.path.basename(path).lower()
    packed = next((suffix for suffix in _PACKED if name.endswith(suffix)), "")
    suffix = os.path.splitext(name.removesuffix(packed))[1]
    read = READERS.get(suffix)
    if read is None or not packed:
        return read
    return None if suffix in _TABLES else partial(_read_packed, read=read, packed=packed)


def known_kinds() -> str:
    """The endings of files that are read, for messages."""
    return f"{', '.join(READERS)}; texts also with {', '.join(_PACKED)}"


_TABLES = (".parquet", ".arrow")


def _open_zstd(file: BinaryIO) -> BinaryIO:
    inside: Any = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    return io.BufferedReader(inside, BUFFER)


_PACKED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def _read_packed(file: BinaryIO, name: str, read: Reader, packed: str) -> Iterator[Record]:
    with _PACKED[packed](file) as inside:
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


class _Lines:
    """Lines of a file, of which those since the last ``clear`` of ``taken`` are kept."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.taken.append(line := next(self._lines))
        return line


def _read_csv(file: BinaryIO, name: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text_file:
        lines = _Lines(text_file)
        header, delimiter, note = _read_header(lines, delimiter, name)
        for number, row in enumerate(_csv_rows(lines, delimiter), 1):
            if isinstance(row, tuple):
                yield reject(name, number, *row)
            elif len(row) != len(header):
                yield reject(name, number, delimiter.join(row), f"{len(row)} fields, the header has {len(header)}")
            else:
                value: dict[str, Any] = dict(zip(header, row, strict=True))
                text = json.dumps(value, ensure_ascii=False)
                fine = encodes(text)
                yield (
                    Record(name, number, value, text, "", note) if fine else reject(name, number, text, "invalid UTF-8")
                )
                note = None if fine else note


def _read_header(lines: _Lines, delimiter: str, name: str) -> tuple[list[str], str, tuple[str, str] | None]:
    """The names of the columns, and what stands between them: where it is a semicolon, with a note."""
    note = None
    try:
        header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        semicolons = len(header) == 1 and ";" in header[0]
    except csv.Error:
        header, semicolons = [], True
    if semicolons and delimiter == ",":
        delimiter, note = ";", (Notes.SEMICOLON, name)
        header = next(csv.reader(lines.taken, delimiter=delimiter, strict=True), [])
    _check_columns(header, name)
    return header, delimiter, note


def _check_columns(columns: list[str], name: str) -> None:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: column '{twice[0]}' is there twice; rename one")


def _csv_rows(lines: _Lines, delimiter: str) -> Iterator[list[str] | tuple[str, str]]:
    """Rows; for a broken one each of its lines with a reason, since a quote that is not closed takes in those below."""
    begin = len(lines.taken)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        try:
            row = next(rows, None)
        except csv.Error as error:
            lost = lines.taken[1:]
            more = f"; the {len(lost):,} lines after it are lost with it" if lost else ""
            reason = f"broken CSV before line {begin + rows.line_num + 1}: {error}"
            yield lines.taken[0].rstrip("\r\n"), f"{reason}{more}"
            yield from ((line.rstrip("\r\n"), f"lost with a broken record: {reason}") for line in lost)
            continue
        if row is None:
            return
        if row:
            yield row


def _read_parquet(file: BinaryIO, name: str, span: Span | None = None) -> Iterator[Record]:
    # Without a buffer a whole column of a row group, which may be the whole file, is read at once.
    with reading_parquet(file, whole=False, buffer_size=BUFFER, pre_buffer=False) as table:
        _check_columns(table.schema_arrow.names, name)
        groups = range(table.num_row_groups)
        ends = [0, *accumulate(table.metadata.row_group(group).num_rows for group in groups)]
        first, last = (0, ends[-1]) if span is None else (ends[-1] * at // span[2] for at in span[:2])
        some = [group for group in groups if ends[group] < last and ends[group + 1] > first]
        start = ends[some[0]] if some else 0
        batches = table.iter_batches(batch_size=BATCH, row_groups=some)
        yield from read_tables(batches, name, first - start, last - start)


def _read_arrow(file: BinaryIO, name: str) -> Iterator[Record]:
    """An Arrow file or stream, as ``datasets`` writes."""
    source = pa.PythonFile(file, "r")
    if source.read(6) == b"ARROW1":
        with pa.ipc.open_file(source) as whole:
            _check_columns(whole.schema.names, name)
            yield from read_tables(map(whole.get_batch, range(whole.num_record_batches)), name)
    else:
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            _check_columns(stream.schema.names, name)
            yield from read_tables(stream, name)


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
    ".json": _read_json,
    ".ndjson": read_lines,
    ".jsonlines": read_lines,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


SUFFIXES = (*READERS, *(f"{suffix}{packed}" for suffix in READERS if suffix not in _TABLES for packed in _PACKED))
"""What names of data files end in."""


def holds_rows(path: StrPath) -> bool:
    """Whether a ``.json`` file begins as rows do: an array of objects, or an object on each line."""
    with open_file(path) as file:
        start = file.read(BUFFER).decode(errors="replace").removeprefix("\ufeff").lstrip()
        if start[:1] == "[":
            return start[1:].lstrip()[:1] in ("{", "]", "")
        first, _, rest = start.partition("\n")
        if not rest and len(start) >= BUFFER // 4:
            return True
        return bool(rest.strip()) and isinstance(_try(first), dict)


def count_rows(path: StrPath) -> int:
    """How many records a file holds, bad ones too; a DataError where it cannot be read."""
    if reader_for(path) is _read_parquet:
        with open_file(path) as file, reading_parquet(file, whole=False) as table:
            return int(table.metadata.num_rows)
    return sum(1 for _ in read_file(path, os.fspath(path)))


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
