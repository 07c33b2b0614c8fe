"""Rank, cut to the budget, hand over the rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.artifact import write_json
from instdiff.budget import parse_budget
from instdiff.core import Budget, Scored
from instdiff.data import Pool
from instdiff.errors import DataError, PlanError
from instdiff.version import __version__

Order = Literal["rank", "input"]


@dataclass(frozen=True)
class Selection:
    """A subset of a pool, in the order in which it is written.

    ``at`` are positions in the pool; ``rows`` positions in the input file, which differ where records were rejected.
    """

    pool: Pool
    at: npt.NDArray[np.int64]
    scored: Scored
    budget: Budget
    meta: dict[str, Any]

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

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write the input's own rows as JSON lines."""
        self.pool.take(self.at).to_jsonl(path)

    def write(self, path: str | Path, *, with_scores: bool = False) -> None:
        """Write the input's own rows, by the path's ending; optionally with the method's columns."""
        extra: dict[str, Sequence[Any]] = {}
        if with_scores:
            columns = {self.scored.name: self.scored.value}
            columns |= {f"{self.scored.name}.{k}": v for k, v in self.scored.details.items()}
            extra = {
                name: [float(v) if np.isfinite(v) else None for v in values[self.at]]
                for name, values in columns.items()
            }
        self.pool.write(path, self.at, extra)

    def record(self) -> dict[str, Any]:
        """What ``selection.json`` says."""
        words = [str(word) for word in self.scored.why if word is not None]
        return {
            "instdiff": __version__,
            "method": self.scored.name,
            "params": self.scored.method.params(),
            "budget": str(self.budget),
            "counts": {
                "pool_rows": len(self.scored),
                "scorable_rows": int(self.scored.scorable.sum()),
                "eligible_rows": int(self.scored.eligible.sum()),
                "selected_rows": len(self),
                "scorable_tokens": _known(int(self.scored.n_tokens[self.scored.scorable].sum())),
                "selected_tokens": _known(self.n_tokens),
            },
            "excluded": {word: words.count(word) for word in sorted(set(words))},
            "rows": self.rows.tolist(),
            "ids": self.ids,
            **{key: self.meta[key] for key in ("data", "models", "settings", "packages") if key in self.meta},
        }

    def write_record(self, path: str | Path) -> None:
        """Write ``selection.json``."""
        write_json(path, self.record())


def _known(tokens: int) -> int | None:
    return tokens if tokens >= 0 else None


def select(
    pool: Pool,
    scored: Scored,
    budget: str | int | Budget = "10%",
    *,
    order: Order = "rank",
    meta: dict[str, Any] | None = None,
) -> Selection:
    """The best rows within a budget.

    Args:
        pool: the rows that were scored.
        scored: one method's scores, as ``scores["ifd"]``.
        budget: see ``parse_budget``.
        order: by rank, or in the input's order.
        meta: what the scores came from, for the record.

    Raises:
        DataError: the scores are of other rows, or nothing is left to select.
        PlanError: a token budget without token counts.
    """
    check_same_rows(pool, scored.ids)
    budget = parse_budget(budget)
    if budget.kind in ("tokens", "token_share") and np.any(scored.n_tokens < 0):
        raise PlanError(
            f"budget '{budget}' counts tokens, but these scores were made without a tokenizer; score with --model"
        )
    if not scored.eligible.any():
        raise DataError(f"no row has a score by {scored.name}: {_counted(scored)}")
    at = scored.method.pick(scored, budget)
    if len(at) == 0:
        raise DataError(f"budget '{budget}' of {len(scored)} rows takes none; give a larger one")
    return Selection(pool, np.sort(at) if order == "input" else at, scored, budget, meta or {})


def _counted(scored: Scored) -> str:
    words = [str(word) for word in scored.why if word is not None]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))


def check_same_rows(pool: Pool, ids: list[str]) -> None:
    """Scores and data belong together.

    Raises:
        DataError: they do not; names the first row that differs.
    """
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
