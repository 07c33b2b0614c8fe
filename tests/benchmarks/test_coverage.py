"""Intervals hold what they promise, in a committed simulation and a short one; published words follow the rule."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import compared
import coverage

from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.experiments.items import write_items
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import summarize

ROOT = Path(__file__).resolve().parents[2]
RECORDS = json.loads((ROOT / "benchmarks/results/coverage-2-cores.json").read_text(encoding="utf-8"))
GRID = {
    (300, 3, 5, 0.03, 0.25), (300, 5, 3, 0.03, 0.25), (300, 3, 5, 0.03, 0.5), (300, 5, 3, 0.03, 0.5),
    (300, 3, 3, 0.03, 0.25), (300, 3, 3, 0.03, 0.1), (100, 3, 5, 0.03, 0.07), (100, 5, 3, 0.03, 0.07),
    (300, 3, 3, 0.0, 0.0), (300, 3, 3, 0.3, 0.0),
}  # fmt: skip


def test_every_cell_of_the_grid_was_simulated() -> None:
    keys = ("items", "seeds", "control_seeds", "seed_sd", "item_sd")
    assert {tuple(one[key] for key in keys) for one in RECORDS} >= GRID
    assert all(one["families"] >= 2000 for one in RECORDS) and len(RECORDS) == len(coverage.CASES)
    assert {one["control_sd"] for one in RECORDS} >= {0.015, 0.06} and {one["wide"] for one in RECORDS} == {0, 5}


@pytest.mark.parametrize("one", RECORDS, ids=lambda one: f"{one['name']} {one['seeds']} {one['control_seeds']}")
def test_intervals_hold_and_families_have_no_false_verdict(one: dict[str, Any]) -> None:
    assert 0.93 <= one["coverage"] <= 0.97 and 0.93 <= one["own_coverage"] <= 0.97
    assert one["false_families"] <= 0.06


@pytest.mark.parametrize("case", coverage.CASES[:10:3] + coverage.CASES[12:15], ids=lambda case: case.name)
def test_a_short_simulation_is_near_the_committed_one(case: coverage.Case) -> None:
    found = coverage.simulate(case, 50, seed=1)
    assert min(found["coverage"], found["own_coverage"]) >= 0.89
    assert found["false_families"] <= 0.12


def test_published_words_are_those_of_the_rule() -> None:
    """Few seeds have none, and those that are told apart have an interval on one side of zero."""
    for name in ("skills", *compared.DOMAINS):
        for line in compared.comparison(name)["lines"]:
            if line["name"] == "full":
                assert line["verdict"] == "too few seeds" and line["low"] is None
            elif line.get("verdict") in ("better", "worse"):
                up = line["verdict"] == ("better" if line["higher_is_better"] else "worse")
                assert line["diff_low"] > 0 if up else line["diff_high"] < 0


def test_published_tables_come_from_items_where_these_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, ids = np.random.default_rng(0), [str(n) for n in range(30)]
    cells = [
        CellResult(Cell(name, "10%", seed), {}, [SuiteResult("s", name, (TaskResult("t", "m", ids, rng.random(30)),))])
        for name in ("random", "ifd")
        for seed in range(3)
    ]
    monkeypatch.setattr(compared, "RESULTS", tmp_path)
    (tmp_path / "compare-new.json").write_text('{"lines": []}')
    write_items(tmp_path / "compare-new.items.parquet", cells, {})
    assert compared.comparison("new")["lines"] == summarize(cells)


def test_verdicts_from_means_by_seed_are_near_those_from_items() -> None:
    """What the recorded bootstrap held of items comes back: here its interval is written out for normal scores."""
    rng = np.random.default_rng(4)
    names = ("random", "ifd")
    scores = {name: rng.normal(size=(1, 400)) + 0.02 * rng.normal(size=(3, 1)) for name in names}
    lines = []
    for name, score in scores.items():
        means, item = score.mean(1), (score - scores["random"]).mean(0)
        line = {"name": name, "suite": "s", "task": "t", "items": 400, "seeds": 3, "by_seed": means.tolist(),
                "value": means.mean(), "higher_is_better": True}  # fmt: skip
        wide = 1.96 * np.sqrt(score.mean(0).var(ddof=1) / 400 + means.var() / 3)
        line |= {"low": means.mean() - wide, "high": means.mean() + wide}
        if name != "random":
            gaps = means - scores["random"].mean(1)
            wide = 1.96 * np.sqrt(item.var(ddof=1) / 400 + gaps.var() / 3)
            line |= {"diff": gaps.mean(), "diff_low": gaps.mean() - wide, "diff_high": gaps.mean() + wide}
        lines.append(line)
    found = compared.rejudged(lines)[1]
    ids = [str(n) for n in range(400)]
    cells = [
        CellResult(Cell(name, "", seed), {}, [SuiteResult("s", name, (TaskResult("t", "m", ids, score[seed]),))])
        for name, score in scores.items()
        for seed in range(3)
    ]
    whole = summarize(cells)[1]
    for key in ("low", "high", "diff_low", "diff_high", "p"):
        assert found[key] == pytest.approx(whole[key], rel=1e-3)
