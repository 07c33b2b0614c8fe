"""At most so many rows of each value of a column: which rows that leaves, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from instdiff.core import NEAR_DUPLICATE, Scored
from instdiff.core.caps import PROMPT, Caps, Indices, Per
from instdiff.core.display import in_one_line
from instdiff.data import Pool
from instdiff.rendering.prompts import prompt_groups

NAMED, SHOWN = 5, 60
"""Values that are named, and characters of a name."""


def caps_of(pool: Pool, per: Per) -> Caps:
    """The rows of a pool by prompt or by a column of the input; a DataError where there is no such column."""
    return Caps.of(prompt_groups(pool) if per.by == PROMPT else pool.column(per.by), per.most)


def best_of_each(scored: Scored, caps: Caps | None) -> Indices | None:
    """The rows that are left to choose from; None where all are, since nothing bounds them or the method itself does.

    They are the best of each value by the score, in the order of the input.
    """
    if caps is None or scored.method.holds_caps:
        return None
    return np.sort(caps.limit(scored.best()))


def recorded_per(record: Mapping[str, Any] | None, scored: Scored) -> Per | None:
    """What bounded a selection by its record, or bounds one by these scores where nobody says it."""
    if record is None:
        return scored.method.default_per
    return Per(record["per"]["by"], record["per"]["most"]) if record.get("per") else None


def better_of_its_value(scored: Scored, caps: Caps, at: int, taken: Indices | None = None) -> Indices:
    """The rows because of which a row cannot be taken, as its value is full by them; none where it can.

    They are the best of its value, or, by a method that holds caps itself, those of it among the ``taken``.
    """
    mine = caps.codes == caps.codes[at]
    if scored.method.holds_caps:
        first = np.zeros(0, np.int64) if taken is None else taken[mine[taken]]
    else:
        best = scored.best()
        first = caps.limit(best[mine[best]])
    full = len(first) >= caps.room[caps.codes[at]] and at not in first
    return first if full else first[:0]


def tell(pool: Pool, scored: Scored, per: Per, caps: Caps, at: Indices) -> dict[str, Any]:
    """What the record of a selection ``at`` these rows says: values without a score, with too few, and rows dropped."""
    some = scored.takeable
    counts = np.bincount(caps.codes[some], minlength=len(caps.room))
    kept = best_of_each(scored, caps)
    if kept is None:
        left = some & ~caps.after(at).open
        left[at] = False
        dropped = int(left.sum())
    else:
        dropped = int(scored.eligible.sum()) - len(kept)
    _, first = np.unique(caps.codes, return_index=True)
    known = np.bincount(caps.codes[some | (scored.reason == NEAR_DUPLICATE)], minlength=len(caps.room)) > 0
    without = np.sort(first[~known[caps.codes[first]]])
    return {
        "by": per.by,
        "most": per.most,
        "values": len(first),
        "values_without_a_score": len(without),
        "first_without": [_name(pool, per, int(row)) for row in without[:NAMED]],
        "values_with_fewer": int((known & (counts < per.most)).sum()),
        "rows_dropped": dropped,
    }


def _name(pool: Pool, per: Per, row: int) -> str:
    """The value of a row, for people."""
    one, number = pool.take([row]), int(pool.rows[row])
    if per.by == PROMPT:
        return f"row {number}: {in_one_line(one.sample(0).instruction, SHOWN)}"
    value = one.column(per.by)[0]
    return f"row {number}, which has none" if value is None else in_one_line(str(value), SHOWN)
