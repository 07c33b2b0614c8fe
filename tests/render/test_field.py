"""Small inputs from the field: each row of the table on conversations gives the outcome that is written there."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from instdiff.core import Prompted
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template
from render.families import tokenizer_with

SHARED = Path(os.environ.get("INSTDIFF_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FIELD = SHARED / "field"
pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="the shared inputs are not here")

MARKS = (
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
END = {"qwen3": "<|im_end|>", "chatml": "<|im_end|>", "chatml_noprompt": "<|im_end|>", "gemma": "<end_of_turn>"}


@pytest.fixture(scope="module")
def hf() -> Any:
    """Marks are special tokens, of which only the start and the end of a text are named."""
    return tokenizer_with("byte_bpe", MARKS, bos_token="<s>", eos_token="</s>")


class Shown:
    """An input under a template: what is scored and learnt of each row, and what the log says."""

    def __init__(self, hf: Any, data: str, jinja: str, map: dict[str, str] | None = None, **how: str) -> None:
        self.hf, self.path = hf, str(FIELD / "templates" / f"{jinja}.jinja")
        self.log: list[str] = []
        self.pool = load(FIELD / data, map=map, log=self.log.append, **how)
        renderer, layout = Renderer(self.pool, HFTokenizer(hf, None)), template(self.path)
        self.rows = renderer.rows(Prompted(), layout, 4096)
        self.trained = renderer.training_rows(layout, 4096)
        self.log += renderer.report()

    @property
    def reasons(self) -> list[str | None]:
        return list(self.rows.reason.tolist())

    def targets(self, rows: Rows | None = None) -> list[list[str]]:
        rows = self.rows if rows is None else rows
        out = []
        for at in range(len(rows)):
            marks = rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]].tolist()
            runs: list[list[int]] = []
            for number, (token, mark) in enumerate(zip(rows.ids[at].tolist(), marks, strict=True)):
                if mark:
                    runs.append([]) if not number or not marks[number - 1] else None
                    runs[-1].append(token)
            out.append([self.hf.decode(run) for run in runs])
        return out

    def learnt(self) -> list[list[str]]:
        return self.targets(self.trained)

    def text(self, at: int) -> str:
        return str(self.hf.decode(self.trained.ids[at].tolist()))

    def whole(self, messages: list[dict[str, Any]], **more: Any) -> list[int]:
        text = self.hf.apply_chat_template(
            messages, chat_template=Path(self.path).read_text("utf-8"), tokenize=False, **more
        )
        return list(self.hf(text, add_special_tokens=False).input_ids)


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIELD / name).read_text("utf-8").splitlines()]


ANSWERS = [["The Amazon starts there.", "The Nile runs through it."], ["Seven.", "Eight."]]


@pytest.mark.parametrize("jinja", ["qwen3", "chatml", "gemma"])
def test_two_exchanges(hf: Any, jinja: str) -> None:
    shown = Shown(hf, "multi.jsonl", jinja)
    assert shown.targets() == ANSWERS
    assert shown.learnt() == [[answer + END[jinja] for answer in row] for row in ANSWERS]
    assert shown.trained.ended is not None and shown.trained.ended.all()
    for at, row in enumerate(lines("multi.jsonl")):
        ids = shown.trained.ids[at].tolist()
        assert ids == shown.whole(row["messages"])[: len(ids)]


def test_only_the_last_answer(hf: Any) -> None:
    shown = Shown(hf, "multi.jsonl", "qwen3", targets="last")
    assert shown.targets() == [row[-1:] for row in ANSWERS]
    assert "<think>\n\n</think>\n\nEight." in shown.text(1)


def test_a_tokenizer_with_a_prefix_space() -> None:
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("the shared model is not here")
    shown = Shown(AutoTokenizer.from_pretrained(str(folder)), "multi.jsonl", "mistral")
    for at, row in enumerate(lines("multi.jsonl")):
        ids = shown.trained.ids[at].tolist()
        assert ids == shown.whole(row["messages"])[: len(ids)]
        assert shown.trained.ids[at][-1] == shown.hf.eos_token_id
    assert [[said.strip() for said in row] for row in shown.targets()] == ANSWERS


def test_the_clock_changes_nothing(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2031, 5, 17)

    first = Shown(hf, "multi.jsonl", "llama3_date")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    second = Shown(hf, "multi.jsonl", "llama3_date")
    assert first.rows.keys().tolist() == second.rows.keys().tolist()
    assert "Today Date: 26 Jul 2024" in second.text(0) and second.targets() == ANSWERS


def test_a_date_of_ones_own(hf: Any) -> None:
    layout = template(str(FIELD / "templates" / "llama3_date.jinja"))
    day = HFTokenizer(hf, None, template_date=datetime.date(2025, 1, 2))
    rows = Renderer(load(FIELD / "multi.jsonl"), day).rows(Prompted(), layout, 4096)
    assert "Today Date: 02 Jan 2025" in hf.decode(rows.ids[0].tolist())


def test_a_system_text_that_is_shown_nowhere(hf: Any) -> None:
    shown = Shown(hf, "multi_sys.jsonl", "mistral")
    assert shown.reasons == [None, None]
    for at, row in enumerate(lines("multi_sys.jsonl")):
        ids = shown.trained.ids[at].tolist()
        assert ids == shown.whole(row["messages"])[: len(ids)]
    assert "2 system texts are not shown by the template" in shown.log


def test_a_system_turn_that_is_refused(hf: Any) -> None:
    shown = Shown(hf, "multi_sys.jsonl", "gemma")
    assert shown.reasons == ["unrenderable"] * 2
    assert "2 rows are unrenderable; the template says: System role not supported" in shown.log
    folded = Shown(hf, "multi_sys.jsonl", "gemma", system="fold")
    assert folded.reasons == [None, None]
    assert "<start_of_turn>user\nBe short.\n\nThree plus four?<end_of_turn>" in folded.text(1)


@pytest.mark.parametrize("jinja", ["chatml_noprompt", "qwen3"])
def test_answers_that_stand_in_the_template_too(hf: Any, jinja: str) -> None:
    shown = Shown(hf, "short_words.jsonl", jinja)
    assert shown.targets() == [["assistant"], ["a"], ["No"]]
    assert shown.learnt() == [["assistant<|im_end|>"], ["a<|im_end|>"], ["No<|im_end|>"]]
    for at, row in enumerate(lines("short_words.jsonl")):
        ids = shown.trained.ids[at].tolist()
        assert ids == shown.whole(row["messages"])[: len(ids)]


def test_thoughts_without_line_ends(hf: Any) -> None:
    assert Shown(hf, "think_tight.jsonl", "qwen3").targets() == [
        ["<think>\n3 and 4 make 7.\n</think>\n\nIt is seven."],
        ["<think>\nEasy.\n</think>\n\nFour."],
        ["Seven."],
    ]


def test_a_thought_beside_the_content(hf: Any) -> None:
    shown = Shown(hf, "reasoning_key.jsonl", "qwen3")
    thought = "<think>\n3 and 4 make 7.\n</think>\n\n"
    assert shown.targets()[0] == [f"{thought}It is seven."]
    context = Shown(hf, "reasoning_key.jsonl", "qwen3", reasoning="context")
    assert thought in context.text(0) and context.targets() == [["It is seven."], ["Four."]]
    dropped = Shown(hf, "reasoning_key.jsonl", "qwen3", reasoning="drop")
    assert "make 7" not in dropped.text(0) and dropped.targets() == [["It is seven."], ["Four."]]
    assert "2 thoughts are left out, as --reasoning drop asks" in dropped.log


@pytest.mark.parametrize("reasoning", ["context", "drop"])
def test_a_thought_in_the_content(hf: Any, reasoning: str) -> None:
    shown = Shown(hf, "think_tight.jsonl", "qwen3", reasoning=reasoning)
    assert shown.targets() == [["It is seven."], ["Four."], ["Seven."]]
    assert ("make 7" in shown.text(0)) == (reasoning == "context")


@pytest.mark.parametrize("jinja", ["chatml", "qwen3", "gemma"])
def test_an_answer_of_no_weight(hf: Any, jinja: str) -> None:
    shown = Shown(hf, "weights.jsonl", jinja)
    assert shown.targets() == [["No: Lima."]] and "It is Cusco." in shown.text(0)


@pytest.mark.parametrize("jinja", ["chatml", "qwen3"])
def test_a_prompt_with_earlier_answers(hf: Any, jinja: str) -> None:
    assert Shown(hf, "prompt_with_history.jsonl", jinja).targets() == [["Ok."]]


CALL = '<tool_call>\n{"name": "rain", "arguments": {"city": "Lima"}}\n</tool_call>'


def test_calls_are_learnt(hf: Any) -> None:
    shown = Shown(hf, "tool_calls.jsonl", "qwen3", targets="all+calls")
    assert shown.targets()[0] == [f"Let me look.\n{CALL}", "No rain today."]
    assert shown.learnt()[0] == [f"Let me look.\n{CALL}<|im_end|>", "No rain today.<|im_end|>"]
    assert CALL in shown.targets()[1][0] and shown.reasons == [None, None]


def test_calls_are_context(hf: Any) -> None:
    shown = Shown(hf, "tool_calls.jsonl", "qwen3")
    assert shown.reasons == [None, None]
    assert shown.targets()[0] == ["Let me look.", "No rain today."]
    # Where an answer is learnt and the call after it is context, the end after the call is learnt.
    assert shown.learnt()[0] == ["Let me look.", "<|im_end|>", "No rain today.<|im_end|>"]
    assert CALL in shown.text(0) and CALL in shown.text(1)


def test_calls_alone(hf: Any) -> None:
    shown = Shown(hf, "xlam.jsonl", "qwen3")
    assert shown.reasons == ["no_target", "no_target"]
    assert any("--targets all+calls" in line for line in shown.log)
    calls = Shown(hf, "xlam.jsonl", "qwen3", targets="all+calls")
    assert CALL in calls.targets()[0][0] and "rain of a city" in calls.text(0)
    mapped = Shown(hf, "xlam.jsonl", "qwen3", map={"instruction": "query", "response": "answers"})
    assert "rain of a city" in mapped.text(0) and mapped.reasons == [None, None]


def test_a_system_text_beside_question_and_answer(hf: Any) -> None:
    assert "<|im_start|>system\nBe kind.<|im_end|>" in Shown(hf, "qa_sys.jsonl", "qwen3").text(0)


def test_an_empty_system_turn_is_no_turn(hf: Any) -> None:
    shown = Shown(hf, "empty_system.jsonl", "qwen3")
    assert shown.pool.ids[0] == shown.pool.ids[1]
    assert shown.rows.keys()[0] == shown.rows.keys()[1]


def test_tools_that_are_no_list(hf: Any) -> None:
    shown = Shown(hf, "tools_text.jsonl", "qwen3")
    assert shown.reasons == ["bad_tools", None]
    assert [line for line in shown.log if "get_weather(city): tells the weather" in line]
