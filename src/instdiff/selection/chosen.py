"""Rows that were chosen, and the record of what decided it."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Scored
from instdiff.core.caps import Per
from instdiff.core.display import html_table
from instdiff.core.files import write_record
from instdiff.core.sums import file_sum
from instdiff.data import Pool
from instdiff.errors import DataError, did_you_mean
from instdiff.scoring.advice import excluded_text
from instdiff.version import __version__

OUTPUT_SUM = "rows_crc32"
"""The key of a record that has the sum of the file of rows."""
WEIGHT, WEIGHTS = "weight", "row_weights"
"""The column that has a factor on a row's loss, and the key of a record with those of all its rows."""
NOTEBOOK, TEXT = 10, 200
"""Rows that a notebook shows, and characters of their texts."""


@dataclass(frozen=True)
class Chosen:
    """A subset of a pool, in the order in which it is written.

    ``at`` are positions in the pool; ``rows`` positions in the input file, which differ where records were rejected.
    ``groups`` says, where there are any, by what column, and how many rows each has. ``asked`` is the budget as a count
    of rows, or of response tokens. ``per`` says how many rows of each value of a column were chosen from, and which
    values have none. ``near_duplicates`` is the similarity from which rows were left out as near copies. ``weights`` is
    the detail that is written as column ``weight``.
    """

    pool: Pool
    at: npt.NDArray[np.int64]
    scored: Scored
    budget: Budget
    meta: dict[str, Any]
    groups: dict[str, Any] | None = None
    asked: int = 0
    per: dict[str, Any] | None = None
    near_duplicates: float | None = None
    weights: str | None = None

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

    @property
    def spent(self) -> int:
        """What was taken in the budget's unit."""
        return int(self.budget.costs(self.scored)[self.at].sum()) if self.budget.of_tokens else len(self)

    def shortfall(self) -> str | None:
        """What is to be said where less was taken than was asked for."""
        got = self.spent
        if got >= self.asked:
            return None
        excluded = excluded_text(self.scored)
        why = f" ({excluded})" if excluded else ""
        left = "" if self.per is None else f", {self._bound.text},"
        what = f"rows, {got:,} have a score{left.removesuffix(',')}"
        if self.budget.of_tokens:
            what = f"{self.budget.unit}, the {len(self):,} rows that have a score{left} hold {got:,}"
        share = "a share of the rows that have a score, as --budget '50% eligible'"
        mend = share if self.per is None else "none, which takes all of these rows"
        return f"asked for {self.asked:,} {what}{why}; give a smaller budget, or {mend}"

    def idle(self) -> str | None:
        """What is to be said of rows that weigh nothing in training, where there are any."""
        none = int((self.scored.details[self.weights][self.at] == 0).sum()) if self.weights else 0
        if not none:
            return None
        return f"{none:,} of {len(self):,} selected rows have the weight 0, so training learns nothing from them"

    def told(self) -> str:
        """How much was selected of what, by which method, and what was asked for."""
        tokens = ""
        if self.n_tokens >= 0:
            whole = int(self.scored.n_tokens[self.scored.scorable].sum())
            tokens = f", {self.n_tokens:,} of {whole:,} response tokens,"
        share = 100 * len(self) / len(self.scored)
        per = f", {self._bound.text}" if self.per else ""
        return (
            f"{len(self):,} of {len(self.scored):,} rows ({share:.3g} %){tokens} by {self.scored.name}{per} "
            f"(asked for {self.budget}: {self.asked:,} {self.budget.unit})"
        )

    @property
    def _bound(self) -> Per:
        assert self.per is not None
        return Per(self.per["by"], self.per["most"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.told()}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: how much, and the first rows."""
        some = self.at[:NOTEBOOK]
        lines = [
            [int(row), float(self.scored.value[at]), sample.instruction[:TEXT], sample.response[:TEXT]]
            for row, at, sample in zip(self.rows, some, self.pool.take(some).samples(), strict=False)
        ]
        return f"<p>{html.escape(self.told())}</p>{html_table(['row', 'score', 'instruction', 'response'], lines)}"

    def to_pool(self) -> Pool:
        """The rows as a pool, in order."""
        return self.pool.take(self.at)

    def head(self, n: int = 5) -> list[dict[str, Any]]:
        """The input's own rows that come first."""
        return self.pool.source_rows(self.at[:n])

    def to_pandas(self, *, with_scores: bool = False) -> Any:
        """The input's own rows as a pandas data frame, optionally with the method's columns; a PlanError without it."""
        return self.to_pool().to_pandas().assign(**self._columns(with_scores))

    def to_dataset(self) -> Any:
        """The input's own rows as a ``datasets.Dataset``; a PlanError where that is missing."""
        return self.to_pool().to_dataset()

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write the input's own rows as JSON lines."""
        self.pool.to_jsonl(path, self.at)

    def write(self, path: str | Path, *, with_scores: bool = False) -> None:
        """Write the input's own rows, by the path's ending; optionally with the method's columns."""
        self.pool.write(path, self.at, self._columns(with_scores))

    def with_weights(self, detail: str) -> Self:
        """The same rows, which are written with a detail of the method as their ``weight``, for training.

        Raises:
            DataError: the method has no such detail, or a row that was taken has no weight.
        """
        name = detail.removeprefix(f"{self.scored.name}.").removeprefix(f"{self.scored.method.name}.")
        if name not in self.scored.details:
            raise DataError(f"'{self.scored.name}' has no detail '{name}'{did_you_mean(name, self.scored.details)}")
        lacking = self.at[~(self.scored.details[name][self.at] >= 0)]
        if len(lacking):
            raise DataError(
                f"row {int(self.pool.rows[lacking[0]])} has no '{self.scored.name}.{name}' of 0 or more to be its "
                "weight; name another detail"
            )
        return replace(self, weights=name)

    def _columns(self, wanted: bool) -> dict[str, Any]:
        """The method's columns of these rows."""
        columns = {self.scored.name: self.scored.value} if wanted else {}
        columns |= {f"{self.scored.name}.{k}": v for k, v in self.scored.details.items()} if wanted else {}
        columns |= {WEIGHT: self.scored.details[self.weights]} if self.weights else {}
        return {name: values[self.at] for name, values in columns.items()}

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
            **({"weights": f"{self.scored.name}.{self.weights}"} if self.weights else {}),
            **({WEIGHTS: self.scored.details[self.weights][self.at].tolist()} if self.weights else {}),
            "counts": {
                "pool_rows": len(self.scored),
                "scorable_rows": int(self.scored.scorable.sum()),
                "eligible_rows": int(self.scored.eligible.sum()),
                f"asked_{self.budget.key}": self.asked,
                "selected_rows": len(self),
                "scorable_tokens": _known_tokens(int(self.scored.n_tokens[self.scored.scorable].sum())),
                "selected_tokens": _known_tokens(self.n_tokens),
                **self._thought_counts(),
            },
            **({"per": self.per} if self.per else {}),
            **({"groups": self.groups} if self.groups else {}),
            **({"near_duplicates": self.near_duplicates} if self.near_duplicates is not None else {}),
            "excluded": dict(sorted(words.items())),
            "rows": self.rows.tolist(),
            "ids": self.ids,
            **{key: self.meta[key] for key in ("data", "models", "settings", "packages") if key in self.meta},
        }

    def _thought_counts(self) -> dict[str, int]:
        """Of the response tokens those of thoughts and of answers; nothing where no row has a thought."""
        scored, counts = self.scored, dict[str, int]()
        for part in ("thought", "answer") if scored.n_thought is not None else ():
            costs = Budget(1, "tokens", part).costs(scored)
            counts[f"scorable_{part}_tokens"] = int(costs[scored.scorable].sum())
            counts[f"selected_{part}_tokens"] = int(costs[self.at].sum())
        return counts

    def write_record(self, path: str | Path, output: str | Path | None = None) -> dict[str, Any]:
        """Write the record and return it; it has a sum of the ``output`` that has the rows, where that is a file."""
        found = file_sum(output) if output is not None else None
        record = self.record() | ({OUTPUT_SUM: found} if found else {})
        write_record(path, record)
        return record


def _known_tokens(tokens: int) -> int | None:
    return tokens if tokens >= 0 else None


def check_same_rows(pool: Pool, ids: Sequence[str]) -> None:
    """Raise a DataError that names the first row where scores and data do not belong together."""
    if len(pool) != len(ids):
        raise DataError(f"the scores have {len(ids)} rows, {pool.origin} has {len(pool)}; score this file again")
    for at, (mine, theirs) in enumerate(zip(pool.ids, ids, strict=True)):
        if mine != theirs:
            raise DataError(
                f"row {int(pool.rows[at])} of {pool.origin} is not the row that was scored; score this file again"
            )
