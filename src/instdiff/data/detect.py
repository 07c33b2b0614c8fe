"""Which shape the rows have: said by the user, or by a vote of the first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instdiff.data.formats import FORMATS, Format, Record, conversation, optional_text, system_turn, text
from instdiff.data.sample import Message, Sample
from instdiff.errors import ConfigError, DataError, did_you_mean

MAP_KEYS = ("instruction", "input", "response", "system", "messages")


def requested_format(format: str | None, map: Mapping[str, str] | None) -> Format | None:
    """The shape that the user asked for, if any.

    Raises:
        ConfigError: An unknown name, or a mapping that does not make a sample.
    """
    if map:
        if format is not None:
            raise ConfigError("give a format or a map, not both")
        return _mapping_format(dict(map))
    if format is None:
        return None
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'{did_you_mean(format, FORMATS)}")
    return FORMATS[format]


def vote(rows: Sequence[Record]) -> Format | None:
    """The shape whose keys most rows have; None where no row has those of any."""
    open_ = {name: form for name, form in FORMATS.items() if not form.asked}
    counts = Counter(
        name for row in rows for name in [next((n for n, form in open_.items() if form.fits(row)), None)] if name
    )
    # A tie goes to the shape that stands first in the table, not to the row that came first.
    return FORMATS[max(FORMATS, key=lambda name: counts[name])] if counts else None


def known_formats() -> str:
    """All shapes with the keys that they need, for messages."""
    return "; ".join(
        f"{name} ({', '.join(' or '.join(group) for group in form.required)})" for name, form in FORMATS.items()
    )


def check_columns(map: Mapping[str, str], keys: Iterable[str], origin: str) -> None:
    """Raises where a mapped column is in no row.

    Raises:
        DataError: Names the column and those there are.
    """
    there = list(keys)
    for key, column in map.items():
        if column not in there:
            raise DataError(
                f"{origin}: map {key}={column}: no row has a column '{column}'"
                f"{did_you_mean(column, there)}; columns: {', '.join(there)}"
            )


def _mapping_format(map: dict[str, str]) -> Format:
    for key in map:
        if key not in MAP_KEYS:
            raise ConfigError(f"unknown map key '{key}'{did_you_mean(key, MAP_KEYS)}")
    if "messages" in map:
        clash = sorted(set(map) - {"messages", "system"})
        if clash:
            raise ConfigError(f"map: messages holds the whole conversation, '{clash[0]}' cannot stand beside it")
        return Format("map", lambda row: _whole_sample(row, map), ((map["messages"],),), tuple(map.values()))
    for key in ("instruction", "response"):
        if key not in map:
            raise ConfigError(f"map lacks '{key}': give instruction=COLUMN,response=COLUMN or messages=COLUMN")
    required = ((map["instruction"],), (map["response"],))
    return Format("map", lambda row: _single(row, map), required, tuple(map.values()))


def _whole_sample(row: Record, map: Mapping[str, str]) -> Sample:
    renamed: dict[str, Any] = {"tools": row.get("tools")}
    if map["messages"] in row:
        renamed[map["messages"]] = row[map["messages"]]
    if "system" in map:
        renamed["system"] = row.get(map["system"])
    return conversation(renamed if map["messages"] in row else row, map["messages"])


def _single(row: Record, map: Mapping[str, str]) -> Sample:
    messages = system_turn(row, map["system"]) if "system" in map else []
    second = optional_text(row, map["input"]) if "input" in map else ""
    messages.append(Message("user", text(row, map["instruction"]), second))
    messages.append(Message("assistant", text(row, map["response"])))
    return Sample(tuple(messages))
