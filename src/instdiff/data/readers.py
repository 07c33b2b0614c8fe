"""Files into records: rows with their place, so that a bad one can be named and skipped."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from instdiff.core.files import open_file
from instdiff.data.csv_rows import read_csv
from instdiff.data.json_rows import begins_as_object, read_json, read_lines
from instdiff.data.records import LONGEST_LINE, Record
from instdiff.data.tables import BUFFER, read_arrow, read_parquet
from instdiff.errors import DataError
from instdiff.store.parquet import reading_parquet

StrPath = str | os.PathLike[str]
Reader = Callable[[Any, str, int], Iterator[Record]]
"""Reads an open binary file, which has this name in messages, with the bytes that a line of it may have."""


Span = tuple[int, int, int]
"""A part of a file: from the first number's share of the third, its size, to the second's."""


def read_file(path: StrPath, name: str, span: Span | None = None, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """A data file's or address's records by its suffix, with ``span`` those that begin in it; else a DataError."""
    read = reader_for(path)
    if read is None:
        raise DataError(f"{name}: unknown kind of file; known: {known_kinds()}")
    try:
        with open_file(path) as file:
            yield from read(file, name, longest) if span is None else PARTIAL[read](file, name, longest, span)
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


def _read_packed(file: BinaryIO, name: str, longest: int, *, read: Reader, packed: str) -> Iterator[Record]:
    with _PACKED[packed](file) as inside:
        yield from read(inside, name, longest)


def _lines_between(file: BinaryIO, name: str, longest: int, span: Span) -> Iterator[Record]:
    start, stop, _ = span
    if start:
        file.seek(start - 1)
        file.readline()
    yield from read_lines(file, name, longest, stop)


PARTIAL: dict[Reader, Callable[[Any, str, int, Span], Iterator[Record]]] = {
    read_lines: _lines_between,
    read_parquet: read_parquet,
}
"""By how a file is read, how a part of it is."""


def reads_in_part(path: StrPath) -> bool:
    """Whether a part of a file can be read alone."""
    return reader_for(path) in PARTIAL


READERS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".json": read_json,
    ".ndjson": read_lines,
    ".jsonlines": read_lines,
    ".csv": partial(read_csv, delimiter=","),
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
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
        return bool(rest.strip()) and begins_as_object(first)


def count_rows(path: StrPath) -> int:
    """How many records a file holds, bad ones too; a DataError where it cannot be read."""
    if reader_for(path) is read_parquet:
        with open_file(path) as file, reading_parquet(file, whole=False) as table:
            return int(table.metadata.num_rows)
    return sum(1 for _ in read_file(path, os.fspath(path)))
