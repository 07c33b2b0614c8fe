"""What a row holds: its texts, and lists and objects that lie in texts.

Functions raise ``ValueError`` with a reason for a person to read. A null is a missing key.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from instdiff.data.records import RepeatedKeyError, decode_strictly, nested_too_deep

Record = Mapping[str, Any]


class TooDeepError(ValueError):
    """JSON text that is nested deeper than what reads a row can go."""


def require(row: Record, key: str) -> Any:
    """The value of a key that must be there."""
    if key not in row:
        raise ValueError(f"missing key '{key}'; {has(row)}")
    return row[key]


def text(row: Record, key: str) -> str:
    """The text of a key that must be there."""
    value = require(row, key)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' is {kind(value)}, text is expected")
    return value


def optional_text(row: Record, key: str) -> str:
    """The text of a key that may be missing or null."""
    return "" if row.get(key) is None else text(row, key)


def first_key(row: Record, keys: Iterable[str]) -> str | None:
    """The first of these keys whose value is not null."""
    return next((key for key in keys if row.get(key) is not None), None)


def parse_json(said: str) -> Any:
    """The value of a JSON text.

    A ValueError also where UTF-8 could not hold it, it is nested too deep, or an object has a key twice.
    """
    try:
        value = decode_strictly(said)
    except RecursionError:
        raise TooDeepError("nested too deep") from None
    if nested_too_deep(value, said):
        raise TooDeepError("nested too deep")
    if "\\u" in said:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def refuse_unusable(said: str, what: str) -> None:
    """A ValueError for JSON text that is nested too deep or has a key twice; others are left to whoever reads them."""
    try:
        parse_json(said)
    except TooDeepError:
        raise ValueError(f"{what} is nested too deep") from None
    except RepeatedKeyError as error:
        raise ValueError(f"in {what} {error}") from None
    except ValueError:
        return


def unpack(value: Any, what: str) -> Any:
    """A list or object that lies in a text, as JSON or as Python writes it; any other value as it is.

    CSV has only texts. A literal is read, never evaluated. Text that begins like a list and is none is a ValueError,
    which calls it ``what``.
    """
    if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
        return value
    try:
        return parse_json(value)
    except RepeatedKeyError as error:
        raise RepeatedKeyError(f"in {what} {error}") from None
    except ValueError:
        return _literal(value, what)


def _literal(value: str, what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that Python does not know
            return parse_json(json.dumps(ast.literal_eval(value.strip()), allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        if value.lstrip()[0] == "{":
            return value
        raise ValueError(f"{what} is text that begins like a list but is neither JSON nor a Python literal") from None


def unpack_if_whole(value: Any) -> Any:
    """As ``unpack``; a text that is neither stays a text."""
    try:
        return unpack(value, "")
    except ValueError:
        return value


def has(row: Record) -> str:
    """The keys of a row, for messages."""
    return f"it has: {', '.join(map(str, row)) or 'nothing'}"


def kind(value: Any) -> str:
    """What a value is, for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
