"""What races of T-SHIRT and NUGGETS save and what they change, on real rows with ``builtin:tiny``.

Each method scores all rows with all draws into a store, and races then read it: what they choose is compared with what
the whole way chooses. ``draws`` is the share of all passes of rows that a race needs.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
from common import alpaca, arguments, finish, save

from instdiff.core import Settings
from instdiff.core.budget import parse_budget
from instdiff.data import load
from instdiff.methods import Nuggets, TShirt
from instdiff.methods.shared.race import RacingMethod
from instdiff.scoring.scorer import score
from instdiff.store import Store

CASES = (TShirt(race_after=5), 200), (Nuggets(anchors=40, limit=120, race_after=10), 100)
MODELS = {"base": "builtin:tiny", "proxy": "builtin:tiny"}


def races(method: RacingMethod, rows: int, store: Store, *, quick: bool) -> list[dict[str, Any]]:
    """Records of a method: a race for each budget, decided after fewer and more draws."""
    pool = load("builtin:demo") if quick else alpaca()
    pool = pool.take(np.sort(np.random.default_rng(0).permutation(len(pool))[:rows]))
    whole = score(pool, [method], MODELS, settings=Settings(), store=store)[method.name]
    out = []
    default = method.race_after if method.race_after < method.all_draws else 2
    for budget in ("5%", "10%", "20%"):
        chosen = method.pick(whole, parse_budget(budget))
        for after in sorted({default, default * 2} & set(range(method.all_draws))):
            race = replace(method, race=budget, race_after=after)
            found = score(pool, [race], MODELS, settings=Settings(), store=store)[method.name]
            on = float(found.details["contends"].mean())
            same = float(np.isin(race.pick(found, parse_budget(budget)), chosen).mean())
            draws = (after + (method.all_draws - after) * on) / method.all_draws
            facts = {"budget": budget, "race_after": after, "go_on": on, "draws": draws, "same": same}
            out.append({"what": method.name, "rows": rows, "all_draws": method.all_draws, **facts})
    return out


def main() -> None:
    args = arguments(store="")
    cases = ((TShirt(draws=4), 24), (Nuggets(anchors=5), 24)) if args.quick else CASES
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for method, rows in cases:
            records += races(method, rows, Store(args.store or folder), quick=args.quick)
            save(args, records)
    finish(args, records)


if __name__ == "__main__":
    main()
