"""Python values as JSON can hold them."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value in JSON's own types.

    NaN, which tables use for a missing value, becomes null; an infinite number is left for the caller to judge. Times
    become ISO 8601, decimals text, bytes text where they are UTF-8 and base64 where not, arrays lists.

    Raises:
        ValueError: A type that JSON has nothing for.
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
    """JSON text with characters as they are and keys in their order.

    Raises:
        ValueError: The value holds an infinite number or something that JSON has nothing for.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        simple = plain(value)
    try:
        return json.dumps(simple, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError("Infinity is not a JSON number") from error
