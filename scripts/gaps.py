"""How much of the gap between random rows and the oracle each line closes, over several controlled pools.

``python scripts/gaps.py RUN [RUN ...]``: run folders of comparisons, or their ``items.parquet``, one for each pool.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compared import table
from scipy.special import stdtrit

from instdiff.errors import DataError, InstDiffError
from instdiff.experiments.items import read_items

NEW, OLD, BOTH = "learnable", "known", "mean of both"
CHOOSING = "choosing"
RANDOM, ORACLE, REHEARSING = "random", "oracle", "oracle_rehearsing"
HEADS = ["line", "pools", NEW, OLD, "share of the gap", "95 % interval", "of `oracle_rehearsing`", "95 % interval",
         "choosing, s"]  # fmt: skip
NOTE = (
    "A share of the gap is (line - random) / (oracle - random) on `learnable`, of each pool; beside it stands the mean "
    "of both tasks as a share of that of `oracle_rehearsing`. Means over pools, with t intervals. Choosing is "
    "warm-ups, fold models and scoring."
)
Values = dict[str, dict[str, float]]
"""Of each line the means over its training seeds: of both tasks and their mean, and the seconds that choosing took."""


def read_pool(place: Path) -> Values:
    """The lines of a pool; a DataError where random rows or the oracle lack, or leave no gap."""
    cells = [one for one in read_items(place / "items.parquet" if place.is_dir() else place)[0] if one.error is None]
    budgets = sorted({one.cell.budget for one in cells if one.cell.line in (RANDOM, ORACLE)})
    if len(budgets) > 1:
        raise DataError(f"'{place}' has several budgets ({', '.join(budgets)}); compare one after the other")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in cells:
        values = {task.name: task.value for result in one.results for task in result.tasks if task.name in (NEW, OLD)}
        if len(values) < 2:
            raise DataError(f"'{place}': {one.cell} lacks '{NEW}' or '{OLD}', the tasks of the suite skills")
        values[BOTH] = (values[NEW] + values[OLD]) / 2
        values[CHOOSING] = sum(one.facts.get(key) or 0.0 for key in ("warmup_s", "score_s"))
        for key, value in values.items():
            found[one.cell.line][key].append(value)
    lines = {line: {key: float(np.mean(some)) for key, some in by.items()} for line, by in found.items()}
    if lacking := [name for name in (RANDOM, ORACLE) if name not in lines]:
        raise DataError(f"'{place}' has no line '{lacking[0]}', so there is no gap to share")
    if not lines[ORACLE][NEW] > lines[RANDOM][NEW]:
        raise DataError(f"'{place}' has no gap: the oracle is not better than random rows on '{NEW}'")
    return lines


def gaps(pools: list[Values]) -> list[list[str]]:
    """A row of the table for each line, the largest share of the gap first."""
    rows = []
    for name in dict.fromkeys(name for pool in pools for name in pool):
        mine = [pool for pool in pools if name in pool]
        closed = [(pool[name][NEW] - pool[RANDOM][NEW]) / (pool[ORACLE][NEW] - pool[RANDOM][NEW]) for pool in mine]
        kept = [pool[name][BOTH] / pool[REHEARSING][BOTH] for pool in mine if REHEARSING in pool]
        means = [np.mean([pool[name][key] for pool in mine]) for key in (NEW, OLD, CHOOSING)]
        cells = [name, str(len(mine)), f"{means[0]:.3f}", f"{means[1]:.3f}", *shown(closed), *shown(kept)]
        rows.append((float(np.mean(closed)), [*cells, f"{means[2]:,.0f}"]))
    return [row for _, row in sorted(rows, key=lambda one: -one[0])]


def shown(shares: list[float]) -> tuple[str, str]:
    """Their mean and its 95 % t interval, which takes two pools."""
    mean, count = float(np.mean(shares)) if shares else np.nan, len(shares)
    if count < 2:
        return (f"{mean:.2f}" if count else ""), ""
    reach = stdtrit(count - 1, 0.975) * np.std(shares, ddof=1) / count**0.5
    return f"{mean:.2f}", f"{mean - reach:.2f} to {mean + reach:.2f}"


def text(places: Sequence[Path]) -> str:
    """The table of these pools, and what its numbers are."""
    return f"{table(HEADS, gaps([read_pool(place) for place in places]))}\n\n{NOTE}"


def main(places: list[str]) -> None:
    if not places:
        sys.exit("name one or more run folders of comparisons, or their items.parquet, one for each pool")
    try:
        print(text([Path(place) for place in places]))
    except InstDiffError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
