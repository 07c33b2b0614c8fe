"""GSM8K as a choice of four numbers: which they are, and how they are weighed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import causal, reference
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef
from instdiff.engine.speed import Machine
from instdiff.errors import DataError
from instdiff.evaluation.cost import SuiteCosts
from instdiff.evaluation.evaluator import evaluate
from instdiff.evaluation.harness.number_choices import number_choices
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.suites import make_suites
from instdiff.store import Store

EGGS = "Ann has 16 eggs. She eats 3 and sells the rest for $2 each. How much does she make?"
SOLD = "She sells 16-3=<<16-3=13>>13 eggs.\nShe makes 13*2=$<<13*2=26>>26.\n#### 26"
ITEMS = [
    {"question": EGGS, "answer": SOLD},
    {"question": "What is half of twenty?", "answer": "It is ten.\n#### 10"},
    {"question": "What are $1,000 and $.50?", "answer": "1000+.5=<<1000+.5=1000.5>>1,000.5\n#### 1,000.5"},
    {"question": "What is left of nothing?", "answer": "#### 0"},
]
FLAT = {"dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize(
    ("item", "right", "wrong"),
    [
        (ITEMS[0], "26", {"13", "16", "3"}),  # the solution's other result, then numbers of the question
        (ITEMS[1], "10", {"100", "1", "11"}),  # times and divided by ten, plus one
        (ITEMS[2], "1000.5", {"1000", "0.5", "10005"}),
        (ITEMS[3], "0", {"1", "-1", "10"}),
        ({"question": "1 or 10 or 3/4?", "answer": "<<3/4=3/4>> #### 1"}, "1", {"10", "3", "4"}),
        ({"question": "Ten?", "answer": "#### 15"}, "15", {"150", "16", "14"}),  # 1.5 would be told at sight
    ],
)
def test_the_numbers(item: dict[str, str], right: str, wrong: set[str]) -> None:
    choices, label = number_choices(item["question"], item["answer"])
    assert choices[label] == right and len(choices) == 4 and set(choices) == {right, *wrong}
    # Other words of the same solution change nothing.
    assert number_choices(item["question"], f"Let us see. {item['answer']}") == (choices, label)


def test_the_order_is_that_of_the_content() -> None:
    assert number_choices(EGGS, SOLD) == (["3", "16", "13", "26"], 3)
    assert number_choices(f"{EGGS} ", SOLD) == (["16", "13", "26", "3"], 2)


def test_an_answer_without_a_number() -> None:
    with pytest.raises(ValueError, match=r"no number behind '####' in '\.\.\.It is ten\.'"):
        number_choices("Why?", "It is ten.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in ITEMS)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text(lines)
    return tmp_path / "data"


def told(model: Path, folder: Path, **values: Any) -> TaskResult:
    asked = {"suite": ["openllm"], "task": ["gsm8k_choice"], "data_dir": str(folder), **FLAT, **values}
    (found,) = evaluate(str(model), **asked)
    (task,) = found.tasks
    return task


def test_it_is_read_from_likelihoods(folder: Path, models: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    hf, own, right, normed = AutoTokenizer.from_pretrained(models["llama"]), causal(models["llama"]), [], []
    for row in ITEMS:
        choices, label = number_choices(row["question"], row["answer"])
        prompt = f"Question: {row['question']}\nAnswer:"
        head, logs = len(hf(prompt).input_ids), []
        for choice in choices:
            ids = hf(f"{prompt} {choice}").input_ids
            logs.append(-float(reference(own, ids, np.arange(len(ids)) >= head)[0].sum()))
        right.append(float(np.argmax(logs) == label))
        normed.append(float(np.argmax(np.array(logs) / list(map(len, choices))) == label))
    found = told(models["llama"], folder)
    assert (found.name, found.metric, found.higher_is_better) == ("gsm8k_choice", "acc", True)
    assert found.score.tolist() == right and found.details["shots"] == 0
    assert found.details["means"] == {"acc": np.mean(right), "acc_norm": np.mean(normed)}
    assert all(name.startswith("gsm8k_choice:") for name in found.ids)
    few = told(models["llama"], folder, limit=2)
    assert list(few.ids) == list(found.ids[:2]) and few.score.tolist() == right[:2]


def test_a_plan_prices_what_is_not_kept(folder: Path, models: dict[str, Path], tmp_path: Path) -> None:
    values = {
        "suite": "openllm",
        "task": "gsm8k_choice",
        "data_dir": str(folder),
        "model": str(models["llama"]),
        **FLAT,
    }
    config = build(EvalConfig, {**values, **FLAT}, "test")
    costs = SuiteCosts(Store(tmp_path / "other"), Machine(torch.device("cpu")))
    lines = costs.stages("eval", make_suites(config), config, ModelRef(str(models["llama"])))
    assert [(line.kind, line.rows) for line in lines] == [("evaluate", 16)]


def test_a_file_without_answers_is_refused(folder: Path, models: dict[str, Path]) -> None:
    path = folder / "gsm8k" / "test.jsonl"
    path.write_text(json.dumps({"question": "Why?", "answer": "So it is."}) + "\n")
    with pytest.raises(DataError, match=r"task 'gsm8k_choice' cannot read .*no number behind '####'"):
        told(models["llama"], folder)


@pytest.mark.shared_data
def test_the_published_items(shared: Path) -> None:
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(row, *number_choices(row["question"], row["answer"])) for row in map(json.loads, lines)]
    assert len(found) == 1319 and all(len(set(choices)) == 4 for _, choices, _ in found)
    for row, choices, label in found:
        assert choices[label] == row["answer"].rpartition("#### ")[2].replace(",", "")
    assert Counter(label for *_, label in found) == {0: 354, 1: 318, 2: 310, 3: 337}
    assert found[0][1:] == (["18", "2", "9", "16"], 0) and found[1][1:] == (["1", "3", "30", "2"], 1)
