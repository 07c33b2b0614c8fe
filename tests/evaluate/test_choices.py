"""Lettered options by likelihood: lm-eval's own numbers, in batches, from the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Counting
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.multiple_choice import (
    MED,
    ChoicePrompt,
    ChoiceScorer,
    ChoiceSuite,
    Question,
    share_limit,
)
from instdiff.evaluation.harness.suite import med_suite
from instdiff.evaluation.results import distinct
from instdiff.evaluation.subject import Subject
from instdiff.store import Store

ENTRY = {"medqa": "medqa_4options", "medmcqa": "medmcqa", "mmlu_medical": "mmlu_anatomy"}
FOLDER = {"medqa": "medqa", "medmcqa": "medmcqa", "mmlu_medical": "mmlu/default"}
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


def by_lm_eval(model: Path, task: str, parts: dict[str, list[Any]], shots: int, chat: bool = False) -> Any:
    """The log-likelihoods [questions, 4] of lm-eval's own task on the same rows, through its own model class."""
    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def local(**_: Any) -> Any:
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})

    manager = TaskManager(
        include_path=str(Path(lm_eval.__file__).parent / "tasks" / FOLDER[task]), include_defaults=False
    )
    own = {
        "custom_dataset": local,
        "test_split": "test",
        "validation_split": None,
        "training_split": None,
        "num_fewshot": shots,
        "fewshot_split": "shots" if shots else None,
        "fewshot_config": {"sampler": "first_n"},
    }
    group = {"group": "own", "task": [{"task": ENTRY[task], **own}]}
    lm = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=3,
    )
    found = lm_eval.evaluate(
        lm, manager.load([group]), bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat
    )
    samples = sorted(found["samples"][ENTRY[task]], key=lambda sample: sample["doc_id"])
    assert [sample["acc"] for sample in samples]
    return np.array([[float(reply[0][0]) for reply in sample["resps"]] for sample in samples])


def ours(task: str, parts: dict[str, list[Any]], shots: int, asked: Subject) -> Any:
    teller, kind = ChoiceScorer(asked), MED[task]
    shown = [kind.ask(row) for row in parts.get("shots", [])[:shots]]
    talks = [ChoicePrompt(kind.intro.format(subject="anatomy"), shown, kind.ask(row)) for row in parts["test"]]
    return teller.likelihoods(talks, task)


@pytest.mark.parametrize("task", list(MED))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equals_lm_eval(
    task: str, name: str, models: dict[str, Path], subject: Callable[..., Subject], tmp_path: Path
) -> None:
    rows = [MED[task].read(row) for row in questions(task)]
    parts, shots = ({"test": rows[2:], "shots": rows[:2]}, 0 if task == "medqa" else 1)
    found = ours(task, parts, shots, subject(models[name], max_length=2048))
    np.testing.assert_allclose(found.logs, by_lm_eval(models[name], task, parts, shots), atol=1e-4, rtol=0)
    assert found.several.tolist() == [found.several[0]] * 5 and not found.truncated.any()


def test_equals_lm_eval_in_the_chat_template(models: dict[str, Path], subject: Callable[..., Subject]) -> None:
    rows = [data.medqa(row) for row in questions("medqa")]
    parts = {"test": rows[2:], "shots": rows[:1]}
    asked = subject(models["llama"], templates={"*": "chat"})
    found = ours("medqa", parts, 1, asked)
    np.testing.assert_allclose(found.logs, by_lm_eval(models["llama"], "medqa", parts, 1, True), atol=1e-4, rtol=0)
    plain = ours("medqa", parts, 1, subject(models["llama"]))
    assert np.abs(found.logs - plain.logs).min() > 1e-3


@pytest.mark.shared_data
def test_medqa_equals_lm_eval(shared: Path, subject: Callable[..., Subject]) -> None:
    model = shared / "models" / "base-5m"
    rows = data.parts(str(shared / "data" / "med" / "medqa_test.jsonl"), data.medqa)[""]["test"]
    assert len(rows) == 1273
    asked = subject(model)
    found = ours("medqa", {"test": rows[:20]}, 0, asked)
    assert found.logs.shape == (20, 4) and not found.several.any()
    np.testing.assert_allclose(found.logs, by_lm_eval(model, "medqa", {"test": rows[:20]}, 0), atol=1e-4, rtol=0)


@pytest.mark.shared_data
def test_the_files_that_are_there(shared: Path) -> None:
    config = build(EvalConfig, {"data_dir": str(shared / "data")}, "test")
    suite = med_suite(config)
    rows = {task.name: task.rows(where, 0) for task, where in suite.tasks}
    sizes = {name: sum(len(splits["test"]) for splits in parts.values()) for name, parts in rows.items()}
    assert sizes == {"medqa": 1273, "medmcqa": 4183, "mmlu_medical": 1089}
    assert len(rows["mmlu_medical"]) == 6


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


def suite(folder: Path, **values: Any) -> ChoiceSuite:
    return med_suite(build(EvalConfig, {"data_dir": str(folder), **values}, "test"))


def test_the_suite(folder: Path, models: dict[str, Path], subject: Callable[..., Subject]) -> None:
    asked = subject(models["llama"])
    medqa, medmcqa, mmlu = suite(folder).run(asked)
    rows = [data.medqa(row) for row in questions("medqa")]
    logs = ours("medqa", {"test": rows}, 0, asked).logs
    right = (logs.argmax(1) == ["ABCD".index(letter) for letter in ANSWERS]).astype(float)
    assert medqa.metric == "accuracy" and medqa.score.tolist() == right.tolist()
    sure = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    true = [sure[row, "ABCD".index(letter)] for row, letter in enumerate(ANSWERS)]
    assert medqa.details["answer_probability"] == pytest.approx(np.mean(true))
    assert sum(medqa.details["chosen"].values()) == len(ANSWERS)
    assert medmcqa.reason is not None and list(medmcqa.reason) == [None] * 7 + ["no_answer"]
    assert np.isnan(medmcqa.score[-1]) and medmcqa.record()["scored"] == 7
    assert list(mmlu.details["accuracy_by_subject"]) == ["anatomy", "college_medicine"]
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


def test_what_is_too_long_loses_its_beginning(models: dict[str, Path], subject: Callable[..., Subject]) -> None:
    asked = subject(models["llama"], max_length=40)
    talks = [
        ChoicePrompt("", [], Question(text, 0))
        for text in ("why " * 100 + "Answer:", "the " + "why " * 100 + "Answer:")
    ]
    found = ChoiceScorer(asked).likelihoods(talks, "long")
    assert found.truncated.all() and np.isfinite(found.logs).all()
    np.testing.assert_allclose(found.logs[0], found.logs[1], atol=1e-5)


def test_user_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'medqua'; did you mean 'medqa'"):
        suite(folder, task="medqua")
    with pytest.raises(DataError, match="file of task 'medqa' is not there"):
        suite(folder, task_data={"medqa": str(tmp_path / "none.jsonl")})
    with pytest.raises(DataError, match=r"medqa: cannot load hub:GBaker.*give its file: data.medqa=PATH"):
        MED["medqa"].rows(None, 0)
    bad = write(tmp_path / "bad.jsonl", [{"question": "?", "options": {"A": "a"}, "answer_idx": "A"}])
    asked = suite(folder, task="medqa", task_data={"medqa": str(bad)})
    with pytest.raises(DataError, match=r"bad.jsonl, row 1: not in a format that is read here \(KeyError: 'B'\)"):
        asked.tasks[0][0].rows(asked.tasks[0][1], 0)
    other = write(tmp_path / "other.jsonl", [{**questions("mmlu")[0], "subject": "law"}])
    with pytest.raises(DataError, match="none of the subjects of mmlu_medical: anatomy"):
        MED["mmlu_medical"].rows(str(other), 0)
    from_one = write(tmp_path / "one.jsonl", [{**questions("medmcqa")[0], "cop": 4}])
    with pytest.raises(DataError, match="counted from 0 here, not from 1"):
        MED["medmcqa"].rows(str(from_one), 0)


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
