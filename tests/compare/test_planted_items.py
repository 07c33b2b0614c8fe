"""Held-out rows that stand in the pool: a line that takes them gains on these alone, and random rows on next to none.

``planted_items.json`` has what the comparison below found: of each line the rows it took with each seed, and the NLL of
every held-out row under the model that was trained on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instdiff
from cli.shell import write_jsonl
from instdiff.core.files import read_json
from instdiff.data import Pool
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.suites import HeldOutSuite
from instdiff.experiments.leaks import find_leaks
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.tables import leak_rows

HELD, PLANTED, POOL = 48, 12, 96
RECORDED = Path(__file__).with_name("planted_items.json")
Row = dict[str, Any]


def rows() -> tuple[list[Row], list[Row]]:
    """The pool, which begins with a quarter of the held-out rows, and these; what they answer cannot be guessed."""
    rng = np.random.default_rng(1)

    def words() -> str:
        return " ".join("".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(6))

    def row() -> Row:
        return {"instruction": f"Say the secret words of the box {words()}", "output": words()}

    held = [row() for _ in range(HELD)]
    return [
        *({**one, "planted": 1} for one in held[:PLANTED]),
        *({**row(), "planted": 0} for _ in range(POOL - PLANTED)),
    ], held


def check(leaks: dict[str, Any]) -> None:
    """A gain of 1.5 nats and more lies on planted items, and nothing is left without them."""
    lines = {line["name"]: line for line in leaks["lines"]}
    planted, other = lines["planted"], lines["other"]
    assert planted["rows"] == PLANTED and planted["items_hit"] == PLANTED and planted["items"] == HELD
    assert planted["diff"] < -1 and planted["diff_on"] < -1 and planted["diff_on_high"] < -0.5
    assert abs(planted["diff_without"]) < 0.4 and planted["verdict_without"] == "not told apart"
    assert planted["value_on"] < 2 < 7 < planted["value_without"]
    assert other["rows"] <= 3 and lines["random"]["rows"] <= 3, "of twelve random rows one and a half are planted"
    assert abs(other["diff_on"]) < 0.5 and other["verdict_without"] == "not told apart"
    told = {row[0]: row for row in leak_rows(leaks)[1]}
    assert told["planted"][3:5] == ["12", "12 of 48"] and told["planted"][-1] == "not told apart"


def recorded(pool: Pool, held: Pool) -> tuple[dict[Any, list[Row]], list[CellResult]]:
    """The selections and results of the comparison."""
    chosen: dict[Any, list[Row]] = {}
    results = list[CellResult]()
    for line, cells in json.loads(RECORDED.read_text()).items():
        for seed, one in enumerate(cells):
            chosen.setdefault((line, "12"), []).append(
                {"rows": one["rows"], "ids": [pool.ids[at] for at in one["rows"]]}
            )
            task = TaskResult("heldout", "nll", held.ids, np.array(one["nll"]), higher_is_better=False)
            results.append(CellResult(Cell(line, "12", seed), {}, [SuiteResult("heldout", line, (task,))]))
    return chosen, results


def test_a_gain_on_planted_items_is_told_apart_on_what_was_recorded() -> None:
    pool, held = map(instdiff.load, rows())
    found = find_leaks(pool, [HeldOutSuite(held, "held")], *recorded(pool, held), print)
    assert found is not None
    check(found)


@pytest.mark.slow
def test_a_gain_on_planted_items_is_told_apart_in_a_comparison(tmp_path: Path) -> None:
    for name, some in zip(("pool", "held"), rows(), strict=True):
        write_jsonl(tmp_path / f"{name}.jsonl", some)
    found = instdiff.compare(
        str(tmp_path / "pool.jsonl"),
        "builtin:tiny",
        {"planted": {"method": "column", "path": "planted"}, "other": {"method": "random", "seed": 7}},
        tmp_path / "run",
        budgets=[PLANTED],
        baselines=["random"],
        train={
            **{"num_train_epochs": 10, "learning_rate": 3e-3, "warmup_ratio": 0.1},
            **{"global_batch_size": 6, "model_max_length": 96},
        },
        eval={"suite": ["heldout"], "data": str(tmp_path / "held.jsonl")},
        store=tmp_path / "store",
        device="cpu",
    )
    check(found["leaks"])
    assert next(line for line in found["lines"] if line["name"] == "planted")["verdict"] == "better"
    assert read_json(tmp_path / "run" / "comparison.json")["leaks"] == found["leaks"]
    assert "| planted | 12 | held-out NLL | 12 | 12 of 48 |" in (tmp_path / "run" / "comparison.md").read_text()
