"""The rows whose texts a report shows: which they are, what they say, and why they were taken or left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core.display import visible
from instdiff.data import Pool
from instdiff.reporting.sources import Part
from instdiff.selection.explain import turn_text, turns

Indices = npt.NDArray[np.int64]
MOST = 2000
SHARES = {"chosen": 0.35, "borderline": 0.2, "extreme": 0.2}
"""Parts of the rows shown; random ones fill up."""


def cut(text: str, most: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[:most] + " …"


@dataclass(frozen=True)
class Examples:
    """Rows of a table by position, each with what it is here for, its status, and the reason for that."""

    at: Indices
    kinds: list[str]
    status: list[str]
    reason: list[str]


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
    edge = borderline(part, max(1, sizes["borderline"] // 2 if not whole else len(part.chosen) // 10))
    add(edge, "borderline", sizes["borderline"])
    add(part.chosen, "chosen", sizes["chosen"])
    ends = max(1, min(sizes["extreme"], most // 5) // max(1, 2 * len(part.table.scored)))
    for scored in part.table.scored.values():
        best = scored.best()
        add(np.concatenate([best[:ends], best[-ends:]]), "extreme", 2 * ends)
    rest = np.random.default_rng(seed).permutation(len(part.table))
    add(rest[~np.isin(rest, list(kinds))], "random", max(0, min(most, len(part.table)) - len(kinds)))
    at = np.array(sorted(kinds), np.int64)
    mask = part.mask
    status = [
        "chosen" if mask[row] else "rejected" if part.scored.takeable[row] else "not eligible" for row in at.tolist()
    ]
    return Examples(at, [kinds[int(row)] for row in at], status, _reasons(part, at))


def borderline(part: Part, each: int) -> Indices:
    """The last rows that were taken and the first that were not, by the score that decided."""
    best = part.scored.best()
    taken = part.mask[best]
    return np.concatenate([best[taken][-each:], best[~taken][:each]])


def _reasons(part: Part, at: Indices) -> list[str]:
    scored, best = part.scored, part.scored.best()
    rank = np.zeros(len(scored), np.int64)
    rank[best] = np.arange(1, len(best) + 1)
    picked = {int(row): place for place, row in enumerate(part.chosen.tolist(), 1)}
    last = int(rank[part.chosen].max(initial=0))
    said = []
    for row in at.tolist():
        by = f"rank {rank[row]:,} of {len(best):,} by {scored.name}" if rank[row] else f"no score by {scored.name}"
        if row in picked:
            said.append(f"taken as number {picked[row]:,}; {by}")
        elif rank[row]:
            said.append(f"{by}, behind the last taken ({last:,})" if rank[row] > last else f"{by}, passed over")
        else:
            said.append(f"{by}: {str(scored.reason[row] or 'no reason').replace('_', ' ')}")
    return said


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
