"""The leaderboard's tasks through lm-eval, on small local files, with a tiny model."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Counting, causal, make_llama, reference
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Advance
from instdiff.engine.models import Resident
from instdiff.engine.speed import Machine
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.evaluation.cost import SuiteCosts
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.suite import OPENLLM, HarnessSuite, openllm_suite
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import Subject, make_generator
from instdiff.evaluation.suites import make_suites
from instdiff.store import Store

CHOICES = ["the sky is blue", "why", "list 7 things", "green grass"]


def published(home: Path) -> Path:
    """A few rows of our own for every task, each in the format in which the benchmark is published."""
    home.mkdir()

    def lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
        path = home / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    options = [{"text": text, "label": label} for text, label in zip(CHOICES, "ABCD", strict=True)]
    asked = [
        {"question": {"stem": f"What is {n}?", "choices": options}, "answerKey": "ABCD"[n % 4], "id": str(n)}
        for n in range(6)
    ]
    lines("arc/test.jsonl", asked[:5])
    lines("arc/train.jsonl", asked[5:])
    lines("openbookqa.jsonl", asked[:4])
    scene = {"activity_label": "Explain", "ctx_a": "The sky [x] is", "ctx_b": "blue", "endings": CHOICES}
    lines("hellaswag_val.jsonl", [{**scene, "ctx_a": f"The sky is {n}", "label": n} for n in range(3)])
    lines("gsm8k/test.jsonl", [{"question": f"What is {n} and 1?", "answer": f"{n}+1\n#### {n + 1}"} for n in range(3)])
    lines("gsm8k/train.jsonl", [{"question": "What is 7?", "answer": "7 it is\n#### 7"}])
    with zipfile.ZipFile(home / "mmlu.zip", "w") as packed:
        for subject, split, count in (("anatomy", "test", 3), ("virology", "test", 2), ("anatomy", "dev", 2)):
            text = io.StringIO()
            csv.writer(text).writerows([[f"{subject} {n}?", *CHOICES, "ABCD"[n]] for n in range(count)])
            packed.writestr(f"data/{split}/{subject}_{split}.csv", text.getvalue())
    with open(home / "TruthfulQA.csv", "w", encoding="utf-8", newline="") as file:
        columns = ("Type", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")
        rows = [("x", f"Why {n}?", "Grass", "Grass; It is", "Green; Not ;") for n in range(2)]
        csv.writer(file).writerows([columns, *rows])
    (home / "bbh").mkdir()
    for subject in ("navigate", "word_sorting"):
        examples = [{"input": f"{subject} {n}", "target": "Yes"} for n in range(3)]
        (home / "bbh" / f"{subject}.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    return home


def suite(folder: Path | None, **values: Any) -> HarnessSuite:
    given = {} if folder is None else {"data_dir": str(folder)}
    return openllm_suite(build(EvalConfig, {**given, **values}, "test"))


def subject(model: Path, home: Path, log: list[str], **settings: Any) -> Subject:
    asked = Subject(
        "tested",
        ModelRef(str(model)),
        Settings(**{"dtype": "float32", "device": "cpu", **settings}),
        Store(home / "store"),
        home / "folder",
        None,  # type: ignore[arg-type]
        log.append,
        Counting(),
    )
    return replace(asked, generator=make_generator("hf", asked))


class Ran:
    """The whole suite, run once with the tiny model."""

    def __init__(self, model: Path, home: Path) -> None:
        self.model, self.home, self.log = model, home, list[str]()
        self.files = published(home / "data")
        self.subject = subject(model, home, self.log)
        self.tasks = {
            task.name: task
            for task in suite(self.files, shots=1, task=[*OPENLLM, "openbookqa"], max_new_tokens=8).run(self.subject)
        }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home = tmp_path_factory.mktemp("openllm")
    return Ran(make_llama(home / "model", max_position_embeddings=1024), home)


def test_every_task_has_its_items(ran: Ran) -> None:
    said = {name: (task.metric, len(task.ids), int(np.isfinite(task.score).sum())) for name, task in ran.tasks.items()}
    assert said == {
        "arc_challenge": ("acc_norm", 5, 5),
        "hellaswag": ("acc_norm", 3, 3),
        "mmlu": ("acc", 5, 5),
        "truthfulqa": ("mc2", 2, 2),
        "bbh": ("exact_match", 6, 6),
        "gsm8k": ("exact_match", 3, 3),
        "openbookqa": ("acc_norm", 4, 4),
    }
    assert [name.split(":")[0] for name in ran.tasks["mmlu"].ids] == ["anatomy"] * 3 + ["virology"] * 2
    assert list(ran.tasks["bbh"].details["by_subject"]) == ["navigate", "word_sorting"]
    assert set(ran.tasks["gsm8k"].details["means"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert {name: task.details["shots"] for name, task in ran.tasks.items()} == {
        "arc_challenge": 1,
        "hellaswag": 0,
        "mmlu": 0,  # one subject has no examples
        "truthfulqa": 0,
        "bbh": 1,
        "gsm8k": 1,
        "openbookqa": 0,
    }
    assert [line for line in ran.log if "mmlu_virology has 0 examples" in line]


def test_progress_and_cost_are_told(ran: Ran) -> None:
    told = ran.subject.progress
    assert told.rows == 4 * (5 + 3 + 5 + 2 + 4) + 6 + 3  # type: ignore[attr-defined]
    assert "openllm: mmlu" in told.labels  # type: ignore[attr-defined]
    assert ran.subject.cost["prompt_tokens"] > 1000 and ran.subject.cost["generated_tokens"] > 9


def by_hand(folder: Path, prompt: str, answers: Sequence[str]) -> Any:
    """Log-likelihood of each answer after a prompt, by a forward of the whole text."""
    from transformers import AutoTokenizer

    hf, model, out = AutoTokenizer.from_pretrained(folder), causal(folder), []
    head = len(hf(prompt).input_ids)
    for answer in answers:
        ids = hf(prompt + answer).input_ids
        out.append(-reference(model, ids, np.arange(len(ids)) >= head)[0].sum())
    return np.array(out)


def test_acc_norm_is_the_likeliest_by_length(ran: Ran) -> None:
    shown = f"Question: What is 5?\nAnswer: {CHOICES[1]}\n\n"
    right = []
    for number in range(5):
        logs = by_hand(ran.model, f"{shown}Question: What is {number}?\nAnswer:", [f" {choice}" for choice in CHOICES])
        right.append(float((logs / [len(choice) for choice in CHOICES]).argmax() == number % 4))
    assert ran.tasks["arc_challenge"].score.tolist() == right


def test_mc2_is_the_share_of_the_right_answers(ran: Ran) -> None:
    import lm_eval
    import yaml

    described = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    examples = yaml.safe_load(described.read_text(encoding="utf-8"))["doc_to_text"].split("'")[1]
    prompt = f"{examples}\n\nQ: Why 0?\nA:"
    held = np.exp(by_hand(ran.model, prompt, [" Grass", " It is", " Green", " Not"]))
    assert ran.tasks["truthfulqa"].score[0] == pytest.approx(held[:2].sum() / held.sum(), rel=1e-3)


def again(ran: Ran, **values: Any) -> tuple[dict[str, TaskResult], Subject]:
    asked = subject(ran.model, ran.home, [])
    values = {"shots": 1, "max_new_tokens": 8, **values}
    return {task.name: task for task in suite(ran.files, **values).run(asked)}, asked


def test_what_was_answered_is_not_asked_again(ran: Ran) -> None:
    found, asked = again(ran, task=["mmlu", "gsm8k"])
    assert asked.progress.rows == 0  # type: ignore[attr-defined]
    for name, task in found.items():
        assert list(task.ids) == list(ran.tasks[name].ids) and task.score.tolist() == ran.tasks[name].score.tolist()
    _, longer = again(ran, task="gsm8k", max_new_tokens=4)
    assert longer.progress.rows == 3  # type: ignore[attr-defined]


def test_answers_leave_room_for_the_prompt(ran: Ran, tmp_path: Path) -> None:
    log: list[str] = []
    asked = subject(ran.model, tmp_path, log)
    suite(ran.files, task="bbh", limit=2, shots=0, max_length=60).run(asked)
    assert log == ["bbh: answers are cut after 30 tokens, half of the model's context"]
    assert asked.cost["generated_tokens"] <= 2 * 30


class Impatient(Counting):
    """Interrupts after a few rows."""

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        with super().task(label, rows=rows, tokens=tokens, cached=cached) as advance:

            def until(more_rows: int, more_tokens: int) -> None:
                advance(more_rows, more_tokens)
                if self.rows >= 5:
                    raise KeyboardInterrupt

            yield until


def test_an_interrupted_run_goes_on(ran: Ran, tmp_path: Path) -> None:
    asked = replace(subject(ran.model, tmp_path, [], batch_tokens=200), progress=Impatient())
    with pytest.raises(KeyboardInterrupt):
        suite(ran.files, task="arc_challenge", shots=1).run(asked)
    done = asked.progress.rows  # type: ignore[attr-defined]
    asked = subject(ran.model, tmp_path, [])
    (found,) = suite(ran.files, task="arc_challenge", shots=1).run(asked)
    assert 5 <= done < 20 and asked.progress.rows <= 4 * 5 - done  # type: ignore[attr-defined]
    assert found.score.tolist() == ran.tasks["arc_challenge"].score.tolist()


def test_an_adapter_answers_for_itself(ran: Ran, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(causal(ran.model), lora).save_pretrained(tmp_path / "adapter")
    resident = Resident(torch.device("cpu"), torch.float32)
    scores = []
    for adapter in (None, str(tmp_path / "adapter"), None):
        model = ModelRef(str(ran.model), adapter=adapter)
        asked = replace(subject(ran.model, tmp_path / str(len(scores)), []), model=model, resident=resident)
        (found,) = suite(ran.files, task="truthfulqa").run(asked)
        assert asked.progress.rows == 8  # type: ignore[attr-defined]
        scores.append(found.score)
    assert np.abs(scores[1] / scores[0] - 1).min() > 1e-4
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-6)
    assert resident.loads == 1


def test_limit_is_dealt_over_subjects(ran: Ran) -> None:
    found, asked = again(ran, task=["mmlu", "arc_challenge"], limit=3)
    assert asked.progress.rows == 0  # type: ignore[attr-defined]
    mine = ran.tasks["mmlu"]
    assert list(found["mmlu"].ids) == [mine.ids[at] for at in (0, 1, 3)]
    assert list(found["arc_challenge"].ids) == list(ran.tasks["arc_challenge"].ids[:3])


def test_nobody_else_speaks(ran: Ran, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found, _ = again(ran, task=["truthfulqa", "hellaswag"], shots=0, max_length=900)
    assert len(found) == 2
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith(("lm_eval", "datasets"))]


def test_the_chat_template_where_it_is_the_run_s(ran: Ran) -> None:
    asked = subject(ran.model, ran.home, [], templates={"*": "chat"})
    (found,) = suite(ran.files, task="truthfulqa").run(asked)
    assert found.details["chat_template"] is True and asked.progress.rows == 8  # type: ignore[attr-defined]
    assert list(found.ids) == list(ran.tasks["truthfulqa"].ids)
    assert np.abs(found.score / ran.tasks["truthfulqa"].score - 1).min() > 1e-3


# ── what users do wrong ───────────────────────────────────────────────────────────────────────────────────────────────


def test_user_errors(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no task 'hellaswaq'; did you mean 'hellaswag'"):
        suite(None, task="hellaswaq")
    with pytest.raises(DataError, match=r"no folder '.*none'; --data-dir is where the files of tasks are"):
        suite(tmp_path / "none")
    with pytest.raises(DataError, match=r"'hellaswag' cannot be loaded from the hub: .*data.hellaswag=PATH"):
        suite(None, task="hellaswag").run(subject(ran.model, tmp_path, []))
    (tmp_path / "cooking.jsonl").write_text('{"input": "a", "target": "b"}\n')
    asked = suite(None, task="bbh", task_data={"bbh": str(tmp_path / "cooking.jsonl")})
    with pytest.raises(DataError, match="has none of the subjects of bbh: boolean_expressions"):
        asked.run(subject(ran.model, tmp_path, []))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(PlanError, match=r'pip install "instdiff\[eval\]"'):
        suite(None)


def test_formats() -> None:
    hub = {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    assert data.arc(hub) == hub
    assert data.openbookqa({**{k: hub[k] for k in ("choices", "answerKey")}, "question_stem": "q"}) == {
        **{k: hub[k] for k in ("choices", "answerKey")},
        "question_stem": "q",
    }
    published = {"question": "q", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "c": 1, "b": 0}}
    assert data.truthfulqa(published)["mc2_targets"] == {"choices": ["a", "c", "b"], "labels": [1, 1, 0]}
    assert data.mmlu({"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "C"})["answer"] == 2
    with pytest.raises(ValueError, match="answer 4 is none of the 4"):
        data.mmlu({"question": "q", "choices": list("abcd"), "answer": 4})
    assert data.medqa({"sent1": "q", **{f"ending{n}": "e" for n in range(4)}, "label": 3})["label"] == 3


@pytest.mark.shared_data
def test_the_files_that_are_there(shared: Path) -> None:
    chosen = suite(shared / "data", task=["mmlu", "truthfulqa", "bbh", "gsm8k", "openbookqa"])
    found = {task.name: data.parts(str(where), task.read, subjects=task.group) for task, where in chosen.tasks}
    sizes = {name: (len(parts), sum(len(splits["test"]) for splits in parts.values())) for name, parts in found.items()}
    assert sizes == {
        "mmlu": (57, 14042),
        "truthfulqa": (1, 817),
        "bbh": (27, 6511),
        "gsm8k": (1, 1319),
        "openbookqa": (1, 500),
    }
    assert all(len(splits["shots"]) == 5 for splits in found["mmlu"].values())
    assert len(found["gsm8k"][""]["shots"]) == 7473
    stem = data.parts(str(shared / "data" / "mmlu" / "mmlu_stem__test.jsonl"), data.mmlu, subjects=True)
    assert len(stem) == 18 and stem["college_biology"]["test"][0] in found["mmlu"]["college_biology"]["test"]


def test_a_plan_counts_the_requests(ran: Ran) -> None:
    whole = suite(ran.files, shots=1, task=[*OPENLLM, "openbookqa"], max_new_tokens=8)
    lm = whole.model(ran.subject)
    asked = whole.requests(lm)
    written = [one for one in asked if one.request_type == "generate_until"]
    assert len(written) == 6 + 3 and len(asked) - len(written) == 4 * (5 + 3 + 5 + 2 + 4)
    assert {sampling.max_new_tokens for _, sampling in lm.prompts(written)} == {8}


def test_a_plan_prices_what_is_not_kept(ran: Ran, tmp_path: Path) -> None:
    values = {"suite": "openllm", "task": "arc_challenge,gsm8k", "shots": 1, "max_new_tokens": 8, "device": "cpu"}
    given = {**values, "dtype": "float32", "data_dir": str(ran.files), "model": str(ran.model)}
    prices = []
    for kept in (ran.home, tmp_path):
        config = build(EvalConfig, {**given, "answers": str(kept / "folder")}, "test")
        costs = SuiteCosts(Store(kept / "store"), Machine(torch.device("cpu")))
        lines = costs.stages("eval", make_suites(config), config, ModelRef(str(ran.model)))
        prices.append([(line.kind, line.rows, line.most_tokens_out) for line in lines])
    assert prices == [[], [("evaluate", 20, 0), ("generate", 3, 24)]]
