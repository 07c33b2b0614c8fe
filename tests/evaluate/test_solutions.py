"""NLL of the published solutions of programming problems."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import by_hand, reference
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef
from instdiff.engine.speed import Machine
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.code.solutions import SolutionSuite
from instdiff.evaluation.code.suite import CodeSuite, code_suite
from instdiff.evaluation.cost import SuiteCosts
from instdiff.evaluation.evaluator import evaluate
from instdiff.evaluation.results import TaskResult
from instdiff.experiments.halving import half, half_of
from instdiff.grading.sandbox import Sandbox
from instdiff.store import Store

MBPP = [
    {"task_id": 10 + n, "text": f"Write a function that adds {n}.", "code": f"def add(x):\r\n  return x + {n}"}
    for n in range(9)
]
"""The first is no test row."""
HUMAN_EVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def times_{n}(x):\n    """Times {n}."""\n',
        "canonical_solution": f"    return x * {n}\n",
    }
    for n in range(6)
]
BOTH = ["humaneval_nll", "mbpp_nll"]
FLAT = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both benchmarks as they are published; a program that is run fails the test."""
    monkeypatch.setattr(Sandbox, "check", lambda one: pytest.fail("the sandbox was asked"))
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    data = tmp_path / "data"
    (data / "mbpp").mkdir(parents=True)
    (data / "mbpp" / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    (data / "humaneval").mkdir()
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in HUMAN_EVAL)
    return data


def solutions(**values: Any) -> SolutionSuite:
    found = code_suite(build(EvalConfig, {"suite": "code", **values}, "test"))
    assert isinstance(found, SolutionSuite)
    return found


def rows_of(task: str) -> list[dict[str, str]]:
    """The same as instruction data."""
    if task == "mbpp_nll":
        return [{"instruction": str(row["text"]), "output": str(row["code"]).replace("\r", "")} for row in MBPP[1:]]
    return [{"instruction": row["prompt"], "output": row["canonical_solution"]} for row in HUMAN_EVAL]


def told(model: Path, **values: Any) -> dict[str, TaskResult]:
    (found,) = evaluate(str(model), **FLAT, **values)
    return {task.name: task for task in found.tasks}


def test_it_is_the_nll_of_held_out_rows(folder: Path, models: dict[str, Path]) -> None:
    model = models["llama"]
    found = told(model, suite=["code"], task=BOTH, data_dir=str(folder), template="alpaca")
    assert list(found) == BOTH
    for task, mine in found.items():
        held = told(model, suite=["heldout"], data=rows_of(task), template="alpaca")["heldout"]
        assert list(mine.ids) == list(held.ids) and mine.score.tolist() == held.score.tolist()
        assert mine.weights.tolist() == held.weights.tolist() and mine.value == held.value
        assert (mine.metric, mine.higher_is_better) == ("nll", False)
        assert mine.details["data_fingerprint"] == held.details["data_fingerprint"]
    assert [Path(found[task].details["data"]).name for task in BOTH] == ["HumanEval.jsonl.gz", "mbpp.jsonl"]
    other = told(model, suite=["code"], task=BOTH, data_dir=str(folder), template="plain")
    assert np.abs(other["mbpp_nll"].score / found["mbpp_nll"].score - 1).min() > 1e-4


def test_it_is_the_nll_of_a_plain_loop(lab: Any, folder: Path, models: dict[str, Path]) -> None:
    found = told(models["llama"], suite=["code"], task=BOTH, data_dir=str(folder))
    hf, plain = lab.tokenizer("llama"), lab.reference("llama")
    for task, mine in found.items():
        for row, score, weight in zip(rows_of(task), mine.score, mine.weights, strict=True):
            seen = by_hand(hf, row, 2048)["given"]
            assert seen is not None
            nll = reference(plain, *seen)[0]
            assert score == pytest.approx(float(nll.mean()), abs=1e-5) and weight == len(nll)


def test_limit_and_parts(folder: Path, models: dict[str, Path]) -> None:
    few = solutions(task=BOTH, data_dir=str(folder), limit=4)
    assert few.pool.column("task") == ["humaneval_nll"] * 4 + ["mbpp_nll"] * 4
    whole = told(models["llama"], suite=["code"], task=BOTH, data_dir=str(folder))
    some = told(models["llama"], suite=["code"], task=BOTH, data_dir=str(folder), limit=4)
    assert some["mbpp_nll"].score.tolist() == whole["mbpp_nll"].score[:4].tolist()
    both = solutions(task=BOTH, data_dir=str(folder))
    for side in (False, True):
        (of_code,) = {type(part := half_of(both, side))}
        names = [name for task in BOTH for name in half(whole[task], side).ids]
        assert of_code is SolutionSuite and sorted(part.pool.ids) == sorted(names)  # type: ignore[attr-defined]


def test_the_file_of_a_benchmark_is_that_of_its_solutions(folder: Path) -> None:
    path = str(folder / "mbpp" / "mbpp.jsonl")
    for key in ("mbpp", "mbpp_nll"):
        assert dict(solutions(task="mbpp_nll", task_data={key: path}).files) == {"mbpp_nll": path}
    with pytest.raises(DataError, match=r"task 'mbpp_nll': '.*' has no mbpp_nll.jsonl or mbpp.jsonl"):
        solutions(task="mbpp_nll", data_dir=str(folder / "humaneval"))
    with pytest.raises(ConfigError, match="suite 'code' has no task 'mbp_nll'; did you mean 'mbpp_nll'"):
        solutions(task="mbp_nll")


def test_they_are_run_where_they_are_named(folder: Path) -> None:
    config = build(EvalConfig, {"data_dir": str(folder)}, "test")
    usual = code_suite(config)
    assert isinstance(usual, CodeSuite) and "mbpp" in usual.tasks and usual.solutions is None
    mixed = code_suite(config.model_copy(update={"task": ["mbpp", "mbpp_nll"]}))
    assert isinstance(mixed, CodeSuite) and mixed.tasks == ("mbpp",) and mixed.solutions is not None
    assert len(mixed.solutions.pool) == 8


def test_a_plan_prices_what_is_not_kept(folder: Path, models: dict[str, Path], tmp_path: Path) -> None:
    values = {"suite": "code", "task": BOTH, "data_dir": str(folder), "model": str(models["llama"]), **FLAT}
    config, store = build(EvalConfig, values, "test"), Store(tmp_path / "other")

    def rows() -> list[tuple[str, int]]:
        costs = SuiteCosts(store, Machine(torch.device("cpu")))
        lines = costs.stages("eval", [code_suite(config)], config, ModelRef(str(models["llama"])))
        return [(line.kind, line.rows) for line in lines]

    assert rows() == [("evaluate", 14)]
    evaluate(config, store=store)
    assert sum(count for _, count in rows()) == 0


@pytest.mark.shared_data
def test_the_files_that_are_there(shared: Path) -> None:
    both = solutions(task=BOTH, data_dir=str(shared / "data"))
    own = both.pool.column("task")
    assert (own.count("humaneval_nll"), own.count("mbpp_nll")) == (164, 500)
    assert not any("\r" in sample.response for sample in both.pool.samples())
