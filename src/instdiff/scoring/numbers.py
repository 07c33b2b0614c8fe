"""A number for each row that is there already: in a column of the data, or in a file of another tool."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from instdiff.core import Floats, Number
from instdiff.core.arrays.ids import Ids
from instdiff.core.columns import Reasons, no_reasons
from instdiff.data import Pool
from instdiff.data.load import read_records
from instdiff.data.records import LACKS, value_at
from instdiff.errors import ConfigError, DataError, did_you_mean
from instdiff.scoring.table import ScoreTable, read_scores

Found = tuple[Any, str, str]
"""A value, where it stands, and why there is none, in one word."""


def read_numbers(pool: Pool, of: Number) -> tuple[Floats, Reasons]:
    """Per row a number, NaN where it has none, and the reason.

    Booleans are 1 and 0, and text that is a number counts. A DataError for lists and other text, for records that
    cannot be joined, and for two records of one id with different values.
    """
    if not of.path and ":" not in (of.file or ""):
        raise ConfigError("'column.path' names no column; give --set column.path=COLUMN")
    values, reason = np.full(len(pool), np.nan), no_reasons(len(pool)).copy()
    for at, (value, place, word) in enumerate(_own(pool, of) if of.file is None else _joined(pool, of, of.file)):
        number = _number(value, of.path, place)
        if number is None or not math.isfinite(number):
            reason[at] = word or ("no_value" if number is None else "non_finite")
        else:
            values[at] = number
    return values, reason


def _number(value: Any, path: str, place: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}…"
        raise DataError(f"{place}: '{path}' is {shown}, which is no number; name another column") from None


def _own(pool: Pool, of: Number) -> Iterable[Found]:
    for row, value in zip(pool.rows.tolist(), pool.column(of.path), strict=True):
        yield value, f"row {row} of {pool.origin}", ""


def _joined(pool: Pool, of: Number, file: str) -> Iterable[Found]:
    name, _, method = file.rpartition(":")
    if name.endswith(".parquet"):
        table = read_scores(name)
        values, reason = _of_scores(table, method)
        own = ((value, name, word or "") for value, word in zip(values.tolist(), reason, strict=True))
        known = dict(zip(_numbered(table.ids), own, strict=True))
        return [known.get(one, (None, name, "")) for one in _numbered(pool.ids)]
    records = [_record(one, of.path) for one in read_records(file)]
    if all(found[0] is None for _, found in records):
        raise DataError(f"no record of '{file}' has a value under '{of.path}'; name another column.path")
    if of.by == "line":
        if len(records) != len(pool):
            raise DataError(
                f"'{file}' has {len(records):,} records and the data {len(pool):,} rows, so lines do not correspond; "
                "join them by the column id"
            )
        return [found for _, found in records]
    by_id = dict[str, Found]()
    for key, found in records:
        if key is None:
            raise DataError(f"{found[1]}: the record has no 'id' to join it by; where lines correspond, give by: line")
        if by_id.setdefault(key, found)[0] != found[0]:
            raise DataError(f"{found[1]}: id '{key}' has another value at {by_id[key][1]}; keep one of the records")
    try:
        names = pool.column("id")
    except DataError:
        raise DataError(
            f"the rows of {pool.origin} have no column 'id' to join '{file}' by; where lines correspond, give by: line"
        ) from None
    if by_id.keys().isdisjoint(map(str, names)):
        raise DataError(
            f"no record of '{file}' has the id of a row of {pool.origin}; for scores of instdiff write "
            "FILE.parquet:METHOD"
        )
    return [by_id.get(str(key), (None, file, "")) if key is not None else (None, file, "") for key in names]


def _numbered(ids: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Each id and how many rows before have it: copies have values of their own."""
    return zip(ids, Ids.of(ids).occurrence().tolist(), strict=True)


def _of_scores(table: ScoreTable, method: str) -> tuple[Floats, Reasons]:
    """The scores of a method, or one of its details, as ``METHOD.DETAIL``; and why there are none."""
    name, _, detail = method.partition(".")
    if method in table.scored or not detail:
        return table[method].value, table[method].reason
    details = table[name].details
    if detail not in details:
        raise DataError(f"the scores of '{name}' have no detail '{detail}'{did_you_mean(detail, details)}")
    return details[detail], no_reasons(len(table))


def _record(one: Any, path: str) -> tuple[str | None, Found]:
    place = f"{one.file}:{one.line}"
    if one.value is None:
        raise DataError(f"{place}: {one.reason}; correct the line, or leave it out")
    value, key = value_at(one.value, path), one.value.get("id")
    return None if key is None else str(key), (None if value is LACKS else value, place, "")
