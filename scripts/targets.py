"""Which rows targeted methods choose on the controlled pool, with one skill as the target.

For each learnable skill the target are ``TARGETS`` of its test rows, and each method chooses ``BUDGET`` rows of the
pool. Printed are, as means over skills, the share of them that teach the skill, the share that name it (wrong answers
too), and with ``--train`` the accuracy on the skill's other test rows of a model that is trained on the choice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import instdiff
from instdiff.config.evaluate import EvalConfig
from instdiff.config.train import TrainSettings
from instdiff.core import Method, ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.data import Pool, load
from instdiff.data.builtin.skills import LEARNABLE
from instdiff.evaluation.evaluator import make_subject, run_suites
from instdiff.evaluation.skills import Skills
from instdiff.methods import BM25, DSIR, LESS, RDS, TAP, Random
from instdiff.methods.tap import Path as Along
from instdiff.scoring.scorer import score
from instdiff.store import Store
from instdiff.training.sft import train

TARGETS, BUDGET = 20, 50
TRAIN = TrainSettings(
    model_max_length=128, num_train_epochs=20, learning_rate=1e-3, global_batch_size=32, dtype="float32"
)
METHODS: dict[str, Method] = {
    "random": Random(),
    "bm25": BM25(),
    "bm25, whole rows": BM25(part="row"),
    "dsir": DSIR(),
    "dsir, pseudo=1": DSIR(pseudo=1.0),
    "dsir, per_token": DSIR(per_token=True, pseudo=1.0),
    "rds": RDS(),
    "rds, mean": RDS(match="mean"),
    "less": LESS(),
    "less, mean": LESS(match="mean"),
    "less, robin": LESS(match="robin"),
    "tap": TAP(),
    "tap, 20 passes at 1e-3": TAP(path=Along(epochs=20, learning_rate=1e-3)),
}
WHERE = Settings(device="cpu", dtype="float32", max_length=128, templates={"*": "plain"})
BASE = "builtin:skills"


def of_skill(pool: Pool, name: str) -> Pool:
    return pool.take(np.flatnonzero(np.array(pool.column("skill"), object) == name))


def teaches(pool: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which rows name a skill, and which of them answer rightly."""
    kind, skill = (np.array(pool.column(column), object) for column in ("kind", "skill"))
    return skill == name, (skill == name) & (kind != "noise")


def accuracy(rows: Pool, name: str, store: Store) -> float:
    """Of a model trained on rows, on the skill's rows of another draw of the tests."""
    config = EvalConfig(model=BASE, suite=["skills"], template="plain", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        model = train(rows, ModelRef(BASE), TRAIN, WHERE, Path(folder, "m"), store=store, seed=0, log=lambda line: None)
        subject = make_subject(model, config, store, name=name, log=lambda line: None, progress=Quiet())
        (found,) = run_suites([Skills(of_skill(load("builtin:skills/test@1"), name))], [None], subject, config)
        return float(found.tasks[-1].score.mean())


def one(method: Method, skills: list[str], store: Store, trained: bool) -> list[tuple[float, ...]]:
    pool, tests, found = load(BASE), load("builtin:skills/test"), []
    for name in skills:
        target = of_skill(tests, name).take(range(TARGETS))
        table = score(pool, {"method": method}, BASE, settings=WHERE, store=store, target=target)
        chosen = instdiff.select(pool, table["method"], budget=str(BUDGET))
        named, right = (mask[chosen.at].mean() for mask in teaches(pool, name))
        more = [accuracy(pool.take(chosen.at), name, store)] if trained else []
        found.append((float(right), float(named), *more))
    return found


def main(skills: list[str], methods: Mapping[str, Method], trained: bool) -> None:
    print("| method | teach it | name it |" + " accuracy |" * trained + " seconds |")
    print("|---|---|---|" + "---|" * trained + "---|")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for label, method in methods.items():
            began = time.process_time()
            means = np.mean(one(method, skills, store, trained), axis=0)
            shown = " | ".join(f"{value:.0%}" for value in means)
            print(f"| {label} | {shown} | {time.process_time() - began:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--skill", action="append", choices=[skill.name for skill in LEARNABLE])
    parser.add_argument("--method", action="append", choices=list(METHODS))
    given = parser.parse_args()
    asked = {name: METHODS[name] for name in given.method or METHODS}
    main(given.skill or [skill.name for skill in LEARNABLE], asked, given.train)
