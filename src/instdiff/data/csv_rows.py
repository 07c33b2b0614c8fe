"""Rows of CSV files, with the lines of the file that each comes from."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from instdiff.data.json_rows import too_long
from instdiff.data.notes import Notes
from instdiff.data.records import (
    LONGEST_LINE,
    Record,
    check_columns,
    encodes,
    record,
    refuse_other_encodings,
    reject,
)
from instdiff.errors import DataError

Broken = tuple[str, str]
"""A line that is no row, and why."""


class _TooLongError(Exception):
    """A line, or the lines that a quote holds together, beyond the limit."""


class _Lines:
    """Lines of a file, of which those since ``begin`` are kept, and can be given again."""

    def __init__(self, file: io.TextIOBase, longest: int) -> None:
        self._file, self._longest = file, longest
        self._again = deque[str]()
        self._size = 0
        self.number, self.taken = 0, list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._file.readline(self._longest)
        if not line:
            raise StopIteration
        self._size += len(line)
        self.number += 1
        self.taken.append(line)
        if self._size >= self._longest:
            while line[-1:] not in ("\n", "\r") and (line := self._file.readline(1 << 20)):
                pass
            raise _TooLongError(too_long(self._longest))
        return line

    def begin(self) -> int:
        """Forget what was taken; the number of the line that comes next."""
        self.taken.clear()
        self._size = 0
        return self.number + 1

    def give_again(self) -> None:
        """Let what was taken after its first line come again."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def read_csv(file: BinaryIO, name: str, longest: int = LONGEST_LINE, *, delimiter: str) -> Iterator[Record]:
    """Rows by the names in the first one; ``line`` is the line of the file in which a row begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text_file:
        lines = _Lines(text_file, longest)
        header, delimiter, note = _read_header(lines, delimiter, name)
        for number, row in _csv_rows(lines, delimiter, len(header)):
            if isinstance(row, tuple):
                yield reject(name, number, *row)
                continue
            value: dict[str, Any] = dict(zip(header, row, strict=True))
            text = json.dumps(value, ensure_ascii=False)
            if not encodes(text):
                yield reject(name, number, text, "invalid UTF-8")
                continue
            spans = (Notes.QUOTED, f"{name}:{number}") if _hides_rows(lines.taken, delimiter, len(header)) else None
            yield record(name, number, value, text, spans or note)
            note = note if spans else None


def _read_header(lines: _Lines, delimiter: str, name: str) -> tuple[list[str], str, tuple[str, str] | None]:
    """The names of the columns, and what stands between them: where it is a semicolon, with a note."""
    note = None
    try:
        header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        semicolons = len(header) == 1 and ";" in header[0]
    except csv.Error:
        header, semicolons = [], True
    except _TooLongError as error:
        raise DataError(f"{name}: the first line names the columns, and it is {error}") from None
    refuse_other_encodings("".join(lines.taken[:1]).encode(errors="surrogateescape"), name)
    if semicolons and delimiter == ",":
        delimiter, note = ";", (Notes.SEMICOLON, name)
        header = next(csv.reader(lines.taken, delimiter=delimiter, strict=True), [])
    check_columns(header, name)
    return header, delimiter, note


def _csv_rows(lines: _Lines, delimiter: str, width: int) -> Iterator[tuple[int, list[str] | Broken]]:
    """Rows with the line that each begins in.

    Of a record that ends in an error the first line is broken, and reading goes on at the next: a stray quote takes in
    what follows it. A record that ends well with another number of fields is broken in all its lines.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = lines.begin()
        try:
            row = next(rows, None)
        except (csv.Error, _TooLongError) as error:
            last = "" if len(lines.taken) == 1 else f" in line {lines.number:,}, with a quote that opens before it"
            text = lines.taken[0].rstrip("\r\n")
            lines.give_again()
            yield first, (text, f"broken CSV: {error}{last}")
            continue
        if row is None:
            return
        if len(row) == width:
            yield first, row
        elif row:
            where = f"lines {first:,} to {lines.number:,} make one row of " if len(lines.taken) > 1 else ""
            reason = f"{where}{len(row)} fields, the header has {width}"
            texts = [line.rstrip("\r\n") for line in lines.taken]
            yield from ((first + at, (text, reason)) for at, text in enumerate(texts))


def _hides_rows(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether each of several lines that a quote holds together looks like a row."""
    return len(lines) > 2 and width > 1 and all(line.count(delimiter) == width - 1 for line in lines)
