"""What races of T-SHIRT and NUGGETS save and what they change, on real rows with ``builtin:tiny``.

Each method scores all rows with all draws into a store, and races then read it: what they choose is compared with what
the whole way chooses. ``draws`` is the share of all passes of rows that a race needs.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
from common import alpaca, arguments, finish

from instdiff.core import Settings
from instdiff.core.budget import parse_budget
from instdiff.data import load
from instdiff.methods import Nuggets, TShirt
from instdiff.methods.shared.race import RacingMethod
from instdiff.scoring.scorer import score
from instdiff.store import Store

MODELS = {"base": "builtin:tiny", "proxy": "builtin:tiny"}


def races(method: RacingMethod, rows: int, store: Store, *, quick: bool) -> list[dict[str, Any]]:
    """Records of a method: a race for each budget, decided after fewer and more draws."""
    pool = load("builtin:demo") if quick else alpaca()
    pool = pool.take(np.sort(np.random.default_rng(0).permutation(len(pool))[:rows]))
    before = sum(os.times()[:2])
    whole = score(pool, [method], MODELS, settings=Settings(), store=store)[method.name]
    cpu, out = sum(os.times()[:2]) - before, []
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
            out.append({"what": method.name, "rows": rows, "all_draws": method.all_draws, "whole_cpu_s": cpu, **facts})
    return out


def main() -> None:
    args = arguments(store="")
    methods = (TShirt(draws=4), Nuggets(anchors=5)) if args.quick else (TShirt(), Nuggets(anchors=60, limit=120))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.store or folder)
        records = [
            one for method in methods for one in races(method, 24 if args.quick else 200, store, quick=args.quick)
        ]
    finish(args, records)


if __name__ == "__main__":
    main()
