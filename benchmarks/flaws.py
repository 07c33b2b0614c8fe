"""Which methods' scores agree with the flaws that are planted in `builtin:demo`, and what the best tenth holds.

The embedded model is base, proxy and rater; the calibrated model is trained as `configs/demo.yaml` says. Methods that
need a judge are left out. A row without a score, or that a method did not reach, ranks below all others.

With ``--model FOLDER`` a published model chooses a tenth of the response tokens by `learnability`, alone and as a
filter before other methods; its fold models make one pass, and lie in ``--store``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import arguments, finish, timed
from ranking import auc, auc_interval, last

from instdiff import Budget, Folds, Method, ModelRef, Pool, Settings, Store, load, score, train
from instdiff.config.train import TrainSettings
from instdiff.core import Scored
from instdiff.core.budget import parse_budget
from instdiff.data.builtin import path
from instdiff.evaluation.statistics import bootstrap_token_mean
from instdiff.methods import (
    DEITA,
    IFD,
    MADS,
    MIWV,
    RDS,
    CosineFilter,
    FacilityLocation,
    InstructDiff,
    KCenter,
    KMeansQuota,
    Learnability,
    Longest,
    Nuggets,
    Perplexity,
    Random,
    ResponseEntropy,
    SelectIT,
    Superfiltering,
    SuperfilteringD,
    Then,
    TShirt,
    Zip,
)
from instdiff.selection.selector import sample_rows

SETTINGS = Settings(max_length=512, device="cpu", templates={"*": "plain"})
SEED, WARM_UP, QUICK_ROWS, QUICK_WARM_UP = 42, 200, 300, 40
BEST = 0.1
TARGETS = 100
KINDS = ("duplicate", "swapped", "truncated", "garbled", "trivial")


def methods(quick: bool) -> dict[str, Method]:
    """Each with its defaults, but that set methods rank all rows, and that what is drawn is drawn less often."""
    often = 1 if quick else 5
    singles = [
        Random(), Longest(), Perplexity(), ResponseEntropy(), IFD(), Superfiltering(), InstructDiff(),
        TShirt(draws=often), SelectIT(questions=often), MIWV(), Nuggets(anchors=often), DEITA(),
    ]  # fmt: skip
    sets = [
        KCenter(reach=1.0), FacilityLocation(reach=1.0), KMeansQuota(), CosineFilter(reach=1.0),
        SuperfilteringD(reach=1.0), Zip(reach=1.0), MADS(reach=1.0), RDS(reach=1.0),
    ]  # fmt: skip
    return {method.name: method for method in [*singles, *sets]}


def filters() -> dict[str, Method]:
    """Learnability alone, and others among the 70 % that it prefers."""
    learn = Learnability(folds=Folds(epochs=1))
    second = [Random(), Longest(), FacilityLocation(reach=1.0), KMeansQuota()]
    then = {f"learnability, then {one.name}": Then(first=learn, keep="70% eligible", second=one) for one in second}
    return {"random": Random(), "longest": Longest(), "learnability": learn, **then}


def chosen_by(model: str, pool: Pool, store: Store) -> dict[str, Scored]:
    """Scores of the filters by a published model, rendered by its own template."""
    settings = Settings(max_length=256, templates={"*": "chat"})
    how = TrainSettings(learning_rate=1e-4, global_batch_size=8)
    return score(pool, filters(), model, settings=settings, store=store, crossfit=how, log=print).scored


def planted(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """The kind of flaw of each row; empty where there is none."""
    lines = (path("demo") / "flaws.jsonl").read_text(encoding="utf-8").splitlines()
    known = {record["row"]: record["flaw"] for record in map(json.loads, lines)}
    return np.array([known.get(row, "") for row in rows.tolist()], object)


def scores(pool: Pool, quick: bool, home: Path) -> tuple[dict[str, Scored], dict[str, Any]]:
    """All methods' scores in one call, and what it took."""
    base, store = ModelRef("builtin:tiny"), Store(home / "store")
    subset = pool.take(sample_rows(len(pool), QUICK_WARM_UP if quick else WARM_UP, SEED))
    how = {"model_max_length": 512, "num_train_epochs": 1, "learning_rate": 1e-3, "global_batch_size": 8}
    trained_s, calibrated = timed(
        lambda: train(subset, base, home / "calibrated", settings=SETTINGS, store=store, seed=SEED, log=print, **how)
    )
    roles = {role: base for role in ("base", "proxy", "complexity_rater", "quality_rater")}
    target = load(str(path("demo") / "heldout.jsonl")).take(np.arange(TARGETS))
    seconds, table = timed(
        lambda: score(
            pool, methods(quick), {**roles, "calibrated": calibrated},
            settings=SETTINGS, store=store, target=target, log=print,
        )
    )  # fmt: skip
    return table.scored, {"warm_up_s": trained_s, "score_s": seconds}


def record(scored: Scored, flaws: npt.NDArray[np.object_], budget: Budget) -> dict[str, Any]:
    """How well a low score finds flawed rows, and how many of them the method takes among its best tenth."""
    flawed = flaws != ""
    low = -last(scored.value)
    found = auc_interval(low, flawed)
    out = {
        "method": scored.name, "rows": len(scored), "ranked": int(scored.eligible.sum()),
        "auc": found.value, "auc_low": found.low, "auc_high": found.high,
    }  # fmt: skip
    for kind in KINDS:
        some = ~flawed | (flaws == kind)
        out[f"auc_{kind}"] = auc(low[some], flawed[some])
    chosen = scored.method.pick(scored, budget)
    share = bootstrap_token_mean(flawed[chosen].astype(float), np.ones(len(chosen), np.int64))
    out |= {"best_rows": len(chosen), "best_flawed": share.value, "best_low": share.low, "best_high": share.high}
    for kind in KINDS:
        out[f"best_{kind}"] = float((flaws[chosen] == kind).mean())
    return out | {"base_rate": float(flawed.mean())}


def main() -> None:
    args = arguments(rows=0, model="", store="")
    pool = load("builtin:demo")
    # The first rows are a random sample, and a duplicate's original comes before it.
    pool = pool.take(np.arange(args.rows or (QUICK_ROWS if args.quick else len(pool))))
    flaws = planted(pool.rows)
    with tempfile.TemporaryDirectory() as folder:
        if args.model:
            found = chosen_by(args.model, pool, Store(args.store or Path(folder) / "store"))
            budget, about = parse_budget("10% tokens"), {"model": Path(args.model).name}
        else:
            found, about = scores(pool, args.quick, Path(folder))
            budget = Budget(BEST)
        records = [about | record(scored, flaws, budget) for scored in found.values()]
    finish(args, records)


if __name__ == "__main__":
    main()
