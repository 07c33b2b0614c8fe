"""Every chat template that TRL ships x kinds of tokenizers x nine rows: four properties, or a reason that is known."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from instdiff.core import Prompted
from instdiff.core.settings import TEMPLATE_DATE
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template
from render.families import KINDS, NAMES, ROWS, tokenizer

pytestmark = pytest.mark.skipif(not NAMES, reason="TRL is not installed")

CHAT, LIMIT = template("chat"), 4096
TOOL = "tool call, result"
REFUSED = {
    **{(name, TOOL): "unrenderable" for name in ("gemma", "gemma3", "cohere", "cohere2")},
    **{(name, TOOL): "rewritten" for name in ("deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5")},
    ("gemma", "two turns, system"): "unrenderable",
}
NO_THOUGHTS = {"deepseek_r1_distill", "deepseekv3"}
NO_KEY = NO_THOUGHTS | {
    *("cohere", "cohere2", "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "lfm2", "lfm2_v2"),
    *("llama3", "llama3_1", "llama3_2", "phi3", "phi3_5", "qwen2_5", "qwen3_instruct_2507"),
}
"""Own templates that show no thoughts that stand beside the content."""


MARKS = re.compile(
    r"(</?think>|<\|channel\|?> ?\w*|<channel\|>|<\|(message|end|eom)\|>|<\|start\|> ?assistant| ?to=\w+|\s)*"
)
"""What templates write around thoughts."""


def own(name: str) -> str:
    return name.removesuffix("_training")


def rendered(name: str, kind: str, named: bool, **how: str) -> tuple[Any, Rows, Rows]:
    """The tokenizer, and the rows as they are scored and as they are learnt."""
    hf = tokenizer(name, kind, named)
    renderer = Renderer(load(list(ROWS.values()), **{"targets": "all+calls", **how}), HFTokenizer(hf, None))
    return hf, renderer.rows(Prompted(), CHAT, LIMIT), renderer.training_rows(CHAT, LIMIT)


def stretches(hf: Any, rows: Rows, at: int) -> list[list[int]]:
    """The targets of a row, those that stand together in one list."""
    marks = rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]
    out: list[list[int]] = []
    for number, (token, mark) in enumerate(zip(rows.ids[at].tolist(), marks.tolist(), strict=True)):
        if mark:
            out.append([]) if not number or not marks[number - 1] else None
            out[-1].append(token)
    return out


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime.combine(TEMPLATE_DATE, datetime.time())


def whole(hf: Any, row: dict[str, Any]) -> tuple[str, list[int]]:
    """What the library itself makes of a conversation."""
    turns: list[dict[str, Any]] = []
    for turn in row["messages"]:
        thought = turn.get("reasoning_content")
        turns.append({**turn, **({"thinking": thought, "reasoning": thought} if thought else {})})

    def render(messages: list[dict[str, Any]]) -> str:
        return str(hf.apply_chat_template(messages, tools=row.get("tools"), tokenize=False))

    try:
        text = render(turns)
    except TypeError:  # calls wanted as text
        text = render([_with_texts(turn) for turn in turns])
    return text, hf(text, add_special_tokens=False).input_ids


def _with_texts(turn: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**turn, "tool_calls": calls}


def pieces(name: str, row: str) -> list[list[str]]:
    """What must stand in each target turn's response, in its order."""
    lost = own(name) in NO_THOUGHTS and name != "deepseek_r1_distill_training"
    out = []
    for turn in ROWS[row]["messages"]:
        if turn["role"] == "assistant":
            block = re.match(r"<think>\s*(.*?)\s*</think>\s*", turn["content"], re.DOTALL)
            answer = turn["content"][block.end() :] if block else turn["content"]
            out.append([block[1] if block and not lost else "", answer])
    return out


CELLS = [(name, kind, named) for name in NAMES for kind in KINDS for named in (False, True)]


def check(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, named: bool) -> None:
    hf, scored, learnt = rendered(name, kind, named)
    monkeypatch.setattr(chat_template_utils, "datetime", _Clock)
    specials = HFTokenizer(hf, None).specials
    for at, row in enumerate(ROWS):
        assert scored.reason[at] == learnt.reason[at] == REFUSED.get((own(name), row)), row
        if scored.reason[at]:
            continue
        text, ids = whole(hf, ROWS[row])
        assert learnt.ids[at].tolist() == ids[: len(learnt.ids[at])], row  # P1
        said, taught = (stretches(hf, rows, at) for rows in (scored, learnt))
        if row != TOOL:
            _check_responses(name, row, [hf.decode(run) for run in said], text)
        else:
            joined = "".join(hf.decode(run) for run in said)
            assert "weather" in joined and "Lima" in joined and joined.endswith("It stays dry.")
            assert "dry" not in joined.removesuffix("It stays dry.") and "Rain" not in joined
        # P2: what is learnt is what is scored, with a head before it and an end after it.
        flat, scored_flat = (iter([t for run in runs for t in run]) for runs in (taught, said))
        assert all(token in flat for token in scored_flat)
        for run in taught[:-1] if own(name) == "glm4moe" and name == "glm4moe" else taught:  # P3
            assert run[-1] in specials, (row, hf.decode(run))


def _check_responses(name: str, row: str, said: list[str], text: str) -> None:
    expected = pieces(name, row)
    assert len(said) == len(expected), (row, said)
    for number, (response, (thought, answer)) in enumerate(zip(said, expected, strict=True)):
        stripped = response.strip()
        assert stripped.endswith(answer), (row, response)
        before = stripped.removesuffix(answer)
        last = number == len(expected) - 1
        if thought and (last or thought in text):
            assert before.count(thought) == 1, (row, response)
            before = before.replace(thought, "")
        if row == "reasoning_content" and name not in NO_KEY and own(name) not in NO_KEY:
            assert "Three plus four is seven." in before, (row, response)
            before = before.replace("Three plus four is seven.", "")
        assert MARKS.fullmatch(before), (row, response)


@pytest.mark.parametrize(("name", "kind", "named"), CELLS, ids=[f"{n}-{k}-{e}" for n, k, e in CELLS])
def test_matrix(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, named: bool) -> None:
    check(monkeypatch, name, kind, named)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if own(n) in ("deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5")]
)
def test_calls_that_a_template_does_not_show_leave_the_answers(name: str) -> None:
    hf = tokenizer(name, "byte_bpe", False)
    renderer = Renderer(load([ROWS[TOOL]], targets="all"), HFTokenizer(hf, None))
    rows = renderer.rows(Prompted(), CHAT, LIMIT)
    assert [hf.decode(run) for run in stretches(hf, rows, 0)] == ["Let me look.", "It stays dry."]
    assert "1 turns have calls that the template does not show" in renderer.report()


def test_a_system_turn_that_a_template_refuses_is_folded() -> None:
    hf = tokenizer("gemma", "byte_bpe", False)
    row = ROWS["two turns, system"]
    renderer = Renderer(load([row], system="fold"), HFTokenizer(hf, None))
    rows = renderer.rows(Prompted(), CHAT, LIMIT)
    first, *turns = row["messages"]
    folded = [{"role": "user", "content": f"{first['content']}\n\n{turns[0]['content']}"}, *turns[1:]]
    assert rows.ids[0].tolist() == whole(hf, {"messages": folded})[1][: len(rows.ids[0])]
    assert any("refuses a system turn" in line for line in renderer.report())
    kept = Renderer(load([row]), HFTokenizer(hf, None))
    assert kept.rows(Prompted(), CHAT, LIMIT).reason.tolist() == ["unrenderable"]
    assert kept.report() == ["1 rows are unrenderable; the template says: System role not supported"]


# ── P4: the same in another order, on another day, in another process ─────────────────────────────────────────────────


def keys(name: str, order: int = 1) -> list[str]:
    rows = Renderer(load(list(ROWS.values())[::order]), HFTokenizer(tokenizer(name, "byte_bpe", False), None))
    found = rows.rows(Prompted(score_eos=True), CHAT, LIMIT).keys()
    return [key.hex() for key in found][::order]


class _Tomorrow(_Clock):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(2031, 5, 17, 9, 30)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_clock_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    first = keys(name)
    monkeypatch.setattr(chat_template_utils, "datetime", _Tomorrow)
    assert keys(name, -1) == first


def test_another_process_changes_nothing() -> None:
    script = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1]); from render.test_matrix import keys; "
        "print(json.dumps([keys(name) for name in ('qwen3', 'gptoss', 'gemma4_v5')]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, json.dumps(sys.path)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert json.loads(out.splitlines()[-1]) == [keys(name) for name in ("qwen3", "gptoss", "gemma4_v5")]
