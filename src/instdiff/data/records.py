"""What readers give: records with their place, so that a bad one can be named and skipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from instdiff.errors import DataError

LONGEST_LINE = 256 << 20
"""Bytes of a line; a longer one is no row."""
DEEPEST = 200
"""Lists and objects within each other; what reads a row later recurs, and Python ends that at about a thousand."""
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


LACKS = object()
"""What a row has under a key that is not there."""


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What lies under a key, or under keys within each other with dots between them; ``LACKS`` where nothing does."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return LACKS
        value = value[key]
    return value


def record(name: str, number: int, value: dict[str, Any], text: str, note: tuple[str, str] | None = None) -> Record:
    """A row with its place; one that is nested too deep cannot be used."""
    if nested_too_deep(value, text):
        return reject(name, number, text, f"nested too deep: more than {DEEPEST} levels")
    return Record(name, number, value, text, "", note)


def nested_too_deep(value: Any, text: str) -> bool:
    """Whether a value, which has this JSON text, is nested deeper than what reads it can go."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    here: list[Any] = [value]
    for _ in range(DEEPEST):
        inner: Iterable[Any] = (part for whole in here for part in (whole.values() if type(whole) is dict else whole))
        here = [part for part in inner if type(part) in (dict, list)]
        if not here:
            return False
    return True


class RepeatedKeyError(ValueError):
    """An object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key '{twice}' is there twice in one object; keep one")
    return found


decode_strictly = json.JSONDecoder(object_pairs_hook=_unique).decode
"""The value of a JSON text; a RepeatedKeyError where an object has a key twice. A third slower than ``json``."""


def reject(name: str, number: int, text: str, reason: str) -> Record:
    """A record that cannot be used, its text cut and made writable."""
    return Record(name, number, None, text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode(), reason)


def refuse_other_encodings(start: bytes, name: str) -> None:
    """Raises where a file starts with the mark of an encoding in which every line would be bad."""
    wide = start[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
    if wide or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: this is {'UTF-32' if wide else 'UTF-16'}; save it as UTF-8")


def check_columns(columns: list[str], name: str) -> None:
    """A DataError where two columns have one name."""
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: column '{twice[0]}' is there twice; rename one")


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
