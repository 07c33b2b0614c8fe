"""A sample laid out and read again is the same sample, wherever its layout can hold it."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from instdiff.data import Message, Sample, Turns, load
from instdiff.rendering.templates import TextTemplate, template
from instdiff.selection.export.layouts import (
    ALPACA,
    MESSAGES,
    PLAIN_ALPACA,
    PROMPT_COMPLETION,
    SHAREGPT,
    lay,
    messages,
    render_layout,
    shown,
    turns_of,
    with_tool_objects,
)

from .rows import CALLS, CHAT, HARD, HISTORY, INPUTS, PLAIN, TOOL, TOOLS_USED

TEXT_TWO = (
    "Be brief.\n\nBelow is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nOne?\n\n### Response:One.{end}\n\n### Instruction:\nTwo?\n\n### Response:"
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=5)


@given(roles, st.data())
def test_conversations_come_back_exactly(said: list[str], data: st.DataObject) -> None:
    turns = (Message("user", data.draw(text)), *(Message(role, f"{data.draw(text)}.") for role in said))
    tools = data.draw(st.lists(st.dictionaries(text, text), max_size=2))
    sample = Sample(turns, json.dumps(tools, ensure_ascii=False) if tools else "")
    assert SHAREGPT.exact(sample) and MESSAGES.exact(sample)
    # An answer in the prompt is context when the row is read again.
    assert PROMPT_COMPLETION.exact(sample) == (turns[-1].role == "assistant" and said.count("assistant") == 1)


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


def test_calls_are_parts_of_turns() -> None:
    (sample,) = load(TOOLS_USED).samples()
    said = turns_of(sample.messages)
    assert said == [
        {"role": "user", "content": "Rain in Lima?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"city": "Lima"}}}
            ],
        },
        {"role": "tool", "content": '{"mm": 0}', "tool_call_id": "c1", "name": "rain"},
        {"role": "assistant", "content": "None."},
    ]
    spoken = SHAREGPT.make(sample)
    assert spoken is not None and spoken["conversations"][1:3] == [
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '{"name": "rain", "arguments": {"city": "Lima"}}'},
    ]
    assert ALPACA.make(sample) is None and not SHAREGPT.exact(sample)  # the ids of calls


def test_flags_for_axolotl() -> None:
    (sample,) = load(TOOLS_USED).samples()
    alone = replace(sample.messages[1], content="")
    sample = replace(sample, messages=(sample.messages[0], alone, *sample.messages[2:]))
    flags = [turn.get("train") for turn in with_tool_objects(sample, "all")["messages"]]
    assert flags == [None, False, None, None]
    assert all("train" not in turn for turn in with_tool_objects(sample, "all+calls")["messages"])
    row = with_tool_objects(sample, "last", text=True)
    assert row["tools"] == [TOOL]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Lima"}'


def test_thoughts_are_text_where_there_is_one_field() -> None:
    turns = (Message("user", "?"), Message("assistant", "7.", reasoning="3 and 4"))
    row, spoken = ALPACA.make(Sample(turns)), SHAREGPT.make(Sample(turns))
    assert row is not None and row["output"] == "<think>\n3 and 4\n</think>\n\n7."
    assert spoken is not None and spoken["conversations"][1]["value"] == row["output"]
    assert messages(Sample(turns))["messages"][1] == {
        "role": "assistant",
        "content": "7.",
        "reasoning_content": "3 and 4",
    }
    (bare,) = [shown(Sample(turns), Turns(reasoning="drop"))]
    assert bare.messages[1] == Message("assistant", "7.")
    block = Sample((Message("user", "?"), Message("assistant", "<think>\nHm.\n</think>\n\n7.")))
    assert shown(block, Turns(reasoning="drop")).messages[1].content == "7."
    assert shown(block, Turns()) is block


def test_a_template_makes_the_prompt_that_is_trained() -> None:
    layout = template("alpaca")
    assert isinstance(layout, TextTemplate)
    row = render_layout(layout, Turns())(next(load(INPUTS[3:]).samples()))
    assert row is not None and row["prompt"] == layout.turn("Add.", "5 and 7\n") and row["completion"] == "12"
    (_, two) = load(CHAT).samples()
    row = render_layout(layout, Turns())(two)
    assert row is not None and row["completion"] == "Two." and "One." in row["prompt"]
    assert row["prompt"] == TEXT_TWO.format(end="")
    marked = render_layout(layout, Turns(), "<s>", "</s>")(two)
    assert marked == {"prompt": "<s>" + TEXT_TWO.format(end="</s>"), "completion": "Two.</s>"}
    assert render_layout(layout, Turns())(Sample((Message("user", "?"), Message("assistant", "")))) is None
    thought = Sample((Message("user", "?"), Message("assistant", "7.", reasoning="Hm.")))
    learnt, context = (render_layout(layout, how)(thought) for how in (Turns(), Turns(reasoning="context")))
    assert learnt is not None and learnt["completion"] == "<think>\nHm.\n</think>\n\n7."
    assert context is not None and context["completion"] == "7."
    assert context["prompt"].endswith("<think>\nHm.\n</think>\n\n")
