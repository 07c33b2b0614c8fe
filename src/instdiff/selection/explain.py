"""One row: its scores and ranks, why, and its tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from instdiff.core import Log, Scored
from instdiff.data import Pool, Sample
from instdiff.errors import DataError
from instdiff.methods import METHODS
from instdiff.scoring.table import ScoreTable
from instdiff.selection.reasons import budget_reached, place_in_selection, rank_of, reasons
from instdiff.selection.record import Found
from instdiff.selection.selector import check_same_rows
from instdiff.selection.tokens import NOTHING, Spoken, stored_tokens

LISTED = 5


def explain(
    pool: Pool,
    table: ScoreTable,
    row: str | int,
    *,
    selection: Found | None = None,
    store: str | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """All there is to say about one row, as plain values; tokens as ``Spoken`` under ``tokens``.

    Args:
        pool: the rows that were scored.
        table: their scores.
        row: its position in the input, or its id or the beginning of it.
        selection: says whether the row was chosen.
        store: where token values are; by default where the score file says.
        log: is told what happens.

    Raises:
        DataError: there is no such row, several begin with this id, or the scores are of other rows.
    """
    check_same_rows(pool, table.ids)
    at = place_of(table, str(row))
    number, name = int(table.rows[at]), table.ids[at]
    shown, lacking = stored_tokens(pool.take([at]), table.scored.values(), table.meta, store, log)
    facts: dict[str, Any] = {
        "row": number,
        "id": name,
        "n_tokens": int(table.n_tokens[at]) if table.n_tokens[at] >= 0 else None,
        "truncated": bool(table.truncated[at]),
        "copies": [int(table.rows[k]) for k, other in enumerate(table.ids) if other == name and k != at],
        "turns": turns(pool.sample(at)),
        "methods": {method: _by_method(scored, at) for method, scored in table.scored.items()},
        "tokens": shown,
        "lacking": lacking,
    }
    if lacking and not shown and lacking != [NOTHING]:
        facts["to_see_tokens"] = score_command(table.meta, store)
    if selection is not None:
        facts["selection"] = _selection(table, selection, at, number)
    return facts


def place_of(table: ScoreTable, row: str) -> int:
    """The position of a row that is named by its number or the beginning of its id.

    Raises:
        DataError: there is none, or more than one.
    """
    last = int(table.rows.max(initial=-1))
    if row.isdecimal() and int(row) <= last:
        found = np.flatnonzero(table.rows == int(row))
        if len(found):
            return int(found[0])
        raise DataError(f"row {row} was not scored: its record was rejected when the data was read")
    matching = [at for at, name in enumerate(table.ids) if name.startswith(row.lower())] if row else []
    ids = sorted({table.ids[at] for at in matching})
    if len(ids) == 1:
        return matching[0]
    if ids:
        some = ", ".join(name[: len(row) + 6] for name in ids[:LISTED])
        raise DataError(f"{len(ids)} rows have an id that begins with '{row}' ({some}); give more of it")
    raise DataError(f"no row '{row}': rows are 0 to {last:,}, or give an id or its beginning")


def turns(sample: Sample) -> list[dict[str, str]]:
    """The turns of a sample, each with who speaks."""
    tools = [{"role": "tools", "content": sample.tools}] if sample.tools else []
    said = [{"role": m.role, "content": m.content, **({"input": m.input} if m.input else {})} for m in sample.messages]
    return tools + said


def _by_method(scored: Scored, at: int) -> dict[str, Any]:
    facts = rank_of(scored.value, at)
    if scored.eligible[at]:
        facts["rank"] = int(np.flatnonzero(scored.best() == at)[0]) + 1  # as selecting breaks ties
    said = reasons(scored, at)
    budget = budget_reached(scored, at)
    return {
        **facts,
        "why": scored.reason[at],
        "reasons": said + ([budget] if budget else []),
        "details": {name: rank_of(values, at) for name, values in scored.details.items()},
    }


def _selection(table: ScoreTable, selection: Found, at: int, row: int) -> dict[str, Any]:
    record = selection.record
    if record is None:
        taken = table.ids[at] in selection.ids
        place = selection.ids.index(table.ids[at]) + 1 if taken else None
        said = f"{'chosen' if taken else 'not chosen'}; without selection.json there is no word why"
        return {"rows": len(selection.ids), "chosen": taken, "place": place, "reason": said}
    known = record.get("data", {}).get("fingerprint")
    mine = table.meta.get("data", {}).get("fingerprint")
    if known and mine and known != mine:
        raise DataError(f"'{selection.name}' is a selection of other data ({record['data'].get('origin')})")
    if record["method"] not in table.scored:
        taken = row in record["rows"]
        said = f"{'chosen' if taken else 'not chosen'} by {record['method']}, whose scores are not in this file"
        return {"method": record["method"], "chosen": taken, "reason": said}
    return place_in_selection(table.scored[record["method"]], record, at, row)


def score_command(meta: Mapping[str, Any], store: str | None = None, output: str = "scores.parquet") -> str:
    """The command that made a score file, as far as its metadata says."""
    words = ["instdiff", "score", "--data", str(meta.get("data", {}).get("origin", "DATA"))]
    for role, facts in meta.get("models", {}).items():
        words += ["--model", f"{role}={facts['where']}"]
    if (template := meta.get("models", {}).get("base", {}).get("template")) not in (None, "alpaca"):
        words += ["--template", str(template)]
    for name, entry in meta.get("methods", {}).items():
        words += method_words(name, entry)
    settings = meta.get("settings", {})
    for key, usual in (("max_length", 2048), ("targets", "all"), ("dtype", "")):
        if settings.get(key, usual) != usual:
            words += [f"--{key.replace('_', '-')}", str(settings[key])]
    target = meta.get("target", {}).get("origin")
    words += ["--target", str(target)] if target else []
    words += ["--store", store] if store else []
    return shlex.join([*words, "--output", output])


def method_words(name: str, entry: Mapping[str, Any]) -> list[str]:
    """``--method`` with the parameters that are not the defaults."""
    spec, params = str(entry.get("spec", name)), entry.get("params", {})
    usual = METHODS[spec]().params() if spec in METHODS else {}
    words = ["--method", spec]
    for key, value in params.items():
        if spec in METHODS and usual.get(key) != value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words += ["--set", f"{name}.{key}={text}"]
    return words


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts with tokens as JSON can hold them."""
    tokens: list[Spoken] = facts["tokens"]
    return {**facts, "tokens": [_plain(one) for one in tokens]}


def _plain(one: Spoken) -> dict[str, Any]:
    finite = {name: [v if np.isfinite(v) else None for v in values] for name, values in one.columns.items()}
    return {"view": one.view, "pieces": one.pieces, "target": one.target, "columns": finite}
