"""The rows of a pool in folds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.signals import Split
from instdiff.data import Pool
from instdiff.methods.algorithms.folds import Indices, deal, group_order, outside
from instdiff.rendering.prompts import prompt_groups


def groups_of(pool: Pool, column: str | None, *, near: bool = True) -> npt.NDArray[Any]:
    """Per row the name of its group: its prompt, or its value in a column where it has one; copies are of one group."""
    groups = prompt_groups(pool, near=near)
    if column is None:
        return groups
    named = pool.column(column)
    first: dict[str, str] = {}
    for row, (name, value) in enumerate(zip(pool.ids, named, strict=True)):
        groups[row] = first.setdefault(name, groups[row] if value is None else f"{column}={value}")
    return groups


def folds_of(pool: Pool, split: Split) -> Indices:
    """Per row the number of its fold."""
    return deal(group_order(groups_of(pool, split.group), split.seed), split.folds.k)


def rows_outside(pool: Pool, split: Split, best: Indices | None = None) -> list[Pool]:
    """For each fold the rows that its model is trained on; with ``best``, best first, ``folds.keep`` of these."""
    order = group_order(groups_of(pool, split.group), split.seed)
    folds, part = deal(order, split.folds.k), split.folds.fraction
    rows = [outside(order, folds, fold, part) for fold in range(split.folds.k)]
    if best is not None:
        ranked = [best[np.isin(best, at)] for at in rows]
        rows = [np.sort(at[: math.ceil(split.folds.keep * len(at))]) for at in ranked]
    return [pool.take(at) for at in rows]
