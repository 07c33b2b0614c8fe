"""A sample laid out and read again is the same sample, wherever its layout can hold it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.data import Message, Sample, load
from instdiff.rendering.templates import TextTemplate, template
from instdiff.selection.export.layouts import (
    ALPACA,
    MESSAGES,
    PLAIN_ALPACA,
    PROMPT_COMPLETION,
    SHAREGPT,
    lay,
    out_of_turn,
    render_layout,
    tool_calls,
    turns_of,
)

from .rows import CALLS, CHAT, HARD, HISTORY, INPUTS, ODD_CALL, PLAIN

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=5)


@given(roles, st.data())
def test_conversations_come_back_exactly(said: list[str], data: st.DataObject) -> None:
    turns = (Message("user", data.draw(text)), *(Message(role, data.draw(text)) for role in said))
    tools = data.draw(st.lists(st.dictionaries(text, text), max_size=2))
    sample = Sample(turns, json.dumps(tools, ensure_ascii=False) if tools else "")
    assert SHAREGPT.exact(sample) and MESSAGES.exact(sample)
    assert PROMPT_COMPLETION.exact(sample) == (turns[-1].role == "assistant" and len(turns) > 1)


@given(text, text, text, st.lists(st.tuples(text, text), max_size=2), text)
def test_alpaca_rows_come_back_exactly(
    instruction: str, second: str, output: str, before: list[tuple[str, str]], system: str
) -> None:
    history = [m for q, a in before for m in (Message("user", q), Message("assistant", a))]
    head = [Message("system", system)] if system else []
    sample = Sample((*head, *history, Message("user", instruction, second), Message("assistant", output)))
    assert ALPACA.exact(sample)
    assert PLAIN_ALPACA.exact(sample) == (not history and not head)
    assert SHAREGPT.exact(sample) == MESSAGES.exact(sample) == (not second)


def test_the_first_layout_that_holds_all_is_taken() -> None:
    names = [lay(load(rows), (ALPACA, SHAREGPT)).layout.name for rows in (PLAIN, INPUTS, HISTORY, CHAT, CALLS)]
    assert names == ["alpaca", "alpaca", "alpaca", "alpaca", "sharegpt"]
    assert lay(load(HISTORY), (PLAIN_ALPACA, MESSAGES)).changed == 1  # the input
    forced = lay(load(CALLS), (ALPACA,))
    assert (forced.unfit, forced.changed) == ((2,), 0)


def test_all_rows_have_the_same_columns() -> None:
    laid = lay(load(HISTORY), (ALPACA,))
    rows = list(laid.rows(load(HISTORY)))
    assert {tuple(row) for row in rows} == {("instruction", "input", "output", "system", "history")}
    assert rows[0]["system"] == "" and rows[0]["history"] == []
    assert rows[-1]["history"] == [["First?", "First."], ["Second?", HARD]]


def test_inputs_come_back_through_columns_beside() -> None:
    laid = lay(load(INPUTS), (PROMPT_COMPLETION,), beside=ALPACA)
    rows = list(laid.rows(load(INPUTS)))
    assert laid.changed == 0 and set(rows[0]) == {"prompt", "completion", "instruction", "input", "output"}
    assert rows[3]["prompt"] == [{"role": "user", "content": "Add.\n5 and 7\n"}]
    assert load(rows).ids == load(INPUTS).ids


def test_calls() -> None:
    assert tool_calls('{"name": "f", "arguments": {"a": "ä"}}') == [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": "ä"}'}}
    ]
    assert [tool_calls(t) for t in ("f(1)", "[]", "3", '{"name": 1}', '{"name": "f", "id": 1}')] == [None] * 5
    (sample,) = load(CALLS[2:]).samples()
    said = turns_of(sample.messages, [False, True, False, False, True])
    assert [(m["role"], m["content"], m["train"]) for m in said] == [
        ("user", "Find it.", False),
        ("assistant", "I look.", True),
        ("tool", '{"found": 1}', False),
        ("assistant", "There.", True),
    ]
    assert said[1]["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"q": "ä", "n": 2}'}
    assert MESSAGES.exact(sample) and SHAREGPT.exact(sample)
    (odd,) = load([ODD_CALL]).samples()
    assert not MESSAGES.exact(odd) and SHAREGPT.exact(odd)


def test_a_template_makes_the_prompt_that_is_trained() -> None:
    layout = template("alpaca")
    assert isinstance(layout, TextTemplate)
    row = render_layout(layout)(next(load(INPUTS[3:]).samples()))
    assert row is not None and row["prompt"] == layout.turn("Add.", "5 and 7\n") and row["completion"] == "12"
    (_, two) = load(CHAT).samples()
    row = render_layout(layout)(two)
    assert row is not None and row["completion"] == "Two." and "One." in row["prompt"]
    assert render_layout(layout)(Sample((Message("user", "?"), Message("assistant", "")))) is None


@pytest.mark.parametrize(("roles", "fine"), [("ua", True), ("sua", True), ("uaua", True), ("uctca", False)])
def test_out_of_turn(roles: str, fine: bool) -> None:
    names = {"s": "system", "u": "user", "a": "assistant", "c": "call", "t": "tool"}
    turns = [{"from": names[r] if r != "c" else "function_call", "value": "x"} for r in roles]
    assert out_of_turn(load([{"conversations": turns}])) == int(not fine)
