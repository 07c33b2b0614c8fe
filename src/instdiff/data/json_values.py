"""Python values as JSON can hold them, and rows that are Python objects already."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from instdiff.data.records import Record, record, reject


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
            yield record(name, number, json.loads(text), text)


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
