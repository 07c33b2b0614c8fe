"""`instdiff search` as a user calls it: its sentence, files and page, its price, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import make_llama, some_rows
from instdiff.data import load
from instdiff.evaluation.results import read_results
from instdiff.experiments import engine
from instdiff.experiments.halving import is_untouched

from .shell import cli, ok, write_jsonl

HELD_OUT = [{**row, "instruction": f"{row['instruction']} of the others"} for row in some_rows(24, seed=4)]
TRAIN = (
    "train.model_max_length=200", "train.num_train_epochs=1", "train.learning_rate=0.01", "train.global_batch_size=4",
    "train.warmup_ratio=0", "train.dtype=float32",
)  # fmt: skip

CONFIG = {
    "data": "pool.jsonl", "model": "base", "budget": "25% tokens", "trainings": 9, "output": "run", "store": "store",
    "dtype": "float32", "max_length": 200, "eval": {"data": "heldout.jsonl"}, "final_seeds": 3,
    "recipes": {"longest": {}, "ifd": {}},
    "train": {
        "model_max_length": 200, "num_train_epochs": 1, "learning_rate": 0.01, "global_batch_size": 4,
        "warmup_ratio": 0, "dtype": "float32",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", some_rows(20, seed=3))
    write_jsonl(tmp_path / "heldout.jsonl", HELD_OUT)
    make_llama(tmp_path / "base", chat=None, num_hidden_layers=1)


def command(*more: str) -> list[str]:
    return [
        "search", "--data", "pool.jsonl", "--model", "base", "--budget", "25% tokens", "--trainings", "9", "--output",
        "run", "--store", "store", "--dtype", "float32", "--max-length", "200", "eval.data=heldout.jsonl",
        "final_seeds=3", "recipes=longest,ifd", *TRAIN, *more,
    ]  # fmt: skip


def models() -> dict[str, Any]:
    """The records of trainings, which stay where models are dropped."""
    return {path.parent.name: json.loads(path.read_text()) for path in Path("run/models").glob("*/training.json")}


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_from_the_price_to_the_page(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    Path("search.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    plan = json.loads(ok("plan", "--config", "search.yaml", "--json").out)
    assert plan["kind"] == "search"
    assert sum(one["count"] for one in plan["stages"] if one["kind"] == "train") == 9
    assert not Path("run").exists()
    untouched = {name for name in load("heldout.jsonl").ids if is_untouched(name)}
    seen, unseen = len(HELD_OUT) - len(untouched), len(untouched)
    # Three models of the only rung, twice three of the last judgement, and the base on all items.
    judged = sum(one["rows"] for one in plan["stages"] if one["kind"] == "evaluate")
    assert judged == 3 * seen + 6 * unseen + len(HELD_OUT) and seen != unseen

    whole, count = engine.train, 0

    def killed(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return whole(*args, **more)

    monkeypatch.setattr(engine, "train", killed)
    assert cli(*command()).code == 130
    monkeypatch.setattr(engine, "train", whole)
    assert len(models()) == 2
    before = {path: path.stat().st_mtime_ns for path in Path("run/models").glob("*/training.json")}
    ran = ok(*command(f"cells_at_once={at_once}"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    found = json.loads(Path("run/search.json").read_text(encoding="utf-8"))
    assert found["sentence"] in ran.out and found["recommended"] in ("random", "longest", "ifd")
    assert ran.out.splitlines()[0].split()[:4] == ["recipe", "rung", "1", "(1"]
    # What is stopped has no last judgement; nothing is trained twice where rows and seed are the same.
    assert len(models()) <= found["cost"]["trainings"] == (3 if found["stopped"] else 9)
    page = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert page["sections"]["search"]["facts"]["rungs"] == found["rungs"]
    assert found["sentence"] in Path("run/report.html").read_text(encoding="utf-8")
    assert plan_is_done()
    for path in Path("run/cells").glob("*/*/seed_*/heldout.json"):
        ids = set(read_results(path).tasks[0].ids)
        final = int(path.parent.name.removeprefix("seed_")) > 1000
        assert ids == untouched if final else len(ids) == seen and not ids & untouched
    again = json.loads(ok(*command("--json")).out)
    assert again["rungs"] == found["rungs"] and again["final"] == found["final"]
    assert "with recipes.entropy=None, now it is" in cli(*command("recipes=longest,entropy")).error


def plan_is_done() -> bool:
    return "nothing is left to do for this search" in ok("plan", "--config", "search.yaml").out


def test_what_is_missing_is_named() -> None:
    assert "no model is named; give --model WHERE" in cli("search", "--data", "pool.jsonl").error
    assert "takes 9 trainings at least, and 'trainings' is 8" in cli(*command("trainings=8")).error
    assert "method 'ifd' has no parameter 'ration'" in cli(*command("recipes.ifd.ration=loss")).error
    assert "unknown suite 'heldot'" in cli(*command("eval.suite=heldot")).error
    assert "no row of" in cli(*command("recipes.ifd.group_by=sauce")).error
    assert not Path("run/cells").exists()
