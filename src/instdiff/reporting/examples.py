"""The rows whose texts a report shows: which they are, what they say, and why they were taken or left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core.display import visible
from instdiff.data import Pool
from instdiff.reporting.sources import Part
from instdiff.selection.explain import Ranking, turn_text, turns

Indices = npt.NDArray[np.int64]
MOST, READ = 2000, 10
SHARES = {"chosen": 0.35, "borderline": 0.2, "extreme": 0.2}
"""Parts of the rows shown; random ones fill up."""


def cut(text: str, most: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[:most] + " …"


@dataclass(frozen=True)
class Examples:
    """Rows of a table by position: what each is here for, its status, the reason for that, its place from the best on.

    ``best`` and ``missed`` are the rows that were taken first, and those that the next larger budget takes.
    """

    at: Indices
    kinds: list[str]
    status: list[str]
    reason: list[str]
    order: list[int]
    best: Indices
    missed: Indices


def examples(part: Part, most: int = MOST, seed: int = 0) -> Examples:
    """Chosen rows, those around the cut, the ends of every score, and random ones."""
    kinds: dict[int, str] = {}

    def add(rows: Indices, kind: str, count: int) -> None:
        fresh = [int(row) for row in rows.tolist() if int(row) not in kinds]
        if len(fresh) > count:  # evenly, the first and the last among them
            fresh = [fresh[i] for i in np.unique(np.linspace(0, len(fresh) - 1, count).astype(int))]
        kinds.update(dict.fromkeys(fresh, kind))

    whole = len(part.table) <= most
    sizes = {kind: len(part.table) if whole else int(share * most) for kind, share in SHARES.items()}
    ranking = Ranking(part.scored, part.per(part.method), part.caps.get(part.method), part.chosen)
    best, missed = part.chosen[:READ], ranking.best[~part.mask[ranking.best]][:READ]
    add(best, "chosen", READ)
    add(missed, "borderline", READ)
    edge = borderline(part, max(1, sizes["borderline"] // 2 if not whole else len(part.chosen) // 10))
    add(edge, "borderline", sizes["borderline"])
    add(part.chosen, "chosen", sizes["chosen"])
    ends = max(1, min(sizes["extreme"], most // 5) // max(1, 2 * len(part.table.scored)))
    for scored in part.table.scored.values():
        ordered = scored.best()
        add(np.concatenate([ordered[:ends], ordered[-ends:]]), "extreme", 2 * ends)
    rest = np.random.default_rng(seed).permutation(len(part.table))
    add(rest[~np.isin(rest, list(kinds))], "random", max(0, min(most, len(part.table)) - len(kinds)))
    at = np.array(sorted(kinds), np.int64)
    mask, place = part.mask, {int(row): place for place, row in enumerate(part.chosen.tolist(), 1)}
    status = ["chosen" if mask[row] else "not chosen" if part.scored.takeable[row] else "excluded" for row in at]
    last = len(part.table)
    order = [place.get(int(row), last + (int(ranking.rank[row]) or last)) for row in at]
    reason = [_reason(part, ranking, int(row), place.get(int(row))) for row in at]
    return Examples(at, [kinds[int(row)] for row in at], status, reason, order, best, missed)


def borderline(part: Part, each: int) -> Indices:
    """The last rows that were taken and the first that were not, by the score that decided."""
    best = part.best(part.method)
    taken = part.mask[best]
    return np.concatenate([best[taken][-each:], best[~taken][:each]])


def _reason(part: Part, ranking: Ranking, row: int, place: int | None) -> str:
    """The sentence of ``explain``, and from which budget on a row that is not chosen would be."""
    by = ((part.record or {}).get("groups") or {}).get("by")
    said = ranking.reason(row, place, len(part.chosen), str(part.budget), by, part.table.rows)
    reached = None if place else ranking.budget_reached(row)
    return f"{said}; {reached}" if reached else said


def texts(pool: Pool, at: Indices, most: int) -> list[tuple[str, str]]:
    """Instruction and response of these rows as they may be shown."""
    out = []
    for sample in pool.take(at).samples():
        asked = "\n".join(part for part in (sample.system, sample.instruction, sample.input) if part)
        spoken = [turn for turn in turns(sample) if turn["role"] not in ("system", "tools")]
        last = max((i for i, turn in enumerate(spoken) if turn["role"] == "assistant"), default=len(spoken))
        said = turn_text(spoken[last]) if last < len(spoken) else ""
        if len(spoken) > 2:  # what stands before the last response is what was asked
            asked = "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in spoken[:last])
        out.append((visible(cut(asked, most)), visible(cut(said, most))))
    return out
