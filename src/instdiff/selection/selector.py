"""Rank, cut to the budget, hand over the rows."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Scored
from instdiff.core.budget import divide, parse_budget
from instdiff.core.files import write_record
from instdiff.core.sums import file_sum
from instdiff.data import Pool
from instdiff.errors import ConfigError, DataError, PlanError, did_you_mean
from instdiff.scoring.advice import excluded_text
from instdiff.scoring.table import html_table
from instdiff.version import __version__

Order = Literal["rank", "input"]
OUTPUT_SUM = "rows_crc32"
"""The key of a record that has the sum of the file of rows."""
NOTEBOOK, TEXT = 10, 200
"""Rows that a notebook shows, and characters of their texts."""


@dataclass(frozen=True)
class Selection:
    """A subset of a pool, in the order in which it is written.

    ``at`` are positions in the pool; ``rows`` positions in the input file, which differ where records were rejected.
    ``groups`` says, where there are any, by what column, and how many rows each has. ``asked`` is the budget as a count
    of rows, or of response tokens.
    """

    pool: Pool
    at: npt.NDArray[np.int64]
    scored: Scored
    budget: Budget
    meta: dict[str, Any]
    groups: dict[str, Any] | None = None
    asked: int = 0

    def __len__(self) -> int:
        return len(self.at)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Positions in the input."""
        return self.pool.rows[self.at]

    @property
    def ids(self) -> list[str]:
        """Content hashes, in order."""
        return [self.scored.ids[int(at)] for at in self.at]

    @property
    def n_tokens(self) -> int:
        """Response tokens of the subset; -1 where they were not counted."""
        tokens = self.scored.n_tokens[self.at]
        return int(tokens.sum()) if np.all(tokens >= 0) else -1

    def shortfall(self) -> str | None:
        """What is to be said where less was taken than was asked for."""
        got, of_tokens = self.n_tokens if self.budget.of_tokens else len(self), self.budget.of_tokens
        if got >= self.asked:
            return None
        excluded = excluded_text(self.scored)
        why = f" ({excluded})" if excluded else ""
        what = f"rows, {got:,} have a score"
        if of_tokens:
            what = f"response tokens, the {len(self):,} rows that have a score hold {got:,}"
        return (
            f"asked for {self.asked:,} {what}{why}; give a smaller budget, or a share of the rows that have a score, "
            "as --budget '50% eligible'"
        )

    def told(self) -> str:
        """What was selected of what, by which method, and what was asked for."""
        tokens = ""
        if self.n_tokens >= 0:
            whole = int(self.scored.n_tokens[self.scored.scorable].sum())
            tokens = f", {self.n_tokens:,} of {whole:,} response tokens,"
        share = 100 * len(self) / len(self.scored)
        unit = "response tokens" if self.budget.of_tokens else "rows"
        return (
            f"Selected {len(self):,} of {len(self.scored):,} rows ({share:.3g} %){tokens} by {self.scored.name} "
            f"(asked for {self.budget}: {self.asked:,} {unit})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: how much, and the first rows."""
        some = self.at[:NOTEBOOK]
        lines = [
            [int(row), float(self.scored.value[at]), sample.instruction[:TEXT], sample.response[:TEXT]]
            for row, at, sample in zip(self.rows, some, self.pool.take(some).samples(), strict=False)
        ]
        return f"<p>{html.escape(self.told())}</p>{html_table(['row', 'score', 'instruction', 'response'], lines)}"

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write the input's own rows as JSON lines."""
        self.pool.to_jsonl(path, self.at)

    def write(self, path: str | Path, *, with_scores: bool = False) -> None:
        """Write the input's own rows, by the path's ending; optionally with the method's columns."""
        extra: dict[str, Any] = {}
        if with_scores:
            columns = {self.scored.name: self.scored.value}
            columns |= {f"{self.scored.name}.{k}": v for k, v in self.scored.details.items()}
            extra = {name: values[self.at] for name, values in columns.items()}
        self.pool.write(path, self.at, extra)

    def record(self) -> dict[str, Any]:
        """What decided it, and which rows it took."""
        words = Counter(str(word) for word in self.scored.reason if word is not None)
        approximation = getattr(self.scored.method, "approximation", None)
        remark = self.scored.method.remark(self.scored, self.at)
        return {
            "instdiff": __version__,
            "method": self.scored.name,
            "params": self.scored.method.params(),
            **({"approximation": approximation} if approximation else {}),
            **({"remark": remark} if remark else {}),
            "budget": str(self.budget),
            "counts": {
                "pool_rows": len(self.scored),
                "scorable_rows": int(self.scored.scorable.sum()),
                "eligible_rows": int(self.scored.eligible.sum()),
                f"asked_{'tokens' if self.budget.of_tokens else 'rows'}": self.asked,
                "selected_rows": len(self),
                "scorable_tokens": _known_tokens(int(self.scored.n_tokens[self.scored.scorable].sum())),
                "selected_tokens": _known_tokens(self.n_tokens),
            },
            **({"groups": self.groups} if self.groups else {}),
            "excluded": dict(sorted(words.items())),
            "rows": self.rows.tolist(),
            "ids": self.ids,
            **{key: self.meta[key] for key in ("data", "models", "settings", "packages") if key in self.meta},
        }

    def write_record(self, path: str | Path, output: str | Path | None = None) -> dict[str, Any]:
        """Write the record and return it; it has a sum of the ``output`` that has the rows, where that is a file."""
        found = file_sum(output) if output is not None else None
        record = self.record() | ({OUTPUT_SUM: found} if found else {})
        write_record(path, record)
        return record


def _known_tokens(tokens: int) -> int | None:
    return tokens if tokens >= 0 else None


def select(
    pool: Pool,
    scored: Scored,
    budget: str | int | Budget = "10%",
    *,
    order: Order = "rank",
    group_by: str | None = None,
    quota: Mapping[str, str | int | Budget] | None = None,
    meta: dict[str, Any] | None = None,
) -> Selection:
    """The best rows within a budget (see ``parse_budget``), by one method's scores, as ``scores["ifd"]``.

    With ``group_by``, a column of the input, each of its values gets the same share; what one cannot fill goes to the
    others, so that a count of rows holds. Of tokens each group takes its crossing row. ``quota`` are budgets of groups
    by name, each of its group's rows; groups that are not named share ``budget`` as if they were all there is. ``meta``
    says in the record what the scores came from.

    Raises:
        DataError: the scores are of other rows, there is no such column, or nothing is left to select.
        ConfigError: a quota of a group that there is not.
        PlanError: a token budget without token counts, or a selection that needs a store which is not there.
    """
    check_same_rows(pool, scored.ids)
    budget = parse_budget(budget)
    quotas = {name: parse_budget(amount) for name, amount in (quota or {}).items()}
    for one in (budget, *quotas.values()):
        if one.of_tokens and np.any(scored.n_tokens < 0):
            raise PlanError(
                f"budget '{one}' counts tokens, but these scores were made without a tokenizer; score with --model"
            )
    if not scored.eligible.any():
        raise DataError(f"no row has a score by {scored.name}: {_count_text(scored)}")
    groups, asked = None, budget.target(scored)
    if group_by is not None:
        at, counts, asked = _by_group(scored, budget, pool.column(group_by), quotas)
        groups = {"by": group_by, "rows": counts}
    elif quotas:
        raise ConfigError("'quota' is of groups, and none are named; give --group-by COLUMN")
    else:
        at = scored.method.pick(scored, budget)
    if len(at) == 0:
        raise DataError(f"budget '{budget}' of {len(scored)} rows takes none; give a larger one")
    return Selection(pool, np.sort(at) if order == "input" else at, scored, budget, meta or {}, groups, asked)


def _by_group(
    scored: Scored, budget: Budget, column: list[Any], quotas: Mapping[str, Budget]
) -> tuple[npt.NDArray[np.int64], dict[str, int], int]:
    """Rows best first, how many each group has, and how much is asked for in the budget's unit."""
    names = np.array(["null" if value is None else str(value) for value in column], object)
    parts = {name: np.flatnonzero(names == name) for name in sorted(set(names))}
    for name in quotas:
        if name not in parts:
            raise ConfigError(f"'quota.{name}': there is no such group{did_you_mean(name, parts)}")
    amounts = {name: quotas[name].as_count(scored.take(parts[name])) for name in quotas}
    asked = sum(int(amount.amount) for amount in amounts.values() if amount.of_tokens is budget.of_tokens)
    others = {name: scored.take(rows) for name, rows in parts.items() if name not in quotas}
    if others:
        whole = scored.take(np.concatenate([parts[name] for name in others]))
        counts = divide(
            budget.target(whole),
            [_weight(part, budget) for part in others.values()],
            [
                int((part.n_tokens[part.takeable] if budget.of_tokens else part.takeable).sum())
                for part in others.values()
            ],
        )
        unit = budget.as_count(whole).kind
        asked += budget.target(whole)
        amounts |= {name: Budget(count, unit) for name, count in zip(others, counts, strict=True)}
    chosen = {}
    for name, rows in parts.items():
        part = scored.take(rows)
        chosen[name] = rows[scored.method.pick(part, amounts[name])] if amounts[name].target(part) else rows[:0]
    # Best first over all groups; rows that only the ranking of their group came to are last.
    rank = np.full(len(scored), len(scored))
    best = scored.best()
    rank[best] = np.arange(len(best))
    at = np.concatenate(list(chosen.values()))
    return at[np.argsort(rank[at], kind="stable")], {name: len(rows) for name, rows in chosen.items()}, asked


def _weight(part: Scored, budget: Budget) -> int:
    """What a group counts in a budget's unit."""
    if budget.of_tokens:
        return int(part.n_tokens[part.scorable].sum())
    return int(part.takeable.sum()) if budget.kind == "eligible" else len(part)


def _count_text(scored: Scored) -> str:
    words = Counter(str(word) for word in scored.reason if word is not None)
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def check_same_rows(pool: Pool, ids: Sequence[str]) -> None:
    """Raise a DataError that names the first row where scores and data do not belong together."""
    if len(pool) != len(ids):
        raise DataError(f"the scores have {len(ids)} rows, {pool.origin} has {len(pool)}; score this file again")
    for at, (mine, theirs) in enumerate(zip(pool.ids, ids, strict=True)):
        if mine != theirs:
            raise DataError(
                f"row {int(pool.rows[at])} of {pool.origin} is not the row that was scored; score this file again"
            )


def sample_rows(count: int, size: int, seed: int, limit: int | None = None) -> list[int]:
    """The published seeded draw: ``size`` of the first ``limit`` positions, all of them where there are no more."""
    import random

    population = range(count if limit is None else min(limit, count))
    return list(population) if size >= len(population) else random.Random(seed).sample(population, size)
