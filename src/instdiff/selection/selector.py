"""Rank, cut to the budget, hand over the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from instdiff.core import NEAR_DUPLICATE, Budget, Scored
from instdiff.core.budget import divide, parse_budget
from instdiff.core.caps import Caps, Per, parse_per
from instdiff.data import Pool
from instdiff.data.load import as_pool
from instdiff.errors import ConfigError, DataError, PlanError, did_you_mean
from instdiff.scoring.table import ScoreTable
from instdiff.selection.chosen import Chosen, check_same_rows
from instdiff.selection.contrast import Contrast, contrast
from instdiff.selection.copies import without_copies
from instdiff.selection.export.asked import Exported
from instdiff.selection.export.export import export
from instdiff.selection.per import best_of_each, caps_of, tell

Order = Literal["rank", "input"]


class Selection(Chosen):
    """A subset of a pool, in the order in which it is written."""

    def export(self, format: str, output: str | Path, **how: Any) -> Exported:
        """Write the rows in a trainer's format, such as ``trl``, into a folder, as ``instdiff.export`` does."""
        return export(self, format, output, **how)

    def compare(self, other: Chosen | str = "random", *, by: str | None = None, seed: int = 0) -> Contrast:
        """What these rows and others of the same pool share: overlap, lengths, words covered, sources.

        Nothing is trained. ``random`` draws as much of the same budget from the rows that can be taken. Sources are
        told apart ``by`` a column; by default the first of the usual names that there is.

        Raises:
            ConfigError: the other is neither a selection of the same pool nor ``random``.
            DataError: there is no such column.
        """
        return contrast(self, other, by, seed)


def select(
    pool: Any,
    scored: Scored | ScoreTable,
    budget: str | int | Budget | None = None,
    *,
    per: str | Per | Sequence[Any] | None = None,
    order: Order = "rank",
    group_by: str | None = None,
    quota: Mapping[str, str | int | Budget] | None = None,
    near_duplicates: float | None = None,
    meta: dict[str, Any] | None = None,
) -> Selection:
    """The best rows within a budget (see ``parse_budget``), by one method's scores, as ``scores["ifd"]``.

    A score table of one method is taken for its scores. The budget is ``10%`` where none is given.

    With ``per``, as ``("prompt", 1)`` or ``"source 3"``, the best so many rows of each prompt, or of each value of a
    column, are chosen from; methods that look at what they have taken pass over a row whose value has so many. Without
    a budget all that is left is taken. A row without a value is one of its own.

    With ``group_by``, a column of the input, each of its values gets the same share; what one cannot fill goes to the
    others, so that a count of rows holds. Of tokens each group takes its crossing row. ``quota`` are budgets of groups
    by name, each of its group's rows; groups that are not named share ``budget`` as if they were all there is. With
    ``near_duplicates``, such as 0.8, a row that shares so much of its word triples with a better row (Jaccard) is left
    out, and the budget is met by others; a row that ``per`` leaves out is no better row. ``meta`` says in the record
    what the scores came from, by default what they say themselves.

    Raises:
        DataError: the scores are of other rows, there is no such column, or nothing is left to select.
        ConfigError: ``per`` is no column with a number, there is no group of a quota, or a value has another type.
        PlanError: a token budget without token counts, or a selection that needs a store which is not there.
    """
    pool, scored = as_pool(pool), _one_method(scored)
    check_same_rows(pool, scored.ids)
    bound, whole = parse_per(per) or scored.method.default_per, budget is None
    budget = parse_budget(("100%" if bound else "10%") if budget is None else budget)
    caps = None if bound is None else caps_of(pool, bound)
    quotas = {name: parse_budget(amount) for name, amount in (quota or {}).items()}
    _check(order, scored, budget, *quotas.values())
    scored = scored if near_duplicates is None else without_copies(pool, scored, near_duplicates, caps)
    if quotas and group_by is None:
        raise ConfigError("'quota' is of groups, and none are named; give --group-by COLUMN")
    at, groups, asked = _take(pool, scored, budget, group_by, quotas, caps)
    if len(at) == 0:
        raise DataError(f"budget '{budget}' of {len(scored)} rows takes none; give a larger one")
    facts = tell(pool, scored, bound, caps, at) if bound and caps else None
    asked = len(at) if facts and whole and not quotas else asked
    rows = np.sort(at) if order == "input" else at
    return Selection(pool, rows, scored, budget, dict(meta or scored.meta), groups, asked, facts, near_duplicates)


def _check(order: str, scored: Scored, *budgets: Budget) -> None:
    """Raise a PlanError where a budget counts tokens that nobody counted, a DataError where no row has a score."""
    if order not in get_args(Order):
        raise ConfigError(f"order is rank or input, not {order!r}")
    for one in budgets:
        if one.of_tokens and np.any(scored.n_tokens < 0):
            raise PlanError(
                f"budget '{one}' counts tokens, but these scores were made without a tokenizer; score with --model"
            )
    if not scored.eligible.any():
        raise DataError(f"no row has a score by {scored.name}: {_count_text(scored)}")


def _take(
    pool: Pool, scored: Scored, budget: Budget, by: str | None, quotas: Mapping[str, Budget], caps: Caps | None
) -> tuple[npt.NDArray[np.int64], dict[str, Any] | None, int]:
    """Rows best first, what is told of groups, and how much is asked for in the budget's unit."""
    if by is None:
        return _pick(scored, np.arange(len(scored)), budget, caps), None, budget.target(scored)
    at, counts, asked = _by_group(scored, budget, pool.column(by), quotas, caps)
    return at, {"by": by, "rows": counts}, asked


def _pick(scored: Scored, rows: npt.NDArray[np.int64], budget: Budget, caps: Caps | None) -> npt.NDArray[np.int64]:
    """What the method picks of some rows: near copies are no part of its problem, nor what ``caps`` leave out.

    Shares are of all of the rows.
    """
    kept: npt.NDArray[np.int64] = rows[np.asarray(scored.reason[rows] != NEAR_DUPLICATE, bool)]
    best = best_of_each(scored.take(kept), None if caps is None else caps.take(kept))
    kept, caps = (kept, caps) if best is None else (kept[best], None)
    amount = budget if len(kept) == len(rows) else budget.as_count(scored.take(rows))
    part = replace(scored, caps=caps)
    return kept[scored.method.pick(part if len(kept) == len(scored) else part.take(kept), amount)]


def select_listed(
    pool: Pool, scored: Scored, path: str, *, order: Order = "rank", meta: dict[str, Any] | None = None
) -> Selection:
    """The rows whose numbers a file lists, one in each line, in its order.

    Raises:
        DataError: a line is no number of a row, or one that stands there already; or the file cannot be read.
    """
    check_same_rows(pool, scored.ids)
    place = {row: at for at, row in enumerate(pool.rows.tolist())}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"the row numbers '{path}' cannot be read: {error}") from None
    at: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        row = place.get(int(text)) if text.isdecimal() else None
        if text and (row is None or row in at):
            why = "stands there twice" if row in at else f"is no row of {pool.origin}"
            raise DataError(f"{path}:{number}: '{text[:40]}' {why}; give the number of a row, from 0, in each line")
        at |= {} if row is None else {row: number}
    if not at:
        raise DataError(f"'{path}' lists no row; give the number of a row, from 0, in each line")
    rows = np.array(sorted(at) if order == "input" else list(at), np.int64)
    return Selection(pool, rows, scored, Budget(len(rows), "rows"), dict(meta or scored.meta), None, len(rows))


def _one_method(scores: Scored | ScoreTable) -> Scored:
    if isinstance(scores, Scored):
        return scores
    if not isinstance(scores, ScoreTable):
        raise ConfigError(f"rows are selected by a method's scores, as scores['ifd']; not by {type(scores).__name__}")
    if len(scores.scored) != 1:
        raise ConfigError(f"these scores are of several methods; give one, as scores['{next(iter(scores), 'ifd')}']")
    return scores[next(iter(scores))]


def _by_group(
    scored: Scored, budget: Budget, column: list[Any], quotas: Mapping[str, Budget], caps: Caps | None
) -> tuple[npt.NDArray[np.int64], dict[str, int], int]:
    """Rows best first, how many each group has, and how much is asked for in the budget's unit.

    ``caps`` come before the groups; a method that holds them itself is bound by what earlier groups took.
    """
    names = np.array(["null" if value is None else str(value) for value in column], object)
    parts = {name: np.flatnonzero(names == name) for name in sorted(set(names))}
    kept, inside = best_of_each(scored, caps), np.ones(len(scored), bool)
    if kept is not None:
        inside, caps = np.isin(np.arange(len(scored)), kept), None
    for name in quotas:
        if name not in parts:
            raise ConfigError(f"'quota.{name}': there is no such group{did_you_mean(name, parts)}")
    amounts = {name: quotas[name].as_count(scored.take(parts[name])) for name in quotas}
    asked = sum(int(amount.amount) for amount in amounts.values() if amount.unit == budget.unit)
    others = {name: scored.take(rows) for name, rows in parts.items() if name not in quotas}
    if others:
        whole = scored.take(np.concatenate([parts[name] for name in others]))
        counts = divide(
            budget.target(whole),
            [_weight(part, budget) for part in others.values()],
            [_most(scored, parts[name][inside[parts[name]]], budget, caps) for name in others],
        )
        asked += budget.target(whole)
        amounts |= {name: budget.count(count) for name, count in zip(others, counts, strict=True)}
    chosen = {}
    for name, every in parts.items():
        rows = every[inside[every]]
        some = amounts[name].target(scored.take(rows)) > 0
        chosen[name] = _pick(scored, rows, amounts[name], caps) if some else rows[:0]
        caps = None if caps is None else caps.after(chosen[name])
    # Best first over all groups; rows that only the ranking of their group came to are last.
    rank = np.full(len(scored), len(scored))
    best = scored.best()
    rank[best] = np.arange(len(best))
    at = np.concatenate(list(chosen.values()))
    return at[np.argsort(rank[at], kind="stable")], {name: len(rows) for name, rows in chosen.items()}, asked


def _most(scored: Scored, rows: npt.NDArray[np.int64], budget: Budget, caps: Caps | None) -> int:
    """How much of these rows can be taken, in the budget's unit."""
    rows = rows[scored.takeable[rows]]
    if caps is not None:
        rows = caps.limit(rows[np.argsort(-np.nan_to_num(scored.value[rows], nan=-np.inf), kind="stable")])
    return int(budget.costs(scored)[rows].sum()) if budget.of_tokens else len(rows)


def _weight(part: Scored, budget: Budget) -> int:
    """What a group counts in a budget's unit."""
    if budget.of_tokens:
        return int(budget.costs(part)[part.scorable].sum())
    return int(part.takeable.sum()) if budget.kind == "eligible" else len(part)


def _count_text(scored: Scored) -> str:
    words = Counter(str(word) for word in scored.reason if word is not None)
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def sample_rows(count: int, size: int, seed: int, limit: int | None = None) -> list[int]:
    """The published seeded draw: ``size`` of the first ``limit`` positions, all of them where there are no more."""
    import random

    population = range(count if limit is None else min(limit, count))
    return list(population) if size >= len(population) else random.Random(seed).sample(population, size)
