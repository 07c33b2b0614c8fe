"""Records: rows with their place, so that a bad one can be named and skipped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from instdiff.data.json_values import to_json
from instdiff.errors import DataError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONGEST_TEXT = 10_000


class Record(NamedTuple):
    """One record as it was read.

    Attributes:
        file: The file as the user named it.
        line: The line, or the number of the record where lines mean nothing; from 1.
        value: The row, or None where it cannot be used.
        text: The row as JSON text, or what was read instead.
        reason: Why there is no row.
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
    shown = text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode()
    return Record(name, number, None, shown, reason)


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
    """A record that could not become a sample.

    Attributes:
        file: The file as the user named it.
        line: The line, from 1; in json, parquet and csv the number of the record, from 1.
        reason: What does not fit.
        text: The record as it was read, cut where it is very long.
    """

    file: str
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"
