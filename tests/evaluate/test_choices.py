"""Medical questions with lettered options: what is asked, of which files, and what the results say."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Counting, causal, reference
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.suite import HarnessSuite, med_suite, share_limit
from instdiff.evaluation.results import distinct
from instdiff.evaluation.subject import Subject
from instdiff.store import Store

ANSWERS = "CADBBCA"


def questions(task: str) -> list[dict[str, Any]]:
    """A few questions of our own, as each benchmark is published."""
    out: list[dict[str, Any]] = []
    for number, letter in enumerate(ANSWERS):
        asked, options = f"Which of these is number {number}?", [f"the sky {number}", "grass", "7 things", "why"]
        answer = "ABCD".index(letter)
        if task == "medqa":
            out.append({"question": asked, "options": dict(zip("ABCD", options, strict=True)), "answer_idx": letter})
        elif task == "medmcqa":
            out.append(
                {"question": asked, **{f"op{k}": o for k, o in zip("abcd", options, strict=True)}, "cop": answer}
            )
        else:
            out.append({"subject": "anatomy", "question": asked, "choices": options, "answer": answer})
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def subject(tmp_path: Path) -> Callable[..., Subject]:
    def make(model: Path, **settings: Any) -> Subject:
        return Subject(
            "tested",
            ModelRef(str(model)),
            Settings(**{"dtype": "float32", "device": "cpu", **settings}),
            Store(tmp_path / "store"),
            tmp_path / "folder",
            None,  # type: ignore[arg-type]
            list[str]().append,
            Counting(),
        )

    return make


@pytest.mark.shared_data
def test_the_files_that_are_there(shared: Path) -> None:
    config = build(EvalConfig, {"data_dir": str(shared / "data")}, "test")
    suite = med_suite(config)
    sizes = {}
    for task, where in suite.tasks:
        known = {task.subject(name) for name in task.entries()}
        parts = data.parts(str(where), task.read, subjects=task.group)
        sizes[task.name] = [len(splits["test"]) for subject, splits in parts.items() if subject in known]
    assert {name: sum(counts) for name, counts in sizes.items()} == {
        "medqa": 1273,
        "medmcqa": 4183,
        "mmlu_medical": 1089,
    }
    assert len(sizes["mmlu_medical"]) == 6


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    (home / "med").mkdir(parents=True)
    write(home / "med" / "medqa_test.jsonl", questions("medqa"))
    write(home / "med" / "medqa_train.jsonl", questions("medqa")[:2])
    write(home / "medmcqa.jsonl", [*questions("medmcqa"), {**questions("medmcqa")[0], "cop": -1}])
    other = {"subject": "nutrition", "question": "What?", "choices": ["a", "b", "c", "d"], "answer": 0}
    two = [{**row, "subject": "college medicine"} for row in questions("mmlu")[:2]]
    write(home / "med" / "mmlu_medical_test.jsonl", [*questions("mmlu"), other, *two])
    return home


def suite(folder: Path, **values: Any) -> HarnessSuite:
    return med_suite(build(EvalConfig, {"data_dir": str(folder), **values}, "test"))


def likelihoods(model: Path, prompts: list[str]) -> Any:
    """Log-likelihood of each letter after each prompt, by a forward of the whole text."""
    from transformers import AutoTokenizer

    hf, own, out = AutoTokenizer.from_pretrained(model), causal(model), []
    for prompt in prompts:
        head = len(hf(prompt).input_ids)
        rows = [hf(f"{prompt} {letter}").input_ids for letter in "ABCD"]
        out.append([-reference(own, ids, np.arange(len(ids)) >= head)[0].sum() for ids in rows])
    return np.array(out)


def test_the_suite(folder: Path, models: dict[str, Path], subject: Callable[..., Subject]) -> None:
    medqa, medmcqa, mmlu = suite(folder).run(subject(models["llama"]))
    prompts = []
    for row in map(data.medqa, questions("medqa")):
        options = "".join(f"{letter}. {row[f'ending{number}']}\n" for number, letter in enumerate("ABCD"))
        prompts.append(f"Question: {row['sent1']}\n{options}Answer:")
    logs = likelihoods(models["llama"], prompts)
    right = (logs.argmax(1) == ["ABCD".index(letter) for letter in ANSWERS]).astype(float)
    assert medqa.metric == "accuracy" and medqa.score.tolist() == right.tolist()
    sure = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    true = [sure[row, "ABCD".index(letter)] for row, letter in enumerate(ANSWERS)]
    assert medqa.details["answer_probability"] == pytest.approx(np.mean(true), rel=1e-4)
    assert list(medqa.details["chosen"].values()) == np.bincount(logs.argmax(1), minlength=4).tolist()
    assert medmcqa.reason is not None and list(medmcqa.reason) == [None] * 7 + ["no_answer"]
    assert np.isnan(medmcqa.score[-1]) and medmcqa.record()["scored"] == 7
    assert list(mmlu.details["by_subject"]) == ["anatomy", "college_medicine"]
    assert [name.split(":")[0] for name in mmlu.ids] == ["anatomy"] * 7 + ["college_medicine"] * 2


def test_what_is_in_the_store_is_not_computed_again(
    folder: Path, models: dict[str, Path], subject: Callable[..., Subject]
) -> None:
    few = subject(models["llama"])
    first = suite(folder, limit=3, task="medqa").run(few)[0]
    assert few.progress.rows == 12 and few.cost["prompt_tokens"] == few.progress.tokens  # type: ignore[attr-defined]
    again = subject(models["llama"])
    whole = suite(folder, task="medqa").run(again)[0]
    assert again.progress.rows == 16 and again.progress.cached == 12  # type: ignore[attr-defined]
    assert whole.ids[:3] == first.ids and whole.score[:3].tolist() == first.score.tolist()


def test_examples_come_from_the_file_beside(
    folder: Path, models: dict[str, Path], subject: Callable[..., Subject]
) -> None:
    asked = subject(models["llama"])
    shown = suite(folder, task="medqa", shots=2).run(asked)[0]
    assert shown.details["shots"] == 2
    lines: list[str] = []
    asked = Subject(**{**vars(subject(models["llama"])), "log": lines.append})
    none = suite(folder, task="medmcqa", shots=2).run(asked)[0]
    assert none.details["shots"] == 0 and "medmcqa has 0 examples" in lines[0]


def test_examples_are_the_first_of_their_split(
    folder: Path, models: dict[str, Path], subject: Callable[..., Subject]
) -> None:
    (folder / "med" / "medqa_train.jsonl").unlink()
    write(folder / "med" / "medqa_train.jsonl", questions("medqa")[::-1])
    asked = suite(folder, task="medqa", shots=1, limit=1)
    shown = asked.requests(asked.model(subject(models["llama"])))[0].args[0]
    assert shown.startswith("Question: Which of these is number 6?") and shown.count("Question:") == 2


def test_what_is_too_long_loses_its_beginning(
    folder: Path, models: dict[str, Path], subject: Callable[..., Subject]
) -> None:
    found = suite(folder, task="medqa", max_length=20).run(subject(models["llama"]))[0]
    assert found.details["truncated"] == 4 * len(ANSWERS) and np.isfinite(found.score).all()


def test_user_errors(folder: Path, tmp_path: Path, models: dict[str, Path], subject: Callable[..., Subject]) -> None:
    with pytest.raises(ConfigError, match="no task 'medqua'; did you mean 'medqa'"):
        suite(folder, task="medqua")
    with pytest.raises(DataError, match="file of task 'medqa' is not there"):
        suite(folder, task_data={"medqa": str(tmp_path / "none.jsonl")})
    ask = subject(models["llama"])
    with pytest.raises(DataError, match=r"'medqa' cannot be loaded from the hub: .*give its file: data.medqa=PATH"):
        med_suite(build(EvalConfig, {"task": "medqa"}, "test")).run(ask)
    bad = write(tmp_path / "bad.jsonl", [{"question": "?", "options": {"A": "a"}, "answer_idx": "A"}])
    with pytest.raises(DataError, match=r"bad.jsonl, row 1: not in a format that is read here \(KeyError: 'B'\)"):
        suite(folder, task="medqa", task_data={"medqa": str(bad)}).run(ask)
    other = write(tmp_path / "other.jsonl", [{**questions("mmlu")[0], "subject": "law"}])
    with pytest.raises(DataError, match="none of the subjects of mmlu_medical: anatomy"):
        suite(folder, task="mmlu_medical", task_data={"mmlu_medical": str(other)}).run(ask)
    from_one = write(tmp_path / "one.jsonl", [{**questions("medmcqa")[0], "cop": 4}])
    with pytest.raises(DataError, match="counted from 0 here, not from 1"):
        suite(folder, task="medmcqa", task_data={"medmcqa": str(from_one)}).run(ask)


def test_part_of_a_file(folder: Path) -> None:
    read = partial(data.parts, read=data.medqa)
    whole = read(str(folder / "med" / "medqa_test.jsonl"))[""]["test"]
    assert read(f"{folder}/med/medqa_test.jsonl[-2:]")[""]["test"] == whole[-2:]
    assert read(f"{folder}/med/medqa_test.jsonl[1:3]")[""]["test"] == whole[1:3]


def test_items_are_dealt_and_named() -> None:
    assert share_limit({"a": 9, "b": 1, "c": 9}, 7) == {"a": 3, "b": 1, "c": 3}
    assert share_limit({"a": 2, "b": 1}, None) == share_limit({"a": 2, "b": 1}, 5) == {"a": 2, "b": 1}
    assert sum(share_limit({"a": 9, "b": 9}, 1).values()) == 1
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
