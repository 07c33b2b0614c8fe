"""LESS by Bergson: what it is asked for, and what is made of its cosines. The package itself is stood in for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import some_rows
from instdiff.data import load
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.methods import ByColumn
from instdiff.scoring import bergson
from instdiff.scoring.bergson import best_task, score_by_bergson
from instdiff.scoring.scorer import score

ROWS = some_rows(4, seed=1)
TARGET = load([{**row, "task": name} for row, name in zip(some_rows(3, seed=2), "aba", strict=True)])
FOUND = {
    "one": np.array([[1.0, 0.0, 0.5], [0.2, 0.9, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.1, 1.0]]),
    "two": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.4, 0.4, 0.4], [0.0, 0.0, 0.0]]),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Bergson, as far as it is used; what it is asked for is kept."""
    kept: list[tuple[str, Any]] = []

    def run(kind: str, *parts: Any) -> Any:
        return SimpleNamespace(execute=lambda: kept.append((kind, parts)))

    package, commands, data = (ModuleType(name) for name in ("bergson", "bergson.cli.commands", "bergson.data"))
    for name in ("DataConfig", "IndexConfig", "PreprocessConfig", "ScoreConfig"):
        setattr(package, name, SimpleNamespace)
    commands.Build = lambda *parts: run("build", *parts)  # type: ignore[attr-defined]
    commands.Score = lambda *parts: run("score", *parts)  # type: ignore[attr-defined]
    data.load_scores = lambda path: FOUND[kept[-1][1][1].model]  # type: ignore[attr-defined]
    for module in (package, ModuleType("bergson.cli"), commands, data):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(bergson, "require", lambda *args: None)
    return kept


def test_it_is_asked_as_less_has_it(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    out = score_by_bergson(
        load(ROWS), TARGET, {"one": 3.0, "two": 1.0}, tmp_path / "less.jsonl", folder=tmp_path / "work", task="task",
        optimizer_states={"one": "one/optimizer.pt"}, precision="fp32",
    )  # fmt: skip
    assert [kind for kind, _ in asked] == ["build", "score", "build", "score"]
    (index, unit), (scoring, other, same) = asked[0][1], asked[1][1]
    assert (index.projection_dim, index.projection_target, index.loss_reduction) == (8192, "global", "mean")
    assert (index.optimizer_state, asked[2][1][0].optimizer_state, index.precision) == ("one/optimizer.pt", "", "fp32")
    assert unit.unit_normalize and unit.aggregation == "none" and same.unit_normalize
    assert scoring.score == "individual" and scoring.query_path == index.run_path and other.model == "one"
    assert index.data.conversation_column == "messages" and index.data.dataset == str(
        tmp_path / "work" / "target.jsonl"
    )
    first = json.loads((tmp_path / "work" / "pool.jsonl").read_text().splitlines()[0])["messages"]
    assert [turn["role"] for turn in first] == ["user", "assistant"] and first[1]["content"] == ROWS[0]["output"]
    whole = 0.75 * FOUND["one"] + 0.25 * FOUND["two"]
    expected = np.maximum(whole[:, [0, 2]].mean(1), whole[:, 1])
    np.testing.assert_allclose([json.loads(line)["less"] for line in out.read_text().splitlines()], expected)
    table = score(load(ROWS), [ByColumn(path="less", file=str(out), by="line")])
    np.testing.assert_allclose(table["column"].value, expected)


def test_without_tasks_each_target_is_one() -> None:
    np.testing.assert_allclose(best_task(FOUND["one"], None), FOUND["one"].max(1))


def test_what_cannot_be_is_said(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights of saves lie above 0"):
        score_by_bergson(load(ROWS), TARGET, {"one": 0.0}, tmp_path / "x", folder=tmp_path)
    with pytest.raises(DataError, match=r"Bergson gave scores \(4, 3\) for 3 rows and 3 targets"):
        score_by_bergson(load(ROWS[:3]), TARGET, {"one": 1.0}, tmp_path / "x", folder=tmp_path)


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r'LESS by the gradients of all layers needs bergson.*"instdiff\[bergson\]"'):
        score_by_bergson(load(ROWS), TARGET, {"one": 1.0}, tmp_path / "x", folder=tmp_path)
