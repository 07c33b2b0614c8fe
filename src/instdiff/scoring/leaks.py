"""What a report of ``instdiff decontaminate`` says of the rows that are scored."""

from __future__ import annotations

from typing import Any

import numpy as np

from instdiff.core import Floats, Leak
from instdiff.core.arrays.ids import Ids
from instdiff.core.files import read_json
from instdiff.data import Pool
from instdiff.errors import ConfigError, DataError

KEYS = ("data", "rows", "copies")


def read_leaks(pool: Pool, of: Leak) -> Floats:
    """Per row a number of the report, 0 for rows that it does not name.

    Raises:
        ConfigError: no report is named.
        DataError: the file is no report, or one of other rows.
    """
    if not of.report:
        raise ConfigError(
            "'decontaminate.report' names no file; run instdiff decontaminate with --output leaks.json, and give "
            "--set decontaminate.report=leaks.json"
        )
    told = read_json(of.report)
    whole = isinstance(told, dict) and all(key in told for key in KEYS)
    if not whole or not all("of_id" in one for one in told["copies"]):
        raise DataError(f"'{of.report}' is no report of `instdiff decontaminate`; its --output writes one")
    _check(pool, told, of.report)
    if of.what == "copy":
        return _copies(pool, told["copies"])
    known = {one["id"]: float(one.get(of.what, 1.0)) for one in told["rows"]}
    return np.array([known.get(name, 0.0) for name in pool.ids], np.float64)


def _copies(pool: Pool, told: list[dict[str, Any]]) -> Floats:
    """Which rows are copies of one that is here: an exact copy has its id, and the first of these stays."""
    # Where an id is listed as a copy of itself and of another row, the other one counts.
    told = sorted(told, key=lambda one: one["id"] != one["of_id"])
    stays = {one["id"]: one["of_id"] for one in told}
    ids, here = Ids.of(pool.ids), set(pool.ids)
    pairs = zip(ids, ids.occurrence().tolist(), strict=True)
    return np.array([i in stays and (n > 0 or (stays[i] != i and stays[i] in here)) for i, n in pairs], np.float64)


def _check(pool: Pool, told: dict[str, Any], report: str) -> None:
    """Raise a DataError where the report is of other rows: part of the rows that it is of may be scored."""
    data = told["data"]
    named = {one["id"] for one in (*told["rows"], *told["copies"])}
    if pool.fingerprint == data["fingerprint"] or not named.isdisjoint(pool.ids):
        return
    if pool.source != data["origin"] or len(pool) > data["rows"]:
        raise DataError(
            f"'{report}' is of other rows ({data['origin']}, {data['rows']:,} rows); run instdiff decontaminate on "
            f"{pool.origin}"
        )
