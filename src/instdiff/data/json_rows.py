"""Rows of JSON files: one on each line, or all in an array."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections.abc import Iterator
from typing import Any, BinaryIO

from instdiff.core.display import visible
from instdiff.data.records import (
    LONGEST_LINE,
    Record,
    RepeatedKeyError,
    decode_strictly,
    encodes,
    record,
    refuse_other_encodings,
    reject,
)
from instdiff.errors import DataError

_PIECE = 1 << 20
_ALL, _SOME = 100, 64
"""Of so many rows at the start each is searched for repeated keys at every level, later one of so many."""
_WHOLE = 8
"""A file that is one array may be so many times as long as a line."""
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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

    def fault(self, value: Any, text: str, number: int) -> str:
        """What is wrong with the value that was decoded last, of this text and number, or nothing."""
        if not isinstance(value, dict):
            return f"a JSON object is expected, this is {type(value).__name__}"
        if self._bad:
            return f"{self._bad[0]} is not a JSON number"
        # A search of each row at every level would cost as much again as decoding it.
        if number > _ALL and number % _SOME:
            if text.count('":') == len(value):
                return ""
            for key in value:
                if text.count(f'"{key}":') > 1:
                    break
            else:
                return ""
        try:
            decode_strictly(text)
        except RepeatedKeyError as error:
            return str(error)
        return ""


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_lines(file: BinaryIO, name: str, longest: int = LONGEST_LINE, stop: int | None = None) -> Iterator[Record]:
    """JSON lines, of which the last begins before ``stop``; blank ones are skipped, bad ones are records without a row.

    One of more than ``longest`` bytes is bad too, and never held in memory.
    """
    decoder = Decoder()
    number, most, next_line = 0, longest + 1, file.readline
    while (stop is None or file.tell() < stop) and (raw := next_line(most)):
        number += 1
        if number == 1:
            refuse_other_encodings(raw, name)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > longest and raw[-1:] != b"\n":
            if (start := _pass_over(file, raw)) is not None:
                yield reject(name, number, start.decode(errors="backslashreplace"), too_long(longest))
            continue
        if line := raw.strip(b" \t\r\n"):
            yield _line(decoder, line, name, number)


def _pass_over(file: BinaryIO, raw: bytes) -> bytes | None:
    """Read to the end of a line that is too long; its start, or None where all of it is blank."""
    start, blank = raw[:_PIECE], not raw.strip()
    del raw
    while more := file.readline(_PIECE):
        blank = blank and not more.strip()
        if more[-1:] == b"\n":
            break
    return None if blank else start


def too_long(longest: int) -> str:
    """Why a line is no row."""
    return f"a line of more than {longest >> 20:,} MB; a higher longest_line_mb would read it"


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
    except RecursionError:
        return reject(name, number, text, "broken JSON: nested too deep")
    except ValueError as error:
        return reject(name, number, text, f"broken JSON: {error}")
    fault = decoder.fault(value, text, number)
    if not fault and _SURROGATE.search(line) and not encodes(json.dumps(value, ensure_ascii=False)):
        fault = "a lone surrogate, which UTF-8 cannot hold"
    return reject(name, number, text, fault) if fault else record(name, number, value, text)


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_json(file: BinaryIO, name: str, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """An array of objects, which is read as a whole: what is larger goes into a .jsonl file."""
    data = file.read(_WHOLE * longest + 1)
    if len(data) > _WHOLE * longest:
        raise DataError(
            f"{name}: this is more than {_WHOLE * longest >> 20:,} MB of JSON in one piece; write it as a .jsonl file, "
            "which is read line by line, or give a higher longest_line_mb"
        )
    refuse_other_encodings(data, name)
    data = data.removeprefix(b"\xef\xbb\xbf")
    # A byte that is no UTF-8 spoils the record that it lies in, not the file.
    text = data.decode(errors="surrogateescape")
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _read_array(text, start + 1, name)
    elif text[start : start + 1] == "{":
        yield from _read_objects(text, start, data, name, longest)
    elif start < len(text):
        raise DataError(f"{name}: an array of objects is expected, it starts with {text[start : start + 20]!r}")


def _read_array(text: str, at: int, name: str) -> Iterator[Record]:
    decoder = Decoder()
    number = 0
    at = _skip(text, at)
    while text[at : at + 1] != "]" or number:
        number += 1
        begin = at
        value, at = _value(decoder, text, at, name)
        yield _element(decoder, value, text[begin:at], name, number)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise _broken_json(text, at, name, "',' or ']' expected")
        at = _skip(text, at + 1)
    at = _skip(text, at + 1)
    if at < len(text):
        raise _broken_json(text, at, name, "text after the end of the array")


def _read_objects(text: str, start: int, data: bytes, name: str, longest: int) -> Iterator[Record]:
    """A file called .json that starts with an object: JSON lines under another name, or an error."""
    line_end = text.find("\n", start)
    if line_end >= 0 and _skip(text, line_end) < len(text) and begins_as_object(text[start:line_end]):
        yield from read_lines(io.BytesIO(data), name, longest)
        return
    value, _ = _value(Decoder(), text, start, name)
    inside = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if inside:
        hint = f"its rows seem to lie under '{inside[0]}'{_with_jq(f'.[{json.dumps(inside[0])}]', name)}"
    elif value and all(isinstance(item, dict) for item in value.values()):
        hint = f"its rows seem to lie under {len(value):,} keys{_with_jq('[.[]]', name)}"
    else:
        hint = "write it as an array of objects, or one object per line in a .jsonl file"
    raise DataError(f"{name}: one object is not a list of rows (keys: {', '.join(list(value)[:8])}); {hint}")


def _with_jq(wanted: str, name: str) -> str:
    """A command for a shell that takes the rows out; none where data would write it with characters nobody sees."""
    if "\\u" in wanted or visible(wanted + name) != wanted + name or "\n" in name:
        return "; write these as an array of objects"
    plain = re.fullmatch(r'\.\["([A-Za-z_]\w*)"\]', wanted, re.ASCII)
    file = name if not name.startswith("-") else f"./{name}"
    return f": jq {shlex.quote(f'.{plain[1]}' if plain else wanted)} {shlex.quote(file)} > rows.json"


def _value(decoder: Decoder, text: str, at: int, name: str) -> tuple[Any, int]:
    try:
        return decoder.next(text, at)
    except json.JSONDecodeError as error:
        raise _broken_json(text, error.pos, name, error.msg) from error
    except RecursionError as error:
        raise _broken_json(text, at, name, "nested too deep") from error
    except ValueError as error:
        raise _broken_json(text, at, name, str(error)) from error


def _element(decoder: Decoder, value: Any, said: str, name: str, number: int) -> Record:
    fault = decoder.fault(value, said, number)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return reject(name, number, said, "nested too deep")
    if not fault and not encodes(text):
        fault = "invalid UTF-8, or a lone surrogate, which UTF-8 cannot hold"
    return reject(name, number, text, fault) if fault else record(name, number, value, text)


def _broken_json(text: str, at: int, name: str, reason: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return DataError(
        f"{name}:{line}: broken JSON: {reason} at column {column}; correct the file, "
        "or give it as .jsonl, where only the bad line would be lost"
    )


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def begins_as_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
